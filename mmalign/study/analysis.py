"""From the cells of a study to its table, its comparisons and its answer in words.

    cells -> values by (tower, pretraining seed, task, method) -> means over seeds   -+-> StudyResults
                                                               -> paired differences -+

An interval covers the seeds that it was computed over and says which: fine-tuning seeds on one
pretrained tower tell nothing about another pretraining. Only the headline is repeated over those.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from mmalign.results.results import Results
from mmalign.results.statistics import holm, seed_interval
from mmalign.study.cells import Cell
from mmalign.study.config import StudyConfig

_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A paired difference: the same seeds on both sides.

    Attributes:
        kind: `headline`, `method` or `tower`.
        difference: mean over the seeds of left minus right.
        ci95: Student's t over the pairs.
        p: of the paired t-test; `p_holm` after Holm's correction (1979) over the comparisons of its family.
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

    @property
    def is_shown(self) -> bool:
        """Whether these seeds show a difference at 5 % after the correction."""
        return self.p_holm < _LEVEL


@dataclass
class StudyResults(Results):
    """Results whose metrics are means over seeds.

    Their names are `<tower>/<method>/<task>/<language or mean>/<variant>/<metric>`.

    Attributes:
        seeds: metric -> which seeds its interval covers, in words.
        comparisons: paired differences.
        answer: the answer to the question, one sentence a task, made from the comparisons.
        question, towers: for the reader.
    """

    question: str = ""
    towers: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)


Values = dict[tuple[str, int | None, str, str], dict[int, Results]]
"""(tower, pretraining seed, task, method) -> fine-tuning seed -> results."""


def collect_values(cells: Iterable[tuple[Cell, Results]]) -> Values:
    """The results of the cells by where they stand in the grid."""
    values: Values = {}
    for cell, results in cells:
        place = (cell.tower.name, cell.tower.seed, cell.task, cell.method)
        values.setdefault(place, {})[cell.seed] = results
    return values


def add_means(study: StudyConfig, values: Values, results: StudyResults) -> None:
    """Mean and interval of every metric over the fine-tuning seeds of the first pretraining seed."""
    for (tower, pretraining, _, method), runs in values.items():
        if pretraining not in (None, study.pretraining_seeds[0]):
            continue
        first = next(iter(runs.values()))
        for name in first.metrics:
            key = f"{tower}/{method}/{name.removeprefix('text/')}"
            drawn = [run.metrics[name] for run in runs.values()]
            results.metrics[key] = float(np.mean(drawn))
            results.counts[key] = first.counts[name]
            if len(drawn) > 1:
                results.ci95[key] = seed_interval(drawn)
            results.seeds[key] = _seed_words(len(drawn), "fine-tuning", pretraining)
            if name in first.chance:
                results.chance[key] = first.chance[name]
        if (tower, method) == (study.headline.tower, study.headline.method):
            results.protocol |= {
                name: f"In the cell of {tower}, {method}, seed {study.seeds[0]}: {words}"
                for name, words in first.protocol.items()
            }


def add_methods(study: StudyConfig, results: StudyResults) -> None:
    """What each method changes in the fine-tuning of a task, as part of the protocol."""
    for method, changes in study.methods.items():
        words = json.dumps(changes, ensure_ascii=False) if changes else "nothing"
        results.protocol[f"method {method}"] = f"Changes in the task's file: {words}."


def add_comparisons(study: StudyConfig, values: Values, results: StudyResults) -> None:
    """Headline over pretraining seeds, methods and towers over fine-tuning seeds; Holm within each family."""
    families = [
        *_headline_families(study, values),
        *_method_families(study, values),
        *_tower_families(study, values),
    ]
    for family in families:
        results.comparisons += _with_holm(family)


def _headline_families(study: StudyConfig, values: Values) -> list[list[Comparison]]:
    """For each task and metric: the tower of interest against the others, a pair a pretraining seed.

    With one pretraining seed a pair is a fine-tuning seed, and the words say what that leaves open.
    """
    head = study.headline
    families = []
    many = len(study.pretraining_seeds) > 1
    over = _over_pretraining if many else _over_first_pretraining
    for task, metric in _measures(values, head.method):
        family = []
        for other in head.against:
            left, right = (
                over(study, values, tower, task, head.method, metric)
                for tower in (head.tower, other)
            )
            words = (
                f"{len(left)} pretraining seeds, each the mean of {len(study.seeds)} fine-tuning seeds"
                if many
                else f"{len(left)} fine-tuning seeds of one pretraining, which leaves open what another "
                "pretraining seed would give"
            )
            names = (head.tower, head.method), (other, head.method)
            family += _compare("headline", task, metric, *names, left, right, words)
        families.append(family)
    return families


def _method_families(study: StudyConfig, values: Values) -> list[list[Comparison]]:
    """For each tower, task and metric: every method against the one that it is to be compared with."""
    first = study.pretraining_seeds[0]
    families = []
    for tower in study.towers:
        seed = None if study.towers[tower].path else first
        for task, metric in _measures(values, study.headline.method):
            family = []
            for method in study.methods:
                other = study.compare_with.get(method, study.headline.method)
                left = _over_fine_tuning(values, tower, seed, task, method, metric)
                right = _over_fine_tuning(values, tower, seed, task, other, metric)
                if method != other and left and right:
                    words = _seed_words(len(left), "fine-tuning", seed)
                    names = (tower, method), (tower, other)
                    family += _compare("method", task, metric, *names, left, right, words)
            families.append(family)
    return families


def _tower_families(study: StudyConfig, values: Values) -> list[list[Comparison]]:
    """For each method, task and metric: the tower of interest against every other one."""
    first = study.pretraining_seeds[0]
    head = study.headline
    families = []
    for method in study.methods:
        for task, metric in _measures(values, method):
            family = []
            for other in (name for name in study.towers if name != head.tower):
                left, right = (
                    _over_fine_tuning(
                        values,
                        tower,
                        None if study.towers[tower].path else first,
                        task,
                        method,
                        metric,
                    )
                    for tower in (head.tower, other)
                )
                is_ours = not (study.towers[other].path or study.towers[head.tower].path)
                words = _seed_words(len(left), "fine-tuning", first if is_ours else None)
                names = (head.tower, method), (other, method)
                family += _compare("tower", task, metric, *names, left, right, words)
            families.append(family)
    return families


def _measures(values: Values, method: str) -> list[tuple[str, str]]:
    """(task, metric) of the means over the languages that a method has, without the task's name in front."""
    found: dict[tuple[str, str], None] = {}
    for (_, _, task, used), runs in values.items():
        if used == method:
            for name in next(iter(runs.values())).metrics:
                prefix = f"text/{task}/mean/"
                if name.startswith(prefix):
                    found[task, name.removeprefix(prefix)] = None
    return list(found)


def _over_fine_tuning(
    values: Values, tower: str, seed: int | None, task: str, method: str, metric: str
) -> dict[int, float]:
    """Fine-tuning seed -> value, on one pretrained tower."""
    runs = values.get((tower, seed, task, method), {})
    name = f"text/{task}/mean/{metric}"
    return {s: run.metrics[name] for s, run in runs.items() if name in run.metrics}


def _over_pretraining(
    study: StudyConfig, values: Values, tower: str, task: str, method: str, metric: str
) -> dict[int, float]:
    """Pretraining seed -> mean over its fine-tuning seeds."""
    found = {}
    for seed in study.pretraining_seeds:
        place = None if study.towers[tower].path else seed
        runs = _over_fine_tuning(values, tower, place, task, method, metric)
        if runs:
            found[seed] = float(np.mean(list(runs.values())))
    return found


def _over_first_pretraining(
    study: StudyConfig, values: Values, tower: str, task: str, method: str, metric: str
) -> dict[int, float]:
    """Fine-tuning seed -> value, on the tower of the first pretraining seed."""
    place = None if study.towers[tower].path else study.pretraining_seeds[0]
    return _over_fine_tuning(values, tower, place, task, method, metric)


def _compare(
    kind: str,
    task: str,
    metric: str,
    left_name: tuple[str, str],
    right_name: tuple[str, str],
    left: Mapping[int, float],
    right: Mapping[int, float],
    seeds: str,
) -> list[Comparison]:
    """The comparison, or none where fewer than two seeds are on both sides."""
    shared = [seed for seed in left if seed in right]
    if len(shared) < 2:
        return []
    differences = np.array([left[seed] - right[seed] for seed in shared])
    # Equal in every seed: no difference at all, where a t-test would divide zero by zero.
    p = 1.0 if np.ptp(differences) == 0 and differences[0] == 0 else _paired_p(differences)
    return [
        Comparison(
            kind, task, metric, left_name, right_name, float(differences.mean()),
            seed_interval(differences.tolist()), p, p, len(shared), seeds,
        )
    ]  # fmt: skip


def _paired_p(differences: np.ndarray) -> float:
    """Two-sided p of the paired t-test (a one-sample test of the differences)."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    if error == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(differences.mean()) / error, len(differences) - 1))


def _with_holm(family: Sequence[Comparison]) -> list[Comparison]:
    """The family with `p_holm`."""
    adjusted = holm([one.p for one in family])
    return [replace(one, p_holm=p) for one, p in zip(family, adjusted, strict=True)]


def _seed_words(count: int, of: str, pretraining: int | None) -> str:
    on = "" if pretraining is None else f" on the tower of pretraining seed {pretraining}"
    return f"{count} {of} seed{'s' if count > 1 else ''}{on}"
