"""From the cells of a study to its means, its comparisons and its verdict.

    cells -> values by (tower, pretraining seed, task, method) -> means over seeds   -+-> StudyResults
                                                               -> paired differences -+

An interval says which seeds it covers, and whether it covers the tested items. Only the headline is repeated
over pretraining seeds.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmalign.results.aggregates import count_items, rows_behind
from mmalign.results.metric_names import OF_CORRECT_ROWS, MetricName
from mmalign.results.protocol import HOW
from mmalign.results.results import Results, environment
from mmalign.results.seeds import mean_over_seeds
from mmalign.results.statistics import holm
from mmalign.study.cells import Cell
from mmalign.study.comparisons import (
    AND_ITEMS,
    Comparison,
    Side,
    Values,
    compare_sides,
    seed_words,
)
from mmalign.study.config import StudyConfig
from mmalign.study.towers import TrainedTower
from mmalign.study.verdict import answer, conclude, scope


@dataclass
class StudyResults(Results):
    """Means over seeds, named `<tower>/<method>/<task>/<language or mean>/<variant>/<metric>`.

    Attributes:
        items: metric -> how many different items (ids) it rests on.
        seeds: metric -> which seeds its interval covers, in words.
        verdict: one sentence that answers the question, made from the headline's comparisons.
        scope: what the verdict rests on, one line each.
        answer: the verdicts of the comparisons, one line each.
        diverged: cell -> why it has no number.
    """

    question: str = ""
    towers: dict[str, Any] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    verdict: str = ""
    scope: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    diverged: dict[str, str] = field(default_factory=dict)


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
    given = _given_models(cell.tower for cell, _ in done)
    for cell, of_cell in done:
        name = cell.tower.name
        place = (name, None if name in given else cell.tower.seed, cell.task, cell.method)
        values.setdefault(place, {})[cell.seed] = of_cell
    _add_means(study, values, results)
    _add_comparisons(study, values, results)
    results.verdict = conclude(results.comparisons)
    results.scope = scope(study, results.comparisons, results.protocol)
    results.answer = answer(results.comparisons)
    return results


def _given_models(towers: Iterable[TrainedTower]) -> set[str]:
    """Towers without pretraining seeds: those of a path, and untrained ones that all seeds give alike."""
    of_name = defaultdict[str, set[TrainedTower]](set)
    for tower in towers:
        of_name[tower.name].add(tower)
    return {
        name
        for name, seeds in of_name.items()
        if all(one.seed is None for one in seeds)
        or (
            len(seeds) > 1
            and all(one.untrained for one in seeds)
            and len({one.identity for one in seeds}) == 1
        )
    }


def _add_means(study: StudyConfig, values: Values, results: StudyResults) -> None:
    """Mean and interval of every metric over the fine-tuning seeds of the first pretraining seed."""
    for (tower, pretraining, _, method), runs in values.items():
        if pretraining not in (None, study.pretraining_seeds[0]):
            continue
        mean = mean_over_seeds([*runs.values()])
        keys = {name: f"{tower}/{method}/{name.removeprefix('text/')}" for name in mean.metrics}
        seeds = seed_words(len(runs), pretraining)
        for name, key in keys.items():
            has_rows = len(runs) > 1 and rows_behind(mean, name) is not None
            results.seeds[key] = seeds + AND_ITEMS * has_rows
            if (items := count_items(mean, name)) is not None:
                results.items[key] = items
        # The interval of a single run is that of its queries, not of seeds.
        for part in ("metrics", "counts", "chance", *(["ci95"] if len(runs) > 1 else [])):
            named = {keys[name]: value for name, value in getattr(mean, part).items()}
            getattr(results, part).update(named)
        results.data |= mean.data
        if (tower, method) == (study.headline.tower, study.headline.method):
            cell = f"{tower}, {method}, seed {next(iter(runs))}"
            of_cell = next(iter(runs.values())).protocol
            results.protocol |= {name: {**of_one, "cell": cell} for name, of_one in of_cell.items()}
    # What each method changes in the fine-tuning of a task.
    for method, changes in study.methods.items():
        words = json.dumps(changes, ensure_ascii=False) if changes else "nothing"
        results.protocol[f"method {method}"] = {HOW: f"Changes in the task's file: {words}."}


def _add_comparisons(study: StudyConfig, values: Values, results: StudyResults) -> None:
    found = [
        one
        for kind, method, sides in _families(study)
        for task, metric in _measures(values, method)
        for two in sides
        if (one := compare_sides(study, values, kind, task, metric, *two)) is not None
    ]
    for place, one in enumerate(found):
        # Primary metrics have a chance level.
        metric = one.metric.partition("/")[2]
        has_chance = f"{one.left[0]}/{one.left[1]}/{one.task}/mean/clean/{metric}" in results.chance
        is_primary = has_chance and one.kind != "tower" and one.left[0] == study.headline.tower
        found[place] = replace(one, primary=is_primary)
    # A verdict that rests on many tests must hold for all of them together, over all tasks and perturbations.
    families = defaultdict[tuple[str, bool], list[int]](list)
    for place, one in enumerate(found):
        if one.p is not None:
            families[one.kind, one.primary].append(place)
    for places in families.values():
        adjusted = holm([found[place].p or 0.0 for place in places])
        for place, p in zip(places, adjusted, strict=True):
            found[place] = replace(found[place], p_holm=p)
    results.comparisons = found


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
    """(task, metric) of the means over languages that a method has, without the task's name in front.

    Metrics over each model's own correct rows are left out: two sides have other rows.
    """
    found = [
        (task, name.removeprefix(prefix))
        for (_, _, task, used), runs in values.items()
        for name in next(iter(runs.values())).metrics
        if used == method
        and name.startswith(prefix := f"text/{task}/mean/")
        and MetricName.parse(name).metric not in OF_CORRECT_ROWS
    ]
    return list(dict.fromkeys(found))
