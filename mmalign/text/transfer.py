"""Outcomes of text tasks as numbers of a `results.json`: per language, as a mean, clean and perturbed.

Metric names: `text/<task>/<language or mean>/<variant>/<metric>`, where the variant is `clean` or a
perturbation; a perturbed metric has `<metric>_drop` and `<metric>_worst` beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results
from mmalign.results.statistics import INTERVAL_DRAWS, drawn_means, percentile_interval
from mmalign.text.causality.pairs import redrawn_pair_scores
from mmalign.text.scores import PRIMARY, Prediction, chance, score
from mmalign.text.tasks.task import CLEAN, Example, Task

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
        for part, drawn in _with_mean(task, redrawn).items():
            results.ci95[f"text/{task.name}/{part}/{CLEAN}/{metric}"] = percentile_interval(drawn)
    _add_chance(results, task, CLEAN, by_language)


def add_perturbed(
    results: Results,
    task: Task,
    variant: str,
    clean: Mapping[str, Outcome],
    draws: Sequence[Mapping[str, Outcome]],
) -> None:
    """Record the primary metric's mean over the draws, its drop from clean, and its worst case.

    The worst case of a metric with one value per example takes each example's worst draw; of any other
    metric it is the worst draw. Every draw has the same languages, perhaps fewer than `clean`.
    """
    metric = PRIMARY[task.kind]
    # A language where the perturbation does not exist is in no draw.
    languages = list(draws[0])
    drawn = {lang: np.stack([one[lang].values[metric] for one in draws]) for lang in languages}
    mean = {lang: values.mean(0) for lang, values in drawn.items()}
    drop = {lang: clean[lang].values[metric] - mean[lang] for lang in languages}
    worst = {lang: values.min(0) for lang, values in drawn.items()}
    for name, values in ((metric, mean), (f"{metric}_drop", drop), (f"{metric}_worst", worst)):
        _add(results, task, variant, name, values, clean)
    _add_chance(results, task, variant, {lang: clean[lang] for lang in languages})


def interval_over_ids(
    values: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over languages of the mean values.

    Args:
        values: language -> (n,), one value per example.
        ids: language -> (n,), the ids of the examples.
    """
    # Ids are drawn, not examples: a sentence that is hard in one language is hard in the others too, and
    # examples drawn one by one would make the interval too narrow.
    table = {lang: value[None] for lang, value in values.items()}
    drawn = drawn_means(table, ids, draws=INTERVAL_DRAWS)
    # NaN: a draw without any id of a language of few examples; the other languages make its mean.
    return percentile_interval(np.nanmean(np.concatenate(list(drawn.values())), axis=0))


def _add(
    results: Results,
    task: Task,
    variant: str,
    metric: str,
    values: Mapping[str, Value],
    outcomes: Mapping[str, Outcome],
) -> None:
    for lang, value in values.items():
        count = None if isinstance(value, np.ndarray) else len(outcomes[lang].examples)
        results.add(f"text/{task.name}/{lang}/{variant}/{metric}", value, count)
    # The language of the training data is reported, but is no target of the transfer.
    targets = [lang for lang in values if lang in task.targets]
    if not targets:
        return
    name = f"text/{task.name}/{MEAN}/{variant}/{metric}"
    mean = float(np.mean([np.mean(values[lang]) for lang in targets]))
    results.add(name, mean, count=sum(len(outcomes[lang].examples) for lang in targets))
    arrays = {lang: v for lang in targets if isinstance(v := values[lang], np.ndarray)}
    if len(arrays) == len(targets):
        ids = {lang: np.array([one.id for one in outcomes[lang].examples]) for lang in targets}
        results.ci95[name] = interval_over_ids(arrays, ids)


def _add_chance(
    results: Results, task: Task, variant: str, outcomes: Mapping[str, Outcome]
) -> None:
    levels = {
        lang: chance(task.kind, one.examples, len(task.candidates.get(lang, ())) or None)
        for lang, one in outcomes.items()
    }
    for part, level in _with_mean(task, levels).items():
        results.chance[f"text/{task.name}/{part}/{variant}/{PRIMARY[task.kind]}"] = float(level)


def _with_mean(task: Task, by_language: Mapping[str, Any]) -> dict[str, Any]:
    targets = [by_language[lang] for lang in task.targets if lang in by_language]
    return {**by_language, **({MEAN: np.mean(targets, axis=0)} if targets else {})}
