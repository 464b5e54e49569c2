"""Outcomes of text tasks as numbers of a `results.json`: per language, as a mean, clean and perturbed.

Metric names: `text/<task>/<language or mean>/<variant>/<metric>`, where the variant is `clean` or a
perturbation. A perturbed metric is measured on the rows that the perturbation changed. Beside it are
`<metric>_clean` (the unchanged texts of the same rows), `<metric>_drop` and `<metric>_worst`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmalign.results.aggregates import summed_up
from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results
from mmalign.results.statistics import (
    INTERVAL_DRAWS,
    bootstrap_interval,
    drawn_means,
    percentile_interval,
)
from mmalign.text.causality.pairs import redrawn_pair_scores
from mmalign.text.scores import PRIMARY, Prediction, chance, score
from mmalign.text.tasks.task import CLEAN, Example, Task, row_ids, sha256_of_tests

# A language with fewer changed rows is in no mean over languages under a perturbation.
LEAST_CHANGED = 50

# Of a metric: (n,) one value per example, whose mean is the metric; or the metric itself.
Value = np.ndarray | float


@dataclass(frozen=True)
class Outcome:
    """The metrics of a model on the examples of one language.

    Attributes:
        redrawn: of metrics of a complete set that have an interval: (T,), their values on T sets of
            examples that were drawn from these with replacement.
    """

    examples: Sequence[Example]
    values: dict[str, Value]
    redrawn: dict[str, np.ndarray] = field(default_factory=dict)


def outcome_of(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> Outcome:
    """The metrics of the task's kind; predicted labels are merged as the task defines."""
    merged = [task.merge.get(p, p) if isinstance(p, str) else p for p in predictions]
    values = score(task.kind, examples, merged)
    given: Any = merged
    redrawn = redrawn_pair_scores(examples, given) if task.kind == "event_causality" else {}
    return Outcome(examples, values, redrawn)


def merge_of_dev(task: Task, dev: Sequence[Example]) -> dict[str, str]:
    """The task's `merge`, or none where dev has the labels of training, which `merge` replaces.

    Tests are coarser than training, but dev rows of the training files are not: compared with merged
    predictions, every row of a merged label would be wrong.
    """
    labels = {one.target for one in dev if isinstance(one.target, str)}
    is_fine = any(task.merge.get(label, label) != label for label in labels)
    return {} if is_fine else task.merge


def add_clean(results: Results, task: Task, by_language: Mapping[str, Outcome]) -> None:
    """Record every metric of every language, and the mean over the target languages."""
    # Metrics that some language lacks are left out: a label that never occurs leaves some undefined.
    for metric in sorted(set.intersection(*(set(one.values) for one in by_language.values()))):
        values = {lang: one.values[metric] for lang, one in by_language.items()}
        _add(results, task, CLEAN, metric, values, by_language)
        # The sets of the languages are drawn independently.
        redrawn = {
            lang: v.redrawn[metric] for lang, v in by_language.items() if metric in v.redrawn
        }
        for part, drawn in _with_mean(redrawn, task.targets).items():
            results.ci95[f"text/{task.name}/{part}/{CLEAN}/{metric}"] = percentile_interval(drawn)
    _add_chance(results, task, CLEAN, by_language)
    results.data[task.name] = sha256_of_tests(task)


def add_perturbed(
    results: Results,
    task: Task,
    variant: str,
    clean: Mapping[str, Outcome],
    draws: Sequence[Mapping[str, Outcome]],
) -> None:
    """Record the primary metric on rows that a perturbation changed: clean, perturbed, drop and worst case.

    Perturbed is the mean over the draws. The worst case of a metric with one value per example takes each
    example's worst draw; of any other metric it is the worst draw.

    Args:
        clean: the unchanged texts of the rows that every draw changed.
        draws: the same rows of the same languages in every draw.
    """
    metric = PRIMARY[task.kind]
    before = {lang: one.values[metric] for lang, one in clean.items()}
    drawn = {lang: np.stack([one[lang].values[metric] for one in draws]) for lang in clean}
    mean = {lang: values.mean(0) for lang, values in drawn.items()}
    drop = {lang: before[lang] - mean[lang] for lang in clean}
    worst = {lang: values.min(0) for lang, values in drawn.items()}
    parts = {"": mean, "_clean": before, "_drop": drop, "_worst": worst}
    for suffix, values in parts.items():
        _add(results, task, variant, f"{metric}{suffix}", values, clean, LEAST_CHANGED)
    _add_chance(results, task, variant, clean, LEAST_CHANGED)


def add_of_correct_rows(
    results: Results,
    task: Task,
    variant: str,
    metric: str,
    by_language: Mapping[str, np.ndarray],
    members: Sequence[str],
) -> None:
    """Record what was measured on the rows that a model itself had right; `members` are in the mean."""
    name = f"text/{task.name}/{{}}/{variant}/{metric}".format
    there = {lang: values for lang, values in by_language.items() if len(values)}
    for lang, values in there.items():
        # As a number: these are not the rows of the other metrics of the variant.
        results.add(name(lang), float(values.mean()), len(values))
        if len(values) > 1:
            results.ci95[name(lang)] = bootstrap_interval(values)
    means = [there[lang].mean() for lang in members if lang in there]
    if means:
        count = sum(len(there[lang]) for lang in members if lang in there)
        results.add(name(MEAN), float(np.mean(means)), count)


def in_mean(task: Task, outcomes: Mapping[str, Outcome], least: int = 0) -> list[str]:
    """The target languages with at least `least` rows."""
    there = (lang for lang in task.targets if lang in outcomes)
    return [lang for lang in there if len(outcomes[lang].examples) >= least]


def _add(
    results: Results,
    task: Task,
    variant: str,
    metric: str,
    values: Mapping[str, Value],
    outcomes: Mapping[str, Outcome],
    least: int = 0,
) -> None:
    ids = {lang: row_ids(outcomes[lang].examples) for lang in values}
    for lang, value in values.items():
        count = None if isinstance(value, np.ndarray) else len(ids[lang])
        results.add(f"text/{task.name}/{lang}/{variant}/{metric}", value, count, ids=ids[lang])
    # The language of the training data is reported, but is no target of the transfer.
    targets = in_mean(task, outcomes, least)
    if not targets:
        return
    name = f"text/{task.name}/{MEAN}/{variant}/{metric}"
    mean = float(np.mean([np.mean(values[lang]) for lang in targets]))
    results.add(name, mean, count=sum(len(ids[lang]) for lang in targets))
    arrays = {lang: v[None] for lang in targets if isinstance(v := values[lang], np.ndarray)}
    if len(arrays) == len(targets):
        # Ids are drawn, not examples: a sentence that is hard in one language is hard in the others too, and
        # examples drawn one by one would make the interval too narrow.
        drawn = summed_up(MEAN, drawn_means(arrays, ids, draws=INTERVAL_DRAWS))
        assert drawn is not None
        results.ci95[name] = percentile_interval(drawn)


def _add_chance(
    results: Results, task: Task, variant: str, outcomes: Mapping[str, Outcome], least: int = 0
) -> None:
    levels = {
        lang: chance(task.kind, one.examples, len(task.candidates.get(lang, ())) or None)
        for lang, one in outcomes.items()
    }
    for part, level in _with_mean(levels, in_mean(task, outcomes, least)).items():
        results.chance[f"text/{task.name}/{part}/{variant}/{PRIMARY[task.kind]}"] = float(level)


def _with_mean(by_language: Mapping[str, Any], members: Sequence[str]) -> dict[str, Any]:
    targets = [by_language[lang] for lang in members if lang in by_language]
    return {**by_language, **({MEAN: np.mean(targets, axis=0)} if targets else {})}
