"""Documents whose events are marked and paired, in the files of MECI.

    causal-<language>/{train,dev,test}/*.tsvx, or one language's folder alone
        -> lines Text, Event, Relation -> sentences, events, pairs -> one Example a document -> Splits

    Text      sentence   sentence   ...             tab-separated, one such line, the first
    Event     T1         trigger    EVENT   74      characters from the start of the sentences
                                                    joined by one space
    Relation  T1         T5         NoRel   ...     or CauseEffect, EffectCause; the rest is not read

MECI (Lai et al., COLING 2022) asks about the pairs that a file lists, no others; files list about half of
all pairs or fewer. A causal pair is listed in both directions and a pair without a relation in one or
both. Here a pair is unordered, so a pair that is listed twice is one pair, and what is asked is whether one
event causes the other, whichever it is. Triggers may overlap, and a document may have no pair at all.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Causality, Event, EventPair, Example
from mmalign.text.tasks.layout import SPLIT, matching
from mmalign.text.tasks.tables import lines
from mmalign.text.tasks.task import Splits

_PATH = r"((.+/)?causal-(?P<lang>[a-z]{2,3})/)?(?P<split>train|dev|test)/[^/]+\.tsvx"
_WANTED = "causal-<language>/{train,dev,test}/*.tsvx"
_IS_CAUSAL = {"CauseEffect": True, "EffectCause": True, "NoRel": False}


def read_meci(folder: Path) -> Splits:
    """MECI's documents, or others in its layout; the ids of two languages are never equal.

    Raises:
        UserError: no such file, a language that no folder names, or a broken line (file, line, what).
    """
    splits: Splits = {}
    for path, match in matching(folder, _PATH, _WANTED):
        code = match["lang"] or _language_of(folder)
        lang, split = bcp47(code), SPLIT[match["split"]]
        splits.setdefault((split, lang), []).append(_document(path, split, lang))
    return splits


def _language_of(folder: Path) -> str:
    match = re.fullmatch(r"causal-([a-z]{2,3})", folder.resolve().name)
    if match is None:
        raise UserError(
            f"{folder}: holds train, dev or test, but its name tells no language; name it causal-<language>"
        )
    return match[1]


def _document(path: Path, split: str, lang: str) -> Example:
    """One file as one example; its events are numbered in the order of their places."""
    table = [(n, line.split("\t")) for n, line in enumerate(lines(path), start=1) if line.strip()]
    if not table or table[0][1][0] != "Text":
        _fail(path, 1, "the first line must be `Text` and the sentences")
    sentences = _sentences(path, *table[0])
    places: dict[str, Event] = {}
    pairs: dict[frozenset[str], bool] = {}
    for number, cells in table[1:]:
        match cells:
            case ["Event", name, trigger, _, offset]:
                if name in places:
                    _fail(path, number, f"a second event `{name}`; ids must differ")
                places[name] = _event(path, number, sentences, trigger, offset)
            case ["Relation", first, second, relation, *_]:
                _add_pair(path, number, pairs, places, (first, second, relation))
            case _:
                _fail(
                    path,
                    number,
                    "neither `Event` with five columns nor `Relation` with four or more",
                )
    return Example(f"{lang}-{split}-{path.stem}", lang, sentences, _causality(places, pairs))


def _sentences(path: Path, number: int, cells: Sequence[str]) -> tuple[str, ...]:
    if len(cells) < 2 or not any(cell.strip() for cell in cells[1:]):
        _fail(path, number, "`Text` without a sentence")
    return tuple(cells[1:])


def _event(path: Path, number: int, sentences: Sequence[str], trigger: str, offset: str) -> Event:
    """The trigger's place in its sentence; the file counts from the start of the document."""
    if not (offset.isascii() and offset.isdecimal()):
        _fail(path, number, f"the offset is `{offset}`; it must be a whole number")
    starts = list(accumulate((len(one) + 1 for one in sentences), initial=0))[:-1]
    place = int(offset)
    sentence = sum(start <= place for start in starts) - 1
    start = place - starts[sentence]
    end = start + len(trigger)
    if not trigger.strip() or sentences[sentence][start:end] != trigger:
        _fail(
            path, number, f"the trigger `{trigger}` does not stand at {offset} within one sentence"
        )
    return Event(sentence, start, end)


def _add_pair(
    path: Path,
    number: int,
    pairs: dict[frozenset[str], bool],
    places: Mapping[str, Event],
    cells: tuple[str, str, str],
) -> None:
    """Note what the line says of its pair; it must not contradict a line before it."""
    first, second, relation = cells
    unknown = [name for name in (first, second) if name not in places]
    if unknown:
        _fail(path, number, f"no line above it names the event `{unknown[0]}`")
    if first == second:
        _fail(path, number, f"`{first}` is paired with itself")
    if relation not in _IS_CAUSAL:
        _fail(path, number, f"the relation is `{relation}`; known are {', '.join(_IS_CAUSAL)}")
    if pairs.setdefault(frozenset((first, second)), _IS_CAUSAL[relation]) != _IS_CAUSAL[relation]:
        _fail(
            path, number, f"`{first}` and `{second}` are causal in one line and `NoRel` in another"
        )


def _causality(places: Mapping[str, Event], pairs: Mapping[frozenset[str], bool]) -> Causality:
    names = sorted(
        places, key=lambda one: (places[one].sentence, places[one].start, places[one].end)
    )
    number = {name: i for i, name in enumerate(names)}
    found = []
    for names_of_pair, is_causal in pairs.items():
        first, second = sorted(number[name] for name in names_of_pair)
        found.append(EventPair(first, second, is_causal))
    return Causality(
        events=tuple(places[name] for name in names),
        pairs=tuple(sorted(found, key=lambda pair: (pair.first, pair.second))),
    )


def _fail(path: Path, number: int, what: str) -> NoReturn:
    raise UserError(f"{path}, line {number}: {what}; mend the line or get the file again")
