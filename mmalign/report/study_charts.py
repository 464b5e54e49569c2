"""Charts of a study, in the house style of `charts`.

    points by tower                        -> dots with intervals, and beside them the differences
    points by tower, method, perturbation  -> a lattice: a row a tower, a column a perturbation
    shares by pair of languages            -> a heat map

A tower with other supervision than the tower of interest has an open diamond wherever it stands, and the
words that say what it has seen stand below its name. A difference is filled only where the test shows it.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mmalign.core.languages import labelled
from mmalign.report.charts import BLUE, INK, MUTED, OCHRE, RULE, STYLE, to_markup
from mmalign.report.heat_map import write_cells

_WIDTH = 9.6  # inches; the page scales it to its own width
_LINE = 0.155  # inches of a line of text
_WORDS = 40  # characters of supervision in a line
# Cells smaller than this would not hold their number.
_LANGUAGES_WITH_NUMBERS = 20


@dataclass(frozen=True)
class Point:
    """A mean and the interval around it, if several seeds were run."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One tower of the headline.

    Attributes:
        alike: it has seen the same as the tower of interest.
        difference: tower of interest minus this one; None where it was not tested.
        is_shown: the test shows that difference.
    """

    tower: str
    supervision: str
    alike: bool
    point: Point
    difference: Point | None = None
    is_shown: bool = False


@dataclass(frozen=True)
class Panel:
    """One task of the headline: its towers, best read from top to bottom, and its chance level."""

    title: str
    rows: Sequence[Row]
    chance: float | None


def draw_headline(name: str, tower: str, panels: Sequence[Panel]) -> Markup:
    """Means on the left, differences to the tower of interest on the right, a band a task.

    Without any tested difference the right side is left out.
    """
    with_differences = any(row.difference for panel in panels for row in panel.rows)
    heights = [sum(_height(row) for row in panel.rows) + 0.75 for panel in panels]
    with matplotlib.rc_context({**STYLE, "axes.spines.left": False}):
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        grid = figure.subplots(
            len(panels),
            2 if with_differences else 1,
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        reach = _reach(panels)
        for panel, axes in zip(panels, grid, strict=True):
            places = _places(panel.rows)
            _draw_means(axes[0], panel, places)
            if with_differences:
                _draw_differences(axes[1], tower, panel.rows, places, reach)
        return to_markup(figure, name, f"Means by tower and their differences to {tower}")


def draw_drops(
    name: str,
    title: str,
    drops: Mapping[str, Mapping[str, Mapping[str, Point]]],
    labels: Mapping[str, Sequence[str]],
    supervision: Mapping[str, str],
    alike: Iterable[str],
) -> Markup:
    """How much each perturbation costs, in points: a row a tower, a column a perturbation.

    Args:
        drops: tower -> method -> perturbation -> clean minus perturbed; the first method is the one that
            the others are read against, by a line through its dot.
        labels: perturbation -> the parts of its heading, in the order of the columns.
        supervision: tower -> what it has seen.
        alike: towers that have seen the same as the tower of interest.
    """
    methods = list(dict.fromkeys(method for of_tower in drops.values() for method in of_tower))
    points = [p for tower in drops.values() for method in tower.values() for p in method.values()]
    height = len(drops) * (0.19 * len(methods) + 0.32) + 0.75
    with matplotlib.rc_context({**STYLE, "axes.spines.left": False}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        # Axes that share their limits slow each other down: here they are given the same ones.
        grid = figure.subplots(len(drops), len(labels), squeeze=False)
        for (tower, of_tower), row in zip(drops.items(), grid, strict=True):
            is_last = tower == list(drops)[-1]
            for variant, axes in zip(labels, row, strict=True):
                found = {m: of[variant] for m, of in of_tower.items() if variant in of}
                _draw_drop(axes, methods, found, tower in alike)
                axes.set_xlim(*_limits(points, 0.0))
                axes.tick_params(labelleft=axes is row[0], labelbottom=is_last)
            _entitle(row[0], tower, supervision[tower])
        letters = max(10, 90 // len(labels))  # of a heading, in a line
        for heading, axes in zip(labels.values(), grid[0], strict=True):
            axes.annotate(
                "\n".join(line for part in heading for line in textwrap.wrap(part, letters)),
                (0.5, 1),
                (0, 22),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        figure.supxlabel("points lost", fontsize=9.5, color=MUTED)
        return to_markup(figure, name, title)


def draw_pairs(
    name: str, title: str, languages: Sequence[str], cells: Mapping[tuple[str, str], float]
) -> Markup:
    """A cell a pair of languages: the row's language is that of the first text, the column's of the second.

    Args:
        cells: shares by (first, second); a pair that is not there stays grey.
    """
    size = len(languages)
    with_numbers = size <= _LANGUAGES_WITH_NUMBERS
    side = 0.52 if with_numbers else 0.24
    table = [[cells.get((row, column), math.nan) for column in languages] for row in languages]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side * size + 3.2, side * size + 0.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("#eceef1")
        low, high = min(cells.values()), max(cells.values())
        # All pairs alike are no contrast: a scale of one point at least.
        mesh = axes.pcolormesh(
            table,
            cmap="Blues",
            vmin=low,
            vmax=max(high, low + 0.01),
            edgecolors="white",
            linewidth=0.8,
        )
        if with_numbers:
            write_cells(axes, mesh, table)
        ticks = [i + 0.5 for i in range(size)]
        axes.set_xticks(ticks, languages, rotation=0 if with_numbers else 90)
        axes.set_yticks(ticks, [labelled(language) for language in languages])
        axes.tick_params(
            labelcolor=INK, labelsize=9.5 if with_numbers else 8, labeltop=True, labelbottom=False
        )
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.set_ylabel("first text")
        axes.set_xlabel("second text")
        axes.xaxis.set_label_position("top")
        return to_markup(figure, name, title)


def percent(value: float | None) -> str:
    """A share, or a difference of two, in percent with one decimal and without the sign."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def span(interval: Sequence[float]) -> str:
    """An interval of a difference, in points."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def around(point: Point) -> str:
    """The interval of a mean, in percent: half its width where the mean is its middle, else its ends."""
    assert point.interval is not None
    low, high = point.interval
    if abs(low + high - 2 * point.value) > 1e-6:
        return span(point.interval)
    return f"±{percent((high - low) / 2)}"


_IN_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.0f} %".replace("-", "−"))
_IN_POINTS = FuncFormatter(lambda share, _: f"{100 * share:.0f}".replace("-", "−"))


def _lines(row: Row) -> list[str]:
    return textwrap.wrap(row.supervision, _WORDS)


def _height(row: Row) -> float:
    """Inches of a tower's band: its name, the lines of its supervision, and air."""
    return _LINE * (1 + len(_lines(row))) + 0.16


def _places(rows: Sequence[Row]) -> list[float]:
    """Where each tower stands, in inches from the top."""
    places, top = [], 0.0
    for row in rows:
        places.append(top + _height(row) / 2)
        top += _height(row)
    return places


def _draw_means(axes: Any, panel: Panel, places: Sequence[float]) -> None:
    for row, y in zip(panel.rows, places, strict=True):
        color = BLUE if row.alike else OCHRE
        _draw_points(axes, [row.point], [y], color, "o" if row.alike else "D", row.alike)
        _label_tower(axes, row, y)
        _write_value(axes, percent(row.point.value), row.point.value, y)
    points = [row.point for row in panel.rows]
    axes.set_xlim(*_limits(points, *([] if panel.chance is None else [panel.chance])))
    if panel.chance is not None:
        axes.axvline(panel.chance, color=INK, linewidth=1.1, linestyle=":")
        axes.annotate(
            "chance",
            (panel.chance, 0),
            (3, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    axes.set_title(panel.title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.xaxis.set_major_formatter(_IN_PERCENT)
    _finish(axes, panel.rows)


def _draw_differences(
    axes: Any, tower: str, rows: Sequence[Row], places: Sequence[float], reach: tuple[float, float]
) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.9)
    for row, y in zip(rows, places, strict=True):
        if row.difference is None:
            continue
        _draw_points(axes, [row.difference], [y], INK, "o", row.is_shown)
        _write_value(axes, signed(row.difference.value), row.difference.value, y)
    axes.set_title(f"{tower} minus the row's tower, points", loc="left", fontsize=9, color=MUTED)
    axes.set_xlim(*reach)
    axes.xaxis.set_major_formatter(_IN_POINTS)
    _finish(axes, rows)


def _finish(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_ylim(sum(_height(row) for row in rows), 0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _label_tower(axes: Any, row: Row, y: float) -> None:
    """The name, and below it what the tower has seen, left of the plot."""
    words = _lines(row)
    top = y - _LINE * len(words) / 2
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(-0.03, top, row.tower, fontsize=9.5, **at)
    for number, line in enumerate(words, start=1):
        axes.text(-0.03, top + number * _LINE, line, fontsize=8, color=MUTED, **at)


def _write_value(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(
        text, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8.5, color=INK
    )


def _draw_drop(axes: Any, methods: Sequence[str], found: Mapping[str, Point], alike: bool) -> None:
    """The methods of one tower under one perturbation."""
    color = BLUE if alike else OCHRE
    axes.axvline(0, color=MUTED, linewidth=0.9)
    if methods[0] in found:
        axes.axvline(found[methods[0]].value, color=color, linewidth=0.9, linestyle="--", alpha=0.7)
    places = [methods.index(method) for method in found]
    _draw_points(axes, list(found.values()), places, color, "o" if alike else "D", alike)
    axes.set_yticks(range(len(methods)), methods, color=INK, fontsize=9)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(_IN_POINTS)
    axes.grid(visible=True, axis="y", color=RULE, linewidth=0.5)


def _entitle(axes: Any, tower: str, supervision: str) -> None:
    """A tower's name above its row, and what it has seen; the table of the towers has all of a long text."""
    words = textwrap.shorten(f"{tower}: {supervision}", 120, placeholder=" …")
    axes.set_title(" ", loc="left", fontsize=9)  # keeps the place
    text = axes.annotate(
        words, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=9
    )
    text.set_in_layout(False)  # it may run over the other columns


def _draw_points(
    axes: Any,
    points: Sequence[Point],
    y: Sequence[float],
    color: str,
    marker: str,
    filled: bool,
) -> None:
    spans = [(at, *point.interval) for at, point in zip(y, points, strict=True) if point.interval]
    if spans:
        axes.hlines(*zip(*spans, strict=True), color=color, linewidth=1.4)
    axes.plot(
        [point.value for point in points],
        y,
        linestyle="none",
        marker=marker,
        markersize=5.6 if marker == "o" else 5,
        markerfacecolor=color if filled else "white",
        markeredgecolor=color,
        markeredgewidth=1.2,
    )


def _reach(panels: Sequence[Panel]) -> tuple[float, float]:
    """One scale for the differences of all tasks."""
    rows = [row for panel in panels for row in panel.rows]
    return _limits([row.difference for row in rows if row.difference], 0.0)


def _limits(points: Sequence[Point], *also: float) -> tuple[float, float]:
    """Limits that hold the means, their intervals and `also`; an interval that leaves [-1, 1] is cut."""
    ends = [end for point in points for end in point.interval or ()]
    values = [point.value for point in points] + [min(1.0, max(-1.0, end)) for end in ends]
    low, high = min((*values, *also)), max((*values, *also))
    margin = 0.08 * (high - low) or 0.01
    return low - margin, high + margin
