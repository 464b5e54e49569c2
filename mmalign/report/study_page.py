"""The page of a study: its question, its answer in words, and the tables that the answer rests on.

    results.json of a study (plain tree) -> Study (names in order) -> tables and charts
        -> templates/study.html.j2 -> one self-contained page

Everything is looked up, nothing is computed anew. An interval stands with the words that say which seeds it
covers, a tower with the words that say what it has seen, and bold type means a difference that a test shows.
The same tree gives the same bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mmalign.core.commit import write_atomic
from mmalign.core.errors import UserError
from mmalign.report.rendering import render
from mmalign.report.study_charts import (
    Panel,
    Point,
    Row,
    around,
    draw_drops,
    draw_headline,
    draw_pairs,
    percent,
    signed,
    span,
)
from mmalign.results.metric_names import GENERALISED, MEAN, split_pair

_CLEAN = "clean"
_LEVEL = 0.05
_MAPPINGS = ("metrics", "counts", "ci95", "chance", "seeds", "towers", "protocol", "model")
_PARTS = ("question", "suite", "environment", "comparisons", "answer", *_MAPPINGS)


@dataclass(frozen=True)
class Study:
    """The tree of a study and what its names say, in the order of the file.

    Attributes:
        tasks: task -> its primary metric, which is the one that has a chance level.
        tower: the tower of interest; `against` are those that the headline compares it with.
        method: the method that the headline is about and the others are compared with.
    """

    tree: dict[str, Any]
    towers: list[str]
    methods: list[str]
    tasks: dict[str, str]
    tower: str
    against: list[str]
    method: str

    def names(self, task: str) -> list[list[str]]:
        """The metrics of a task as [tower, method, task, language, variant, metric]."""
        split = (name.split("/") for name in self.tree["metrics"])
        return [parts for parts in split if parts[2] == task]

    def point(self, *parts: str) -> Point | None:
        """A metric by its six parts, if it was measured."""
        name = "/".join(parts)
        if name not in self.tree["metrics"]:
            return None
        interval = self.tree["ci95"].get(name)
        return Point(self.tree["metrics"][name], tuple(interval) if interval else None)

    def chance(self, *parts: str) -> float | None:
        """The chance level of a metric, if it has one."""
        value: float | None = self.tree["chance"].get("/".join(parts))
        return value

    def supervision(self, tower: str) -> str:
        """What a tower has seen, in words; the same for all of its pretraining seeds."""
        for name, facts in self.tree["towers"].items():
            if _tower_name(name) == tower:
                return str(facts["supervision"])
        return "not known"

    def is_alike(self, tower: str) -> bool:
        """Whether a tower has seen the same as the tower of interest."""
        return self.supervision(tower) == self.supervision(self.tower)


@dataclass(frozen=True)
class Cell:
    """A mean in a table; `worst` is its worst case, None where there was one draw only."""

    point: Point
    worst: float | None
    is_best: bool


def write_study_page(tree: dict[str, Any], out: Path) -> None:
    """Write the page about a study to the file `out`.

    Args:
        tree: the content of a study's `results.json`.

    Raises:
        UserError: the tree is not that of a study.
    """
    study = read_study(tree)
    ways = {"percent": percent, "signed": signed, "span": span, "around": around, "prose": prose}
    page = render(
        "study.html.j2",
        filters=ways,
        study=study,
        tree=tree,
        headline=_headline(study),
        scores=[_scores(study, task) for task in study.tasks],
        drops=[one for task in study.tasks if (one := _drops(study, task))],
        generalised=[one for task in study.tasks if (one := _generalised(study, task))],
        languages=[_languages(study, task) for task in study.tasks],
        comparisons=_comparisons(study),
        seeds=seed_words(study, tree["seeds"]),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)


def read_study(tree: dict[str, Any]) -> Study:
    """The names of a study's tree.

    Raises:
        UserError: a part is missing, or a metric's name is not that of a study.
    """
    _check(tree)
    split = [name.split("/") for name in tree["metrics"]]
    compared = tree["comparisons"]
    of_headline = [one for one in compared if one["kind"] == "headline"]
    of_methods = [one for one in compared if one["kind"] == "method"]
    known = dict.fromkeys([_tower_name(name) for name in tree["towers"]])
    used = {parts[0] for parts in split}
    towers = [name for name in known if name in used] + sorted(used - set(known))
    first = next((one["left"][0] for one in compared if one["kind"] != "method"), towers[0])
    methods = [one["left"][1] for one in compared] + [parts[1] for parts in split]
    plain = [one["left"][1] for one in of_headline] + [one["right"][1] for one in of_methods]
    method = next(iter((*plain, *(m for m in methods if m == "plain"), *methods)))
    against = [one["right"][0] for one in of_headline] or [t for t in towers if t != first]
    return Study(
        tree=tree,
        towers=towers,
        methods=list(dict.fromkeys([method, *methods])),
        tasks=_primary_metrics(tree, split),
        tower=first,
        against=list(dict.fromkeys(against)),
        method=method,
    )


def _check(tree: dict[str, Any]) -> None:
    for part in _PARTS:
        if part not in tree or (part in _MAPPINGS and not isinstance(tree[part], dict)):
            raise UserError(f"not a study's results: `{part}` is missing or no mapping; "
                            "`mmalign study` writes results that have it")  # fmt: skip
    if not tree["metrics"]:
        raise UserError("not a study's results: `metrics` is empty; `mmalign study` fills it")
    for name in tree["metrics"]:
        if name.count("/") != 5:
            raise UserError(f"not a study's results: the metric `{name}` is not named "
                            "<tower>/<method>/<task>/<language>/<variant>/<metric>")  # fmt: skip


def _tower_name(name: str) -> str:
    """The tower's name without its pretraining seed, by which the metrics know it."""
    return name.partition(", pretraining seed ")[0]


def _primary_metrics(tree: dict[str, Any], split: Sequence[Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    with_chance = [name.split("/") for name in tree["chance"] if name in tree["metrics"]]
    for _, _, task, lang, variant, metric in (*with_chance, *split):
        if (lang, variant) == (MEAN, _CLEAN):
            found.setdefault(task, metric)
    order = dict.fromkeys(parts[2] for parts in split)
    return {task: found[task] for task in order if task in found}


def _headline(study: Study) -> dict[str, Any]:
    """The chart of the headline's towers, clean, and the seeds behind its means and its differences."""
    towers = [study.tower, *study.against]
    panels = []
    for task, metric in study.tasks.items():
        rows = [_headline_row(study, task, metric, tower) for tower in towers]
        chance = study.chance(study.tower, study.method, task, MEAN, _CLEAN, metric)
        title = f"{task}, {metric.replace('_', ' ')}"
        panels.append(Panel(title, [row for row in rows if row], chance))
    names = [
        (tower, study.method, task, MEAN, _CLEAN, metric)
        for task, metric in study.tasks.items()
        for tower in towers
    ]
    compared = [one["seeds"] for one in study.tree["comparisons"] if one["kind"] == "headline"]
    return {
        "chart": draw_headline("headline", study.tower, [panel for panel in panels if panel.rows]),
        "seeds": covered(study, names),
        "differences": list(dict.fromkeys(compared)),
    }


def _headline_row(study: Study, task: str, metric: str, tower: str) -> Row | None:
    point = study.point(tower, study.method, task, MEAN, _CLEAN, metric)
    if point is None:
        return None
    row = Row(tower, study.supervision(tower), study.is_alike(tower), point)
    wanted = "headline", task, f"{_CLEAN}/{metric}", tower
    for one in study.tree["comparisons"]:
        if (one["kind"], one["task"], one["metric"], one["right"][0]) == wanted:
            difference = Point(one["difference"], tuple(one["ci95"]))
            return replace(row, difference=difference, is_shown=one["p_holm"] < _LEVEL)
    return row


def _scores(study: Study, task: str) -> dict[str, Any]:
    """The big table of a task: a group of rows a tower, a row a method, a column a variant."""
    metric, names = study.tasks[task], study.names(task)
    of_mean = [n for n in names if n[3] == MEAN and n[5] == metric and n[4] != GENERALISED]
    variants = sorted(dict.fromkeys(n[4] for n in of_mean), key=lambda variant: variant != _CLEAN)
    groups = []
    for tower in study.towers:
        used = [m for m in study.methods if study.point(tower, m, task, MEAN, _CLEAN, metric)]
        best = {v: _shown_best(study, task, f"{v}/{metric}", tower, used) for v in variants}
        parts = [(variant, metric, best[variant]) for variant in variants]
        groups.append((tower, {m: [_cell(study, tower, m, task, *p) for p in parts] for m in used}))
    filled = [cell for _, rows in groups for row in rows.values() for cell in row if cell]
    chances = {n[4]: value for n in of_mean if (value := study.chance(*n)) is not None}
    spoken = {v: {n[3] for n in names if n[4] == v} - {MEAN} for v in variants}
    return {
        "task": task,
        "metric": metric,
        "columns": [(*label(v), len(spoken[v]), chances.get(v)) for v in variants],
        "groups": [(tower, cells) for tower, cells in groups if cells],
        "has_worst": any(cell.worst is not None for cell in filled),
        "has_best": any(cell.is_best for cell in filled),
        "seeds": covered(study, of_mean),
        "count": max(study.tree["counts"]["/".join(n)] for n in of_mean if n[4] == _CLEAN),
    }


def _cell(
    study: Study, tower: str, method: str, task: str, variant: str, metric: str, best: str | None
) -> Cell | None:
    point = study.point(tower, method, task, MEAN, variant, metric)
    if point is None:
        return None
    worst = study.point(tower, method, task, MEAN, variant, f"{metric}_worst")
    several = worst is not None and worst.value < point.value - 1e-9
    return Cell(point, worst.value if worst and several else None, method == best)


def _shown_best(
    study: Study, task: str, metric: str, tower: str, methods: Sequence[str]
) -> str | None:
    """The best method of a tower, if each of its comparisons with another method shows it as the better."""
    points = {m: study.point(tower, m, task, MEAN, *metric.split("/")) for m in methods}
    values = {method: point.value for method, point in points.items() if point}
    best = max(values, key=lambda method: values[method], default=None)
    verdicts = []
    for one in study.tree["comparisons"]:
        if (one["kind"], one["task"], one["metric"]) == ("method", task, metric):
            for side, sign in (("left", 1), ("right", -1)):
                if list(one[side]) == [tower, best]:
                    verdicts.append(one["p_holm"] < _LEVEL and sign * one["difference"] > 0)
    return best if verdicts and all(verdicts) else None


def _drops(study: Study, task: str) -> dict[str, Any] | None:
    """The chart of what the perturbations cost; None for a task that was tested clean only."""
    metric = f"{study.tasks[task]}_drop"
    names = [n for n in study.names(task) if n[3] == MEAN and n[5] == metric]
    if not names:
        return None
    drops: dict[str, dict[str, dict[str, Point]]] = {}
    for tower in study.towers:
        for method in study.methods:
            of = {n[4]: study.point(*n) for n in names if n[:2] == [tower, method]}
            if of:
                drops.setdefault(tower, {})[method] = {v: p for v, p in of.items() if p}
    headings = {n[4]: [part for part in label(n[4]) if part] for n in names}
    alike = [tower for tower in drops if study.is_alike(tower)]
    seen = {tower: study.supervision(tower) for tower in drops}
    title = f"{task}: what each perturbation costs, by tower and method"
    name = f"drops-{list(study.tasks).index(task)}"
    return {
        "task": task,
        "chart": draw_drops(name, title, drops, headings, seen, alike),
        "seeds": covered(study, names),
    }


def _generalised(study: Study, task: str) -> dict[str, Any] | None:
    """Map and means of the setting with two languages; None for a task that was not tested so."""
    metric = study.tasks[task]
    names = [n for n in study.names(task) if n[4] == GENERALISED]
    if not names:
        return None
    known = {n[3] for n in study.names(task) if n[4] == _CLEAN} - {MEAN}
    own = [n for n in names if n[:2] == [study.tower, study.method] and n[3] != MEAN]
    cells = {split_pair(n[3], known): study.tree["metrics"]["/".join(n)] for n in own}
    spoken = list(dict.fromkeys(first for first, _ in cells))
    title = f"{task}: {study.tower}, {study.method}, by language of the first and the second text"
    name = f"pairs-{list(study.tasks).index(task)}"
    means = {
        (tower, method): [
            study.point(tower, method, task, MEAN, GENERALISED, f"{metric}{suffix}")
            for suffix in ("_same_language", "")
        ]
        for tower in study.towers
        for method in study.methods
    }
    return {
        "task": task,
        "metric": metric,
        "chart": draw_pairs(name, title, spoken, cells) if cells else None,
        "rows": {row: points for row, points in means.items() if all(points)},
        "seeds": covered(study, names),
    }


def _languages(study: Study, task: str) -> dict[str, Any]:
    """The clean metric of every language, a column a tower, by the headline's method."""
    metric = study.tasks[task]
    names = [n for n in study.names(task) if n[1] == study.method and n[4:] == [_CLEAN, metric]]
    spoken = sorted({n[3] for n in names} - {MEAN})
    rows = {
        lang: [
            [study.point(one, study.method, task, lang, _CLEAN, metric) for one in study.towers],
            study.chance(study.tower, study.method, task, lang, _CLEAN, metric),
            max((study.tree["counts"]["/".join(n)] for n in names if n[3] == lang), default=0),
        ]
        for lang in (MEAN, *spoken)
    }
    return {"task": task, "metric": metric, "rows": rows, "seeds": covered(study, names)}


def _comparisons(study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, task) -> its comparisons, and the words on their seeds, which the rows name by number."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for one in study.tree["comparisons"]:
        group = groups.setdefault((one["kind"], one["task"]), {"rows": [], "seeds": []})
        if one["seeds"] not in group["seeds"]:
            group["seeds"].append(one["seeds"])
        group["rows"].append((one, group["seeds"].index(one["seeds"]) + 1))
    return groups


def seed_words(study: Study, names: Iterable[str]) -> list[str]:
    """Which seeds the intervals of these metrics cover; with the towers, where they differ in that."""
    towers: dict[str, dict[str, None]] = {}
    for name in names:
        if name in study.tree["seeds"]:
            towers.setdefault(study.tree["seeds"][name], {})[name.partition("/")[0]] = None
    if len(towers) == 1:
        return list(towers)
    return [f"{words} ({', '.join(of)})" for words, of in towers.items()]


def covered(study: Study, names: Iterable[Sequence[str]]) -> str:
    """A sentence on the seeds behind these metrics, for a caption."""
    joined = ["/".join(parts) for parts in names]
    words = "; ".join(seed_words(study, joined))
    if any(name in study.tree["ci95"] for name in joined):
        return f"95 % intervals cover {words}, and nothing else."
    return f"Measured on {words}: no intervals."


def label(variant: str) -> tuple[str, str]:
    """A variant's heading and the line below it: `words_drop-2` is `words drop` at `severity 2`."""
    name, _, severity = variant.partition("-")
    return name.replace("_", " "), f"severity {severity}" if severity else ""


def prose(text: str) -> Markup:
    """A sentence of the answer: what stands between backticks is a name."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
