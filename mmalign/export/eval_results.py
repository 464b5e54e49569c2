"""What was measured, in the two forms that the hub reads.

    Results -> EvalResult, ...      -> `model-index` in the front matter of the card (card.py)
            -> EvalResultEntry, ... -> .eval_results/<set>.yaml

`model-index` takes any set; it gets one entry a task and set with what a page can show: the aggregates, and
one number of each language. The card's tables and `results.json` beside it have the rest. `.eval_results`
feeds the leaderboards of data sets on the hub, so only a set with a place there goes in, under its own name
and with all of its published tests.

The hub has no task of its own for the search between pictures and captions; `text-to-image` means drawing
pictures. Values are shares, as in `results.json`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from mmalign.core.commit import write_atomic
from mmalign.export.markdown import one_line
from mmalign.results.metric_names import (
    ALL,
    FAMILY,
    FIRST_CAPTION,
    MEAN,
    PUBLISHED,
    WORST5,
    is_aggregate,
    subjects,
)
from mmalign.results.results import Results
from mmalign.text.tasks.task import CLEAN

# Other parts are called as they are.
AGGREGATES = {WORST5: "mean of the five lowest", ALL: "all queries together"}
# (measure, what follows the language) -> (the task, by the hub's own id where it has one; words for it)
_QUOTED = {
    ("retrieval", "text_to_image/recall@1"): ("text-to-image-retrieval", "text to image"),
    ("retrieval", "image_to_text/recall@1"): ("image-to-text-retrieval", "image to text"),
    ("alignment", "bitext@1"): ("bitext-mining", "a caption finds its translation"),
    ("zero_shot", "accuracy@1"): ("zero-shot-image-classification", "picture to class name"),
}
# What a text task is, told by a metric that only its kind has: (that metric, the one quoted, the hub's name).
_KINDS = (
    ("macro_f1", "accuracy", "text-classification"),
    ("exact_match", "f1", "question-answering"),
    ("map@20", "map@20", "text-ranking"),
    ("spearman", "spearman", "sentence-similarity"),
    ("f1", "f1", "token-classification"),
    ("accuracy", "accuracy", "multiple-choice"),
)
# Sets of text tasks with one undoubted home on the hub, that of their authors: id and examples of a language.
# There every language is a configuration, called by its code.
# https://huggingface.co/datasets/facebook/xnli, https://huggingface.co/datasets/cambridgeltl/xcopa
_HOMES = {"xnli": ("facebook/xnli", 5010), "xcopa": ("cambridgeltl/xcopa", 500)}
_MOST_LANGUAGES = 40  # of a set that are listed one by one; the hub's page shows all in one list


def eval_results(results: Results) -> list[EvalResult]:
    """The quoted metrics of each set: its aggregates and its languages, of pairs of languages the mean.

    Languages stand in the names of the metrics, so that a set is one entry a task. Of very many languages,
    and of the same set under a second protocol, the aggregates stand alone. A set whose data's sha256 is
    known has it as its revision. Values that are no numbers are left out.
    """
    found, homes = [], {task: _HOMES[task][0] for task in _entries(results)}
    for measure in ("retrieval", "alignment", "zero_shot", "text"):
        for subject in subjects(results.metrics, measure):
            for part, tail in _shown(subject, list(_parts(results, measure, subject))):
                value = results.metrics[f"{measure}/{subject}/{part}/{tail}"]
                if math.isfinite(value):
                    name = (measure, subject, part, tail)
                    found.append(_eval_result(results, name, value, homes.get(subject)))
    return found


def primary_of(results: Results, task: str) -> tuple[str, str] | None:
    """The metric that is quoted of a text task, and the hub's name of such tasks; None: nothing measured."""
    names = [name for name in results.metrics if name.startswith(f"text/{task}/")]
    known = {name.split("/", 4)[4] for name in names if name.split("/")[3] == CLEAN}
    return next(((metric, kind) for mark, metric, kind in _KINDS if mark in known), None)


def write_eval_results(results: Results, folder: Path) -> None:
    """Write `folder/.eval_results/<set>.yaml` for each set that has a place on the hub, if there is one."""
    for task, entries in _entries(results).items():
        target = folder / ".eval_results" / f"{task}.yaml"
        target.parent.mkdir(exist_ok=True)
        write_atomic(target, yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def _parts(results: Results, measure: str, subject: str) -> Iterator[tuple[str, str]]:
    """(language or aggregate, what follows it) of the quoted metrics, aggregates first."""
    if measure == "text":
        primary = primary_of(results, subject)
        tails = [f"{CLEAN}/{primary[0]}"] if primary else []
    else:
        tails = [tail for one, tail in _QUOTED if one == measure]
    prefix = f"{measure}/{subject}/"
    parts = {name.split("/")[2] for name in results.metrics if name.startswith(prefix)}
    aggregates = (PUBLISHED, MEAN, WORST5, ALL)
    last = len(aggregates)
    rank = {part: place for place, part in enumerate(aggregates)}
    for part in sorted(parts, key=lambda one: (rank.get(one, last), one)):
        if (measure == "alignment" and part != MEAN) or part.startswith(FAMILY):
            continue
        for tail in tails:
            if f"{prefix}{part}/{tail}" in results.metrics:
                yield part, tail


def _shown(subject: str, parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `_parts` that a page has room for; where there is no aggregate, all of them."""
    aggregates = [(part, tail) for part, tail in parts if is_aggregate(part)]
    spoken = {part for part, _ in parts if not is_aggregate(part)}
    is_short = len(spoken) <= _MOST_LANGUAGES and FIRST_CAPTION not in subject
    return parts if is_short or not aggregates else aggregates


def _eval_result(
    results: Results, name: tuple[str, str, str, str], value: float, home: str | None
) -> EvalResult:
    measure, subject, part, tail = name
    metric, data = tail.rpartition("/")[2], subject.partition(FIRST_CAPTION)[0]
    primary = primary_of(results, subject) if measure == "text" else None
    task, words = (primary[1], None) if primary else _QUOTED[measure, tail]
    return EvalResult(
        task_type=task,
        task_name=words,
        # Not the set alone: the hub takes results of one type, configuration and revision for one entry.
        dataset_type=home or one_line(subject),
        dataset_name=one_line(subject),
        dataset_revision=results.data.get(subject) or results.data.get(data),
        metric_type=metric.replace("@", "_at_"),
        metric_name=f"{metric}, {AGGREGATES.get(part, part)}",
        metric_value=value,
    )


def _entries(results: Results) -> dict[str, list[EvalResultEntry]]:
    """For each set with a place on the hub the languages whose tests are as many as published."""
    found = {}
    for task, (home, examples) in _HOMES.items():
        entries = [
            EvalResultEntry(
                dataset_id=home,
                task_id=part,
                value=results.metrics[f"text/{task}/{part}/{tail}"],
                notes=results.protocol.get(f"text/{task}"),
            )
            for part, tail in _parts(results, "text", task)
            if results.counts[f"text/{task}/{part}/{tail}"] == examples and not is_aggregate(part)
        ]
        if entries:
            found[task] = entries
    return found
