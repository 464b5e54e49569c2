"""Predictions in the folder layout of XTREME, which XTREME's own `evaluate.py` reads and grades.

    task                    file    holds, in the order of the published test file
    xnli, pawsx             tsv     one label per line
    udpos, panx             tsv     one tag per line, an empty line after each sentence
    xcopa                   jsonl   {"label": number of the choice} per line
    xquad, mlqa, tydiqa     json    {id of the question: text of the answer}
    mewslix                 json    {id of the mention: ids of the first 20 entities}
    tatoeba                 tsv     one line number per line, see `_translations`
    bucc2018                tsv     id of the sentence, tab, id of its English translation

Ids must be the publisher's. LAReQA is not among them: XTREME-R grades it from embeddings and has no
file of predictions. The layout is XTREME's own (google-research/xtreme@838c13b: README, "Leaderboard
Submission", `evaluate.py` and `mock_test_data/predictions`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.text.scores import DEPTH, Prediction
from mmalign.text.tasks.task import Example, Kind, Task

# XTREME's name of a task -> its kind and the suffix of its files.
FILES: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(("xnli", "pawsx"), ("classification", "tsv")),
    **dict.fromkeys(("udpos", "panx"), ("tagging", "tsv")),
    **dict.fromkeys(("xquad", "mlqa", "tydiqa"), ("span_qa", "json")),
    **dict.fromkeys(("tatoeba", "bucc2018"), ("retrieval", "tsv")),
    "xcopa": ("multiple_choice", "jsonl"),
    "mewslix": ("retrieval", "json"),
}

_OTHER_NAMES = {"wikiann": "panx", "tydiqagoldp": "tydiqa", "bucc": "bucc2018"}
_LABELS = {"xnli": ("contradiction", "entailment", "neutral"), "pawsx": ("0", "1")}


def xtreme_name(task: str) -> str | None:
    """XTREME's name of one of our tasks, None where its scorer grades no such task.

    Case, hyphens and underscores do not count: `paws-x`, `UD_POS` and `mewsli-x` are found.
    """
    bare = task.lower().replace("-", "").replace("_", "")
    name = _OTHER_NAMES.get(bare, bare)
    return name if name in FILES else None


def write_predictions(
    folder: Path, name: str, lang: str, task: Task, predictions: Sequence[Prediction]
) -> Path:
    """Write the predictions of one task in one language; the file, whose older version is replaced.

    Args:
        name: of the task, as `xtreme_name` takes it.
        task: has all test examples of the language in the publisher's order; of Tatoeba, also the
            candidates, which are the sentences in `lang`.

    Raises:
        UserError: a task that XTREME's scorer does not grade, or another kind of task of that name; a
            label that it does not know; Tatoeba's queries are not English.
    """
    examples = task.tests[lang]
    assert len(examples) == len(predictions), (len(examples), len(predictions))
    known = xtreme_name(name)
    if known is None:
        raise UserError(f"task `{name}`: XTREME's scorer grades only {', '.join(FILES)}")
    expected, suffix = FILES[known]
    if task.kind != expected:
        raise UserError(
            f"task `{name}`: is of kind {task.kind}, but XTREME's task of that name is of kind "
            f"{expected}; rename the task"
        )
    lines = _lines(known, examples, list(predictions), task.candidates.get(lang, ()))
    # XTREME names the file by the two letters of the language alone.
    path = folder / known / f"test-{lang.split('-')[0]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def _lines(
    name: str, examples: Sequence[Example], given: list[Any], candidates: Sequence[Example]
) -> list[str]:
    match name:
        case "xnli" | "pawsx":
            # Another spelling would be graded as wrong without a message.
            unknown = next((label for label in given if label not in _LABELS[name]), None)
            if unknown is not None:
                raise UserError(
                    f"task {name}: predicted label `{unknown}` is none of XTREME's; train on the "
                    f"labels {', '.join(_LABELS[name])}"
                )
            return given
        case "udpos" | "panx":
            assert all(len(tags) == len(e.texts) for e, tags in zip(examples, given, strict=True))
            return ["".join(f"{tag}\n" for tag in tags) for tags in given]
        case "xcopa":
            return [json.dumps({"label": number}) for number in given]
        case "tatoeba":
            return _translations(examples, given, candidates)
        case "bucc2018":  # a sentence without a translation has no line
            pairs = zip(examples, given, strict=True)
            return [f"{one.id}\t{ranked[0]}" for one, ranked in pairs if ranked]
        case _:  # one JSON object, ASCII: the scorer opens files in the encoding of its machine
            answers = [ranked[:DEPTH] for ranked in given] if name == "mewslix" else given
            ids = [one.id for one in examples]
            return [json.dumps(dict(zip(ids, answers, strict=True)), indent=1)]


def _translations(
    queries: Sequence[Example], ranked: Sequence[tuple[str, ...]], candidates: Sequence[Example]
) -> list[str]:
    # For each English sentence, the number from 0 of the line that holds its translation. XTREME sorts the
    # English file before publishing it (`tatoeba_preprocess`), so that line numbers reveal nothing: a line of
    # predictions is one of the sorted English file, and its number counts lines of the unsorted other file.
    if any(one.lang.split("-")[0] != "en" for one in queries) or not candidates:
        raise UserError(
            "task tatoeba: XTREME grades the search from English into the other language; give "
            "English queries and the candidates of the other language"
        )
    line_of = {one.id: line for line, one in enumerate(candidates)}
    order = sorted(range(len(queries)), key=lambda i: queries[i].texts[0].strip())
    return [str(line_of[ranked[i][0]]) for i in order]
