"""Documents whose events are marked and paired, in the files of MECI.

    causal-<language>/{train,dev,test}/*.tsvx, or one language's folder alone
        -> lines Text, Event, Relation -> sentences, events, pairs -> one Example per document

    Text      sentence   sentence   ...             tab-separated, one such line, the first
    Event     T1         trigger    EVENT   74      characters from the start of the sentences
                                                    joined by one space
    Relation  T1         T5         NoRel   ...     or CauseEffect, EffectCause; the rest is not read

MECI (Lai et al., COLING 2022) asks about the pairs that a file lists, no others. Triggers may overlap, and a
document may have no pair at all.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.tables import lines
from mmalign.text.tasks.task import Causality, Entry, Event, EventPair, Example, starts_of

_IS_CAUSAL = {"CauseEffect": True, "EffectCause": True, "NoRel": False}


def document(path: Path, parts: Mapping[str, str]) -> Iterator[Entry]:
    """One file as one example under its split and language; ids of two languages are never equal.

    Raises:
        UserError: a language that no folder names, or a broken line (file, line, what).
    """
    # The language is part of the id: files of two languages may have the same name.
    folder = path.parent.parent.resolve()  # that of one language, where no folder above it is given
    match = re.fullmatch(r"causal-([a-z]{2,3})", folder.name)
    lang = parts.get("lang") or (match and match[1])
    if lang is None:
        raise UserError(
            f"{folder}: holds train, dev or test, but its name has no language; name it causal-<language>"
        )
    name = f"{lang}-{parts['split']}-{path.stem}"
    yield (parts["split"], lang), Example(name, lang, *_read(path), str(path))


def _read(path: Path) -> tuple[tuple[str, ...], Causality]:
    # Events are numbered in the order of their positions.
    events: dict[str, Event] = {}
    pairs: dict[frozenset[str], bool] = {}
    filled = [(n, line) for n, line in enumerate(lines(path), start=1) if line.strip()]
    number, first = filled[0] if filled else (1, "")
    try:
        kind, *sentences = first.split("\t")
        if kind != "Text":
            raise ValueError("the first line must be `Text` and the sentences")
        if not any(one.strip() for one in sentences):
            raise ValueError("`Text` without a sentence")
        for number, line in filled[1:]:  # noqa: B007  # the error names it
            match line.split("\t"):
                case ["Event", name, trigger, _, offset]:
                    if name in events:
                        raise ValueError(f"a second event `{name}`; ids must differ")
                    events[name] = _event(sentences, trigger, offset)
                case ["Relation", one, other, relation, *_]:
                    _add_pair(pairs, events, (one, other), relation)
                case _:
                    raise ValueError("neither `Event` with 5 columns nor `Relation` with 4 or more")
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}; fix it or get the file again") from None
    names = sorted(events, key=events.__getitem__)
    numbered = sorted((sorted(map(names.index, pair)), causal) for pair, causal in pairs.items())
    found = (EventPair(first, second, causal) for (first, second), causal in numbered)
    return tuple(sentences), Causality(tuple(events[name] for name in names), tuple(found))


def _event(sentences: Sequence[str], trigger: str, offset: str) -> Event:
    # The file counts from the start of the document.
    if not (offset.isascii() and offset.isdecimal()):
        raise ValueError(f"the offset is `{offset}`; it must be a whole number")
    starts = starts_of(sentences)
    sentence = sum(start <= int(offset) for start in starts) - 1
    start = int(offset) - starts[sentence]
    end = start + len(trigger)
    if not trigger.strip() or sentences[sentence][start:end] != trigger:
        raise ValueError(f"the trigger `{trigger}` is not at {offset} within one sentence")
    return Event(sentence, start, end)


def _add_pair(
    pairs: dict[frozenset[str], bool], events: Collection[str], names: Sequence[str], relation: str
) -> None:
    unknown = [name for name in names if name not in events]
    if unknown:
        raise ValueError(f"no line above it names the event `{unknown[0]}`")
    if names[0] == names[1]:
        raise ValueError(f"`{names[0]}` is paired with itself")
    if relation not in _IS_CAUSAL:
        raise ValueError(f"the relation is `{relation}`; known are {', '.join(_IS_CAUSAL)}")
    # A causal pair is listed in both directions, a pair without a relation in one or both. Here a pair has no
    # direction: the question is whether either event causes the other.
    is_causal = _IS_CAUSAL[relation]
    if pairs.setdefault(frozenset(names), is_causal) != is_causal:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` are causal in one line and `NoRel` in another"
        )
