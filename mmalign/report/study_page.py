"""The page of a study: its question, the verdict with its scope, one chart, then what these rest on.

    results.json of a study (plain tree) -> names in order, Results -> tables and charts
        -> templates/study.html.j2 -> one self-contained page

Everything is looked up, nothing is computed, and the same tree gives the same bytes.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from mmalign.core.commit import write_atomic
from mmalign.core.errors import UserError
from mmalign.core.languages import labelled
from mmalign.report.charts import draw_bars, draw_heat_map, highest_first
from mmalign.report.measurement import Measurement, measurements
from mmalign.report.rendering import render
from mmalign.report.tables import Place, pivot, under_perturbation
from mmalign.results.formatting import MISSING, points
from mmalign.results.metric_names import GENERALISED, MEAN, split_pair
from mmalign.results.results import Results
from mmalign.results.statistics import verdict

_CLEAN = "clean"
_SEED = ", pretraining seed "  # behind the name of a tower; its metrics are named without
_PARTS = (
    *("question", "suite", "environment", "comparisons", "answer", "metrics", "counts"),
    *("ci95", "chance", "seeds", "towers", "protocol", "model", "verdict", "scope", "items"),
    "diverged",
)


class StudyMetric(NamedTuple):
    """The parts of a study's metric; `str` is its name in `results.json`."""

    tower: str
    method: str
    task: str
    language: str
    variant: str
    metric: str

    def __str__(self) -> str:
        return "/".join(self)


Measured = dict[StudyMetric, Measurement]


@dataclass(frozen=True)
class Study:
    """The tree of a study and what its names say, in the order of the file."""

    tree: dict[str, Any]
    measured: Measured
    # What each tower has seen, the same for all of its pretraining seeds.
    supervision: dict[str, str]
    tasks: dict[str, str]  # the primary metric of each: the one with a chance level
    towers: list[str]  # the tower of interest, then those that the headline compares it with
    method: str  # that the headline is about

    def other(self, tower: str, words: str = "other supervision") -> str:
        """The words where a tower has not seen the same as the tower of interest, else nothing."""
        is_alike = self.supervision.get(tower) == self.supervision.get(self.towers[0])
        return "" if is_alike else words

    def covered(self, names: Iterable[StudyMetric]) -> str:
        """A sentence on the seeds behind these metrics."""
        # With the towers, where these differ in their seeds.
        towers: dict[str, dict[str, None]] = {}
        for name in names:
            towers.setdefault(self.tree["seeds"][str(name)], {})[name.tower] = None
        one = len(towers) == 1
        words = "; ".join(w if one else f"{w} ({', '.join(of)})" for w, of in towers.items())
        if self.tree["ci95"]:
            return f"95 % intervals cover {words}, and nothing else."
        return f"Measured on {words}: no intervals."


def write_study_page(tree: dict[str, Any], out: Path) -> None:
    """Write the page about the content of a study's `results.json` to the file `out`.

    Raises:
        UserError: the tree is not that of a study.
    """
    study = read_study(tree)
    page = render(
        "study.html.j2",
        study=study,
        tree=tree,
        chart=_bars(study),
        tasks=[_task(study, task) for task in study.tasks],
        comparisons=[_compared(one) for one in tree["comparisons"]],
        towers=[_described(study, name, facts) for name, facts in tree["towers"].items()],
        kind="study",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)


def read_study(tree: dict[str, Any]) -> Study:
    for part in _PARTS:
        if not tree.get(part) and (part not in tree or part == "metrics"):
            raise UserError(f"`{part}` is missing or empty; run `mmalign study` again")
    for name in tree["metrics"]:
        if name.count("/") != 5:
            raise UserError(
                f"`{name}` is not named <tower>/<method>/<task>/<language>/<variant>/<metric>"
            )
    names = [StudyMetric(*name.split("/")) for name in tree["metrics"]]
    supervision: dict[str, str] = {}
    for name, facts in tree["towers"].items():
        # The metrics name a tower without its pretraining seed.
        supervision.setdefault(name.partition(_SEED)[0], facts["supervision"])
    headline = [one for one in tree["comparisons"] if one["kind"] == "headline"]
    compared = [tower for one in headline for tower in (one["left"][0], one["right"][0])]
    tasks: dict[str, str] = {}
    for name in (*(one for one in names if str(one) in tree["chance"]), *names):
        if (name.language, name.variant) == (MEAN, _CLEAN):
            tasks.setdefault(name.task, name.metric)
    parts = {part: tree[part] for part in ("metrics", "counts", "ci95", "chance")}
    results = Results(tree["suite"], tree["model"], **parts)
    return Study(
        tree=tree,
        measured={
            name: replace(one, items=tree["items"].get(one.name))
            for name, one in measurements(
                results, lambda name: StudyMetric(*name.split("/"))
            ).items()
        },
        supervision=supervision,
        tasks=tasks,
        towers=list(dict.fromkeys(compared or (name.tower for name in names))),
        # Without comparisons nothing says which method the headline is about.
        method=headline[0]["left"][1] if headline else names[0].method,
    )


def _task(study: Study, task: str) -> dict[str, Any]:
    """The tables and charts of one task."""
    metric = study.tasks[task]
    names = {name: one for name, one in study.measured.items() if name.task == task}
    means = {name: one for name, one in names.items() if name.language == MEAN}
    cell = study.method, _CLEAN, metric
    clean = {n: one for n, one in names.items() if (n.method, n.variant, n.metric) == cell}
    rows = {f"{name.tower}, {name.method}": study.other(name.tower) for name in names}
    return {
        "name": task,
        "metric": metric.replace("_", " "),
        "scores": pivot(means, partial(_by_row, metric), "tower and method", notes=rows),
        "drops": _drops({n: one for n, one in means.items() if n.metric == f"{metric}_drop"}),
        "perturbed": pivot(names, partial(_by_variant, study, metric), "language"),
        "pairs": _pairs(study, task),
        "languages": pivot(
            clean, lambda n: (n.language, study.other(n.tower), n.tower), "language"
        ),
        "seeds": study.covered(name for name in means if name[-2:] == (_CLEAN, metric)),
    }


def _bars(study: Study) -> Markup:
    """The means of the headline's towers on clean texts, fine-tuned by its method, on all tasks."""
    rows: dict[str, dict[str, Measurement]] = defaultdict(dict)
    for name, one in study.measured.items():
        wanted = (study.method, MEAN, _CLEAN, study.tasks.get(name.task))
        if name.tower in study.towers and (name[1], *name[3:]) == wanted:
            tower = name.tower + study.other(name.tower, " (other supervision)")
            # Two tasks stand side by side; more have rows of their own.
            row, label = f"{name.task}: {tower}", "mean"
            if len(study.tasks) <= 2:
                row, label = tower, f"{name.task}, {name.metric}"
            rows[row][label] = one
    # A tower that lacks a task (its trainings diverged) has no bar.
    most = max(map(len, rows.values()))
    rows = {row: of_row for row, of_row in rows.items() if len(of_row) == most}
    chances = {one.chance for of_row in rows.values() for one in of_row.values() if one.chance}
    ordered = highest_first(rows)
    if len(study.tasks) > 2:  # towers are compared within a task
        place = {task: number for number, task in enumerate(study.tasks)}
        ordered = dict(sorted(ordered.items(), key=lambda row: place[row[0].partition(": ")[0]]))
    return draw_bars("headline", "Means by tower", ordered, sorted(chances))


def _by_row(metric: str, name: StudyMetric) -> Place | None:
    """The primary metric by perturbation, its worst draw, and the same for pairs in one language."""
    groups = {
        metric: metric.replace("_", " "),
        f"{metric}_clean": "clean, on the rows that changed",
        f"{metric}_worst": "worst draw of the noise",
        f"{metric}_same_language": "same language",
    }
    if name.metric not in groups:
        return None
    return f"{name.tower}, {name.method}", groups[name.metric], name.variant.replace("_", " ")


def _by_variant(study: Study, metric: str, name: StudyMetric) -> Place | None:
    """The tower of interest under each perturbation: score, clean score of the same rows, number of rows."""
    is_shown = (name.tower, name.method) == (study.towers[0], study.method)
    if not is_shown or name.variant in (_CLEAN, GENERALISED):
        return None
    heading = "perturbed" if name.metric == metric else under_perturbation(name.metric)
    return (name.language, name.variant.replace("_", " "), heading) if heading else None


def _drops(drops: Measured) -> Markup | None:
    """What each perturbation costs: a row per tower and method, a column per perturbation."""
    cells = {(f"{name.tower}, {name.method}", name.variant): one for name, one in drops.items()}
    rows = {row: row for row, _ in cells}
    columns = {variant: variant.replace("_", " ") for _, variant in cells}
    if not drops:
        return None
    title = "Points lost under each perturbation, by tower and method"
    return draw_heat_map(f"drops-{next(iter(drops)).task}", title, rows, columns, cells)


def _pairs(study: Study, task: str) -> Markup | None:
    """The map of two languages of the tower of interest, fine-tuned by the headline's method."""
    cell = study.towers[0], study.method, task, GENERALISED
    known = {name.language for name in study.measured if name.variant == _CLEAN} - {MEAN}
    cells = {
        split_pair(n.language, known): one
        for n, one in study.measured.items()
        if (n.tower, n.method, n.task, n.variant) == cell and n.language != MEAN
    }
    rows, columns = ({pair[0]: label(pair[0]) for pair in cells} for label in (labelled, str))
    title = "By language of the first text (rows) and of the second text (columns)"
    draw = partial(draw_heat_map, f"pairs-{task}", title, from_zero=False)
    return draw(rows, columns, cells) if cells else None


def _described(study: Study, tower: str, facts: dict[str, Any]) -> list[str]:
    """A row of the table of towers."""
    other = study.other(tower.partition(_SEED)[0], " (other supervision)")
    seconds = facts["training_seconds"]
    time = "not timed" if seconds is None else f"{seconds / 60:.1f}"
    return [tower, facts["supervision"] + other, time, facts["sha256"]]


def _compared(one: dict[str, Any]) -> list[str | int]:
    """A row of the table of comparisons."""
    name = f"{one['kind']}, {one['task']}, {one['metric'].replace('/', ', ').replace('_', ' ')}"
    interval = " to ".join(map(points, one["ci95"])) if one["ci95"] else MISSING
    p, p_holm = (MISSING if one[n] is None else f"{one[n]:.2g}" for n in ("p", "p_holm"))
    # Of points lost under a perturbation fewer are better.
    sign = -1 if one["metric"].endswith("_drop") else 1
    word = verdict(sign * one["difference"], one["p_holm"])
    sides = [", ".join(one[side]) for side in ("left", "right")]
    items = MISSING if one["items"] is None else one["items"]
    rests_on = [one["pairs"], one["seeds"], items, one["rows"]]
    return [name, *sides, points(one["difference"]), interval, p, p_holm, *rests_on, word]
