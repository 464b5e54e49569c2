"""From the cells of a study to its means, its comparisons and its verdicts.

    cells -> values by (tower, pretraining seed, task, method) -> means over seeds   -+-> StudyResults
                                                               -> paired differences -+

An interval covers the seeds that it was computed over and says which. Only the headline is repeated over
pretraining seeds.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from mmalign.results.formatting import points
from mmalign.results.metric_names import GENERALISED
from mmalign.results.results import Results, environment, mean_over_seeds
from mmalign.results.statistics import holm, seed_interval, verdict
from mmalign.study.cells import Cell
from mmalign.study.config import StudyConfig
from mmalign.study.towers import TrainedTower

# Fine-tuning seeds on one pretrained tower say nothing about another pretraining.
_ONE_PRETRAINING = "which leaves open what another pretraining seed would give"


@dataclass(frozen=True)
class Comparison:
    """A paired difference: the same seeds on both sides, each a tower and a method.

    Attributes:
        kind: `headline`, `method` or `tower`.
        difference: mean over the seeds of left minus right, with Student's t over the pairs.
        p_holm: `p` after Holm's correction (1979) over the comparisons of its family.
        seeds: what the pairs are, in words.
    """

    kind: str
    task: str
    metric: str
    left: tuple[str, str]
    right: tuple[str, str]
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    pairs: int
    seeds: str


@dataclass
class StudyResults(Results):
    """Means over seeds, named `<tower>/<method>/<task>/<language or mean>/<variant>/<metric>`.

    Attributes:
        seeds: metric -> which seeds its interval covers, in words.
        answer: the verdicts, one line each, made from the comparisons.
    """

    question: str = ""
    towers: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)


Side = tuple[str, str]  # a tower and a method
# (tower, pretraining seed, task, method) -> fine-tuning seed -> results
Values = dict[tuple[str, int | None, str, str], dict[int, Results]]


def analyse(
    study: StudyConfig, towers: Sequence[TrainedTower], done: Sequence[tuple[Cell, Results]]
) -> StudyResults:
    """Means, comparisons and verdicts of all cells."""
    results = StudyResults(
        suite=study.name,
        model={str(tower): tower.sha256 for tower in towers},
        environment=environment(),
        question=study.question,
        towers={
            str(tower): {
                "supervision": study.towers[tower.name].supervision,
                "sha256": tower.sha256,
                "training_seconds": tower.seconds,
            }
            for tower in towers
        },
    )
    values: Values = {}
    for cell, of_cell in done:
        place = (cell.tower.name, cell.tower.seed, cell.task, cell.method)
        values.setdefault(place, {})[cell.seed] = of_cell
    _add_means(study, values, results)
    _add_comparisons(study, values, results)
    results.answer = answer(study, results)
    return results


def _add_means(study: StudyConfig, values: Values, results: StudyResults) -> None:
    """Mean and interval of every metric over the fine-tuning seeds of the first pretraining seed."""
    for (tower, pretraining, _, method), runs in values.items():
        if pretraining not in (None, study.pretraining_seeds[0]):
            continue
        mean = mean_over_seeds([*runs.values()])
        keys = {name: f"{tower}/{method}/{name.removeprefix('text/')}" for name in mean.metrics}
        results.seeds |= dict.fromkeys(keys.values(), _seed_words(len(runs), pretraining))
        # The interval of a single run is that of its queries, not of seeds.
        for part in ("metrics", "counts", "chance", *(["ci95"] if len(runs) > 1 else [])):
            named = {keys[name]: value for name, value in getattr(mean, part).items()}
            getattr(results, part).update(named)
        if (tower, method) == (study.headline.tower, study.headline.method):
            results.protocol |= {
                name: f"In the cell of {tower}, {method}, seed {study.seeds[0]}: {words}"
                for name, words in next(iter(runs.values())).protocol.items()
            }
    # What each method changes in the fine-tuning of a task.
    for method, changes in study.methods.items():
        words = json.dumps(changes, ensure_ascii=False) if changes else "nothing"
        results.protocol[f"method {method}"] = f"Changes in the task's file: {words}."


def _add_comparisons(study: StudyConfig, values: Values, results: StudyResults) -> None:
    for kind, method, sides in _families(study):
        for task, metric in _measures(values, method):
            compared = (_compare(study, values, kind, task, metric, *two) for two in sides)
            found = [one for one in compared if one]
            # Within a family: a metric of a task, on all pairs of sides that answer one question.
            adjusted = holm([one.p for one in found])
            both = zip(found, adjusted, strict=True)
            results.comparisons += [replace(one, p_holm=p) for one, p in both]


def answer(study: StudyConfig, results: StudyResults) -> list[str]:
    """One verdict for each comparison of the headline and of the methods on the tower of interest."""
    lines, perturbed = [], defaultdict[tuple[str, str], Counter[str]](Counter)
    for one in results.comparisons:
        variant, _, metric = one.metric.partition("/")
        # Primary metrics have a chance level.
        primary = f"{study.headline.tower}/{one.left[1]}/{one.task}/mean/clean/{metric}"
        of_interest = one.kind != "tower" and one.left[0] == study.headline.tower
        if not of_interest or primary not in results.chance:
            continue
        sides = f"{', '.join(one.left)} against {', '.join(one.right)}"
        word = verdict(one.difference, one.p_holm)
        if variant in ("clean", GENERALISED):
            low, high = one.ci95
            lines.append(
                f"{word}: {one.task}, {variant}, {metric}: {sides}: {points(one.difference)} points, "
                f"95 % interval {points(low)} to {points(high)}, p {one.p_holm:.2g} (Holm), {one.seeds}"
            )
        else:  # there are many: one line for all, with their number for each verdict
            perturbed[one.task, sides][word] += 1
    for (task, sides), counts in perturbed.items():
        words = ", ".join(f"{word} {counts[word]}" for word in ("shown", "worse", "not shown"))
        lines.append(f"perturbed: {task}: {sides}: {words} (of {counts.total()})")
    return lines


def _families(study: StudyConfig) -> Iterator[tuple[str, str, list[tuple[Side, Side]]]]:
    """(kind, method whose metrics are compared, left and right sides) of what Holm corrects together."""
    head = study.headline
    own = head.tower, head.method
    yield "headline", head.method, [(own, (other, head.method)) for other in head.against]
    for tower in study.towers:
        others = {m: study.compare_with.get(m, head.method) for m in study.methods}
        sides = [((tower, m), (tower, other)) for m, other in others.items() if m != other]
        yield "method", head.method, sides
    for method in study.methods:
        against = [tower for tower in study.towers if tower != head.tower]
        yield "tower", method, [((head.tower, method), (other, method)) for other in against]


def _measures(values: Values, method: str) -> list[tuple[str, str]]:
    """(task, metric) of the means over languages that a method has, without the task's name in front."""
    found = [
        (task, name.removeprefix(prefix))
        for (_, _, task, used), runs in values.items()
        for name in next(iter(runs.values())).metrics
        if used == method and name.startswith(prefix := f"text/{task}/mean/")
    ]
    return list(dict.fromkeys(found))


def _drawn(
    study: StudyConfig, values: Values, side: Side, task: str, metric: str, over_pretraining: bool
) -> dict[int, float]:
    """Seed -> value: of fine-tuning on the first pretraining, or of pretraining and the mean of its cells."""
    tower, method = side
    name = f"text/{task}/mean/{metric}"
    found: dict[int, dict[int, float]] = {}
    for seed in study.pretraining_seeds:
        place = None if study.towers[tower].path else seed
        runs = values.get((tower, place, task, method), {})
        found[seed] = {s: run.metrics[name] for s, run in runs.items() if name in run.metrics}
    if over_pretraining:
        return {seed: float(np.mean(list(runs.values()))) for seed, runs in found.items() if runs}
    return found[study.pretraining_seeds[0]]


def _compare(
    study: StudyConfig, values: Values, kind: str, task: str, metric: str, left: Side, right: Side
) -> Comparison | None:
    """The comparison, None where fewer than two seeds are on both sides."""
    many = kind == "headline" and len(study.pretraining_seeds) > 1
    ours, theirs = (_drawn(study, values, one, task, metric, many) for one in (left, right))
    # A metric may be undefined for a seed, such as a correlation with constant scores.
    shared = [seed for seed in ours if np.isfinite(ours[seed] - theirs.get(seed, np.nan))]
    if len(shared) < 2:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in shared])
    n, first = len(ours), study.pretraining_seeds[0]
    if many:
        words = f"{n} pretraining seeds, each the mean of {len(study.seeds)} fine-tuning seeds"
    elif kind == "headline":
        words = f"{n} fine-tuning seeds of one pretraining, {_ONE_PRETRAINING}"
    else:
        is_given = any(study.towers[tower].path for tower, _ in (left, right))
        words = _seed_words(n, None if is_given else first)
    interval, p = seed_interval(differences.tolist()), _paired_p(differences)
    mean = float(differences.mean())
    return Comparison(kind, task, metric, left, right, mean, interval, p, p, len(shared), words)


def _paired_p(differences: np.ndarray) -> float:
    """Two-sided p of the paired t-test: a one-sample test of the differences."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    if error == 0:
        # Equal in every seed: no difference at all, where a t-test would divide zero by zero.
        return 0.0 if differences[0] else 1.0
    return float(2 * stats.t.sf(abs(differences.mean()) / error, len(differences) - 1))


def _seed_words(count: int, pretraining: int | None) -> str:
    on = "" if pretraining is None else f" on the tower of pretraining seed {pretraining}"
    return f"{count} fine-tuning seed{'s' if count > 1 else ''}{on}"
