"""Outcomes of text tasks as numbers of a `results.json`: per language, as a mean, clean and perturbed.

    examples + predictions -> Outcome (values an example, or one value) -> Results
    outcomes of several draws of one perturbation -> mean, drop from clean, worst case -> Results

Metric names: `text/<task>/<language or mean>/<variant>/<metric>`, where the variant is `clean` or a
perturbation; a perturbed metric has `<metric>_drop` and `<metric>_worst` beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results
from mmalign.text.causality.pairs import redrawn_pair_scores
from mmalign.text.scores import PRIMARY, Prediction, chance, score
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.task import CLEAN, Task

Value = np.ndarray | float
"""Of a metric: (n,) one value an example, whose mean is the metric; or the metric itself."""


@dataclass(frozen=True)
class Outcome:
    """What a model made of the examples of one language.

    Attributes:
        redrawn: of metrics of a whole set that have an interval: (T,), what they are on T sets of
            examples that were drawn from these with replacement.
    """

    examples: Sequence[Example]
    values: dict[str, Value]
    redrawn: dict[str, np.ndarray] = field(default_factory=dict)


def outcome_of(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> Outcome:
    """The metrics of the task's kind; predicted labels are merged as the task says."""
    merged = [task.merge.get(p, p) if isinstance(p, str) else p for p in predictions]
    values = score(task.kind, examples, merged)
    if task.kind != "event_causality":
        return Outcome(examples, values)
    given: Any = merged
    return Outcome(examples, values, redrawn_pair_scores(examples, given))


def add_clean(results: Results, task: Task, by_language: Mapping[str, Outcome]) -> None:
    """Record every metric of every language, and the mean over the target languages."""
    for metric in _metrics(by_language):
        values = {lang: one.values[metric] for lang, one in by_language.items()}
        _add(results, task, CLEAN, metric, values, by_language)
        _add_redrawn(results, task, metric, by_language)
    _add_chance(results, task, CLEAN, by_language)


def add_perturbed(
    results: Results,
    task: Task,
    variant: str,
    clean: Mapping[str, Outcome],
    draws: Sequence[Mapping[str, Outcome]],
) -> None:
    """Record the primary metric's mean over the draws, its drop from clean, and its worst case.

    The worst case of a metric that has a value an example takes each example's worst draw; of any other
    metric it is the worst draw. Every draw knows the same languages, perhaps fewer than `clean`.
    """
    languages = list(draws[0])
    if not languages:
        return
    metric = PRIMARY[task.kind]
    drawn = {
        lang: np.stack([np.asarray(one[lang].values[metric]) for one in draws])
        for lang in languages
    }
    mean = {lang: _plain(values.mean(0)) for lang, values in drawn.items()}
    drop = {lang: clean[lang].values[metric] - mean[lang] for lang in languages}
    worst = {lang: _plain(values.min(0)) for lang, values in drawn.items()}
    for name, values in ((metric, mean), (f"{metric}_drop", drop), (f"{metric}_worst", worst)):
        _add(results, task, variant, name, values, clean)
    _add_chance(results, task, variant, {lang: clean[lang] for lang in languages})


def interval_over_ids(
    values: Sequence[np.ndarray], ids: Sequence[Sequence[str]], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over languages of the mean values.

    Ids are drawn, not examples: a sentence that is hard in one language is hard in the others too, and
    examples drawn one by one would make the interval too narrow.

    Args:
        values: for each language, a value an example.
        ids: for each language, the ids of the examples.
    """
    place = {one: i for i, one in enumerate(sorted({one for each in ids for one in each}))}
    total = np.zeros((len(place), len(values)))  # ids x languages
    count = np.zeros_like(total)
    for language, (value, own) in enumerate(zip(values, ids, strict=True)):
        rows = [place[one] for one in own]
        np.add.at(total[:, language], rows, value)
        np.add.at(count[:, language], rows, 1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(place), np.full(len(place), 1 / len(place)), size=draws)
    with np.errstate(invalid="ignore"):  # a draw may miss a language of few examples: it counts not
        means = np.nanmean((drawn @ total) / (drawn @ count), axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _add(
    results: Results,
    task: Task,
    variant: str,
    metric: str,
    values: Mapping[str, Value],
    outcomes: Mapping[str, Outcome],
) -> None:
    """One metric of one variant: each language's, and the mean over the target languages."""
    for lang, value in values.items():
        name = f"text/{task.name}/{lang}/{variant}/{metric}"
        count = len(outcomes[lang].examples)
        results.add(name, value, None if isinstance(value, np.ndarray) else count)
    targets = [lang for lang in values if lang in task.targets]
    if not targets:
        return
    name = f"text/{task.name}/mean/{variant}/{metric}"
    mean = float(np.mean([np.mean(values[lang]) for lang in targets]))
    results.add(name, mean, count=sum(len(outcomes[lang].examples) for lang in targets))
    arrays = [value for lang in targets if isinstance(value := values[lang], np.ndarray)]
    if len(arrays) == len(targets):
        ids = [[one.id for one in outcomes[lang].examples] for lang in targets]
        results.ci95[name] = interval_over_ids(arrays, ids)


def _add_redrawn(
    results: Results, task: Task, metric: str, outcomes: Mapping[str, Outcome]
) -> None:
    """Intervals of a metric of whole sets; the languages' sets are drawn apart from one another."""
    redrawn = {lang: one.redrawn[metric] for lang, one in outcomes.items() if metric in one.redrawn}
    targets = [redrawn[lang] for lang in task.targets if lang in redrawn]
    drawn = {**redrawn, **({MEAN: np.mean(targets, axis=0)} if targets else {})}
    for part, values in drawn.items():
        low, high = np.percentile(values, (2.5, 97.5))
        results.ci95[f"text/{task.name}/{part}/{CLEAN}/{metric}"] = float(low), float(high)


def _add_chance(
    results: Results, task: Task, variant: str, outcomes: Mapping[str, Outcome]
) -> None:
    """What luck makes of the primary metric: on each language's examples, and in the targets' mean."""
    metric = PRIMARY[task.kind]
    luck = {}
    for lang, one in outcomes.items():
        candidates = len(task.candidates[lang]) if task.kind == "retrieval" else None
        luck[lang] = chance(task.kind, one.examples, candidates)
        results.chance[f"text/{task.name}/{lang}/{variant}/{metric}"] = luck[lang]
    targets = [luck[lang] for lang in task.targets if lang in luck]
    if targets:
        results.chance[f"text/{task.name}/mean/{variant}/{metric}"] = float(np.mean(targets))


def _metrics(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The metrics that every language has: a label that never occurs leaves some undefined."""
    names = [set(one.values) for one in outcomes.values()]
    return sorted(set.intersection(*names)) if names else []


def _plain(value: np.ndarray) -> Value:
    """An array stays; a number without dimensions becomes a float."""
    return value if value.ndim else float(value)
