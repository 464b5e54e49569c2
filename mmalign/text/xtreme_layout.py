"""Predictions in the folder layout of XTREME, which XTREME's own `evaluate.py` reads and grades.

    examples, predictions of one language -> lines -> <folder>/<task>/test-<lang>.<suffix>

    task                    file    holds, in the order of the published test file
    xnli, pawsx             tsv     a label a line
    udpos, panx             tsv     a tag a line, an empty line after each sentence
    xcopa                   jsonl   {"label": number of the choice} a line
    xquad, mlqa, tydiqa     json    {id of the question: text of the answer}
    mewslix                 json    {id of the mention: ids of the first 20 entities}
    tatoeba                 tsv     a line number a line, see `_translations`
    bucc2018                tsv     id of the sentence, tab, id of its English translation

Ids must be the publisher's. LAReQA is not among them: XTREME-R grades it from embeddings and has no
file of predictions. The layout is XTREME's own (google-research/xtreme@838c13b: README, "Leaderboard
Submission", `evaluate.py` and `mock_test_data/predictions`).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.text.scores import Prediction
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.task import Kind

FILES: dict[str, tuple[Kind, str]] = {
    "xnli": ("classification", "tsv"),
    "pawsx": ("classification", "tsv"),
    "xcopa": ("multiple_choice", "jsonl"),
    "udpos": ("tagging", "tsv"),
    "panx": ("tagging", "tsv"),
    "xquad": ("span_qa", "json"),
    "mlqa": ("span_qa", "json"),
    "tydiqa": ("span_qa", "json"),
    "mewslix": ("retrieval", "json"),
    "tatoeba": ("retrieval", "tsv"),
    "bucc2018": ("retrieval", "tsv"),
}
"""XTREME's name of a task -> its kind and the suffix of its files."""

_OTHER_NAMES = {"wikiann": "panx", "tydiqagoldp": "tydiqa", "bucc": "bucc2018"}
_LABELS = {"xnli": ("contradiction", "entailment", "neutral"), "pawsx": ("0", "1")}
_DEPTH = 20  # `evaluate.py` looks no further


def xtreme_name(task: str) -> str | None:
    """XTREME's name of one of our tasks, None where its scorer grades no such task.

    Case, hyphens and underscores do not count: `paws-x`, `UD_POS` and `mewsli-x` are found.
    """
    bare = task.lower().replace("-", "").replace("_", "")
    name = _OTHER_NAMES.get(bare, bare)
    return name if name in FILES else None


def write_predictions(
    folder: Path,
    task: str,
    lang: str,
    kind: Kind,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    candidates: Sequence[Example] = (),
) -> Path:
    """Write the predictions of one task in one language; an older file is replaced.

    Args:
        task: a name that `xtreme_name` knows.
        lang: BCP-47; the file is named by its first part, the two letters that XTREME uses.
        examples: all test examples of the language, in the publisher's order.
        predictions: one an example, as `scores.score` takes them.
        candidates: of Tatoeba only: the sentences in `lang`, in the publisher's order.

    Returns:
        The file.

    Raises:
        UserError: a task that XTREME's scorer does not grade, or asks something else by that name; a
            label that it does not know; Tatoeba's queries are not English.
    """
    assert len(examples) == len(predictions), (len(examples), len(predictions))
    name = xtreme_name(task)
    if name is None:
        raise UserError(f"task `{task}`: XTREME's scorer grades only {', '.join(FILES)}")
    expected, suffix = FILES[name]
    if kind != expected:
        raise UserError(
            f"task `{task}`: is of kind {kind}, but XTREME's task of that name is of kind "
            f"{expected}; rename the task"
        )
    text = _text(name, examples, list(predictions), candidates)
    path = folder / name / f"test-{lang.split('-')[0]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _text(
    name: str, examples: Sequence[Example], given: list[Any], candidates: Sequence[Example]
) -> str:
    """The contents of the file."""
    match name:
        case "xnli" | "pawsx":
            return _lines(_checked(name, label) for label in given)
        case "udpos" | "panx":
            return _lines(_sentence(*pair) for pair in zip(examples, given, strict=True))
        case "xcopa":
            return _lines(json.dumps({"label": number}) for number in given)
        case "tatoeba":
            return _lines(_translations(examples, given, candidates))
        case "bucc2018":  # a sentence without a translation has no line
            pairs = zip(examples, given, strict=True)
            return _lines(f"{one.id}\t{ranked[0]}" for one, ranked in pairs if ranked)
        case "mewslix":
            return _by_id(examples, [ranked[:_DEPTH] for ranked in given])
        case _:
            return _by_id(examples, given)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _by_id(examples: Sequence[Example], given: Sequence[Any]) -> str:
    """One JSON object, ASCII: the scorer opens files in the encoding of its machine."""
    ids = [one.id for one in examples]
    return json.dumps(dict(zip(ids, given, strict=True)), indent=1) + "\n"


def _checked(name: str, label: str) -> str:
    """The label; another spelling would be graded as wrong without a word."""
    if label not in _LABELS[name]:
        raise UserError(
            f"task {name}: predicted label `{label}` is none of XTREME's; train on the labels "
            f"{', '.join(_LABELS[name])}"
        )
    return label


def _sentence(example: Example, tags: tuple[str, ...]) -> str:
    assert len(tags) == len(example.texts), example.id
    return _lines(tags)


def _translations(
    queries: Sequence[Example], ranked: Sequence[tuple[str, ...]], candidates: Sequence[Example]
) -> list[str]:
    """For each English sentence, the number from 0 of the line that holds its translation.

    XTREME sorts the English file before it hands it out (`tatoeba_preprocess`), so that line numbers
    tell nothing, and grades the search from English into the other language: a line of predictions
    is a line of the sorted English file, and its number counts lines of the unsorted other file.
    """
    if any(one.lang.split("-")[0] != "en" for one in queries) or not candidates:
        raise UserError(
            "task tatoeba: XTREME grades the search from English into the other language; give "
            "English queries and the candidates of the other language"
        )
    line_of = {one.id: line for line, one in enumerate(candidates)}
    order = sorted(range(len(queries)), key=lambda i: queries[i].texts[0].strip())
    return [str(line_of[ranked[i][0]]) for i in order]
