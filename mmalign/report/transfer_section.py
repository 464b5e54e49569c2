"""Zero-shot transfer of a classifier: one table a task, a row a language, the mean first.

text/<task>/<language>/<perturbation or clean>/<metric> -> tables
"""

from dataclasses import dataclass

from mmalign.report.tables import (
    Column,
    Table,
    count_column,
    language_table,
    untrained_columns,
)
from mmalign.results.metric_names import GENERALISED, MEAN, languages, subjects
from mmalign.results.results import Results

UNSEEN = "_unseen"


@dataclass(frozen=True)
class Transfer:
    """The primary metric of one task, `accuracy` for example."""

    task: str
    metric: str
    table: Table


def transfers(results: Results) -> list[Transfer]:
    """One table a task; the folds with held-out items stand beside the task that they belong to."""
    tasks = subjects(results.metrics, "text")
    main = [task for task in tasks if not task.partition("@")[0].endswith(UNSEEN)]
    orphans = [task for task in tasks if task not in main and _seen_name(task) not in main]
    return [_transfer(results, task) for task in (*main, *orphans)]


def primary_metric(results: Results, task: str) -> str:
    """The metric of a text task that has a chance level."""
    prefix = f"text/{task}/{MEAN}/clean/"
    found = sorted(name for name in results.chance if name.startswith(prefix))
    return found[0].removeprefix(prefix) if found else "accuracy"


def _transfer(results: Results, task: str) -> Transfer:
    name, at, folder = task.partition("@")
    metric = primary_metric(results, task)
    values = [
        Column(f"{variant}{note}", ((f"text/{one}", f"{variant}/{metric}"),), has_intervals=True)
        for one, note in ((task, ""), (f"{name}{UNSEEN}{at}{folder}", ", unseen items"))
        for variant in _variants(results, one)
    ]
    clean = [column for column in values if column.heading.startswith("clean")]
    columns = [
        *values,
        *_place_columns(results, task, metric),
        *untrained_columns(results, clean),
        Column("chance", values[0].paths, "chance"),
        count_column([path for column in values for path in column.paths]),
    ]
    parts = [MEAN, *languages(results.metrics, "text", task)]
    return Transfer(task, metric, language_table(results, columns, parts))


def _place_columns(results: Results, task: str, metric: str) -> list[Column]:
    """Of event causality: the same of pairs within a sentence and of pairs across sentences."""
    return [
        Column(
            f"clean, {words}", ((f"text/{task}", f"clean/{metric}_{place}"),), has_intervals=True
        )
        for place, words in (("within", "within a sentence"), ("across", "across sentences"))
        if f"text/{task}/{MEAN}/clean/{metric}_{place}" in results.metrics
    ]


def _seen_name(task: str) -> str:
    name, at, folder = task.partition("@")
    return f"{name.removesuffix(UNSEEN)}{at}{folder}"


def _variants(results: Results, task: str) -> list[str]:
    """`clean` first, then the perturbations."""
    prefix = f"text/{task}/"
    found = {
        name.split("/")[3]
        for name in results.metrics
        if name.startswith(prefix) and name.endswith(f"/{primary_metric(results, task)}")
    } - {GENERALISED}
    return sorted(found, key=lambda variant: (variant != "clean", variant))
