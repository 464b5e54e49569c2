"""Charts as inline SVG: drawn by matplotlib, with text that stays text in the reader's own font.

    measurements -> Figure -> SVG with a title for the chart and for each mark -> Markup for the page

Equal numbers give equal bytes. A mark that stands for a metric carries the metric's name and a `<title>`,
which a browser shows as a tooltip.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_params_from_file
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from mmalign.report.measurement import Measurement

INK, MUTED, BLUE, OCHRE = "#22272e", "#5d6673", "#2b5c8a", "#c77c1e"
STYLE = rc_params_from_file(
    Path(__file__).with_name("templates") / "house.mplstyle", use_default_template=False
)
WIDTH = 9.6  # inches; the page scales a wide chart to its own width
PERCENT = PercentFormatter(1, symbol=" %")
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
# Colour never carries a meaning alone: lines differ in dashes and markers, and cells hold numbers. Those of a
# larger map would not hold theirs.
_LARGEST_WITH_NUMBERS = 20


@dataclass(frozen=True)
class Line:
    """One line of a chart; `marks` are measurements, each with its x, that have points with tooltips."""

    label: str | None
    x: Sequence[float]
    y: Sequence[float]
    marks: Sequence[tuple[int, Measurement]] = ()


class Chart:
    """A figure under construction, and what its marks say."""

    def __init__(self, name: str, title: str, width: float, height: float) -> None:
        self.name, self.title = name, title
        self.figure: Any = Figure(figsize=(width, height), layout="constrained")
        self._marks: list[tuple[str, str]] = []

    def mark(self, artist: Any, one: Measurement, of: str) -> None:
        """Give an artist the tooltip of a measurement."""
        artist.set_gid(f"mark-{len(self._marks)}")
        artist.set_in_layout(False)  # measuring every mark takes most of the time
        self._marks.append((one.name, one.described(of)))

    def svg(self) -> Markup:
        """The figure as an `<svg>` element that can stand beside others in one HTML page."""
        text = io.StringIO()
        # A date would change the bytes; the other fields would name web addresses.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(self.figure).print_svg(text, metadata=nothing)
        svg = text.getvalue().partition("<svg")[2]
        for number, (metric, words) in enumerate(self._marks):
            opening = f'<g data-metric="{escape(metric)}"><title data-field="value">{escape(words)}'
            svg = svg.replace(f'<g id="mark-{number}">', f"{opening}</title>", 1)
        # Each chart of a page needs ids of its own; HTML needs no namespaces.
        own = re.sub(r"[^\w-]", "-", self.name)
        svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{own}-", svg)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
        return Markup(f'<svg role="img" aria-label="{escape(self.title)}"{svg}')


def highest_first(
    rows: Mapping[str, Mapping[str, Measurement]],
) -> dict[str, Mapping[str, Measurement]]:
    """The rows of `draw_bars`, that with the highest values first."""
    return dict(sorted(rows.items(), key=lambda row: -sum(one.value for one in row[1].values())))


def draw_bars(
    name: str, title: str, rows: Mapping[str, Mapping[str, Measurement]], chances: Sequence[float]
) -> Markup:
    """Horizontal bars with intervals, from the first row down.

    Args:
        rows: row -> series -> measurement; every row has the same series, two at most.
        chances: each is drawn as a line across all bars.
    """
    order = list(rows)
    series = list(rows[order[0]])
    height = 0.8 / len(series)
    with matplotlib.rc_context(STYLE):
        chart = Chart(name, title, WIDTH, 0.9 + 0.36 * len(rows))
        axes = chart.figure.add_subplot()
        strips = []
        for number, label in enumerate(series):
            ones = [rows[row][label] for row in order]
            y_N = np.arange(len(ones)) - 0.4 + height * (number + 0.5)
            value_N = np.array([one.value for one in ones])
            low_N, high_N = np.array([one.interval or (math.nan, math.nan) for one in ones]).T
            error_2N = np.maximum(0, [value_N - low_N, high_N - value_N])
            whiskers = {"ecolor": INK, "elinewidth": 0.9, "capsize": 1.8}
            look = {"color": (BLUE, OCHRE)[number], "alpha": 0.88, "label": label}
            axes.barh(y_N, value_N, 0.88 * height, xerr=error_2N, error_kw=whiskers, **look)
            untrained = [math.nan if one.untrained is None else one.untrained for one in ones]
            axes.plot(untrained, y_N, "D", mfc="white", mec=INK, ms=3.6, clip_on=False)
            strips += [(y, f"{row}, {label}", one) for y, row, one in zip(y_N, order, ones)]  # noqa: B905
        end = min(1.0, axes.get_xlim()[1])
        for y, words, one in strips:
            # An empty strip as long as the axis takes the pointer: bars may be too short for it.
            (strip,) = axes.barh(y, end, height, color="none", edgecolor="none", zorder=9)
            chart.mark(strip, one, words)
        for chance in chances:
            axes.axvline(chance, color=INK, linestyle=":")
        axes.set(xlim=(0, end), ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), order)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.tick_params(labeltop=len(rows) > 25)  # a tall chart is read from either end
        axes.grid(visible=False, axis="y")
        chart.figure.legend(loc="outside upper left", ncols=6)
        return chart.svg()


def draw_heat_map(
    name: str,
    title: str,
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    cells: Mapping[tuple[str, str], Measurement],
    from_zero: bool = True,
) -> Markup:
    """A map with one cell per row and column; a pair that is not in `cells` stays grey.

    Args:
        rows, columns: key -> label, in the order of the chart.
        from_zero: the colours start at 0, else at the lowest value.
    """
    height, width = len(rows), len(columns)
    numbered = max(height, width) <= _LARGEST_WITH_NUMBERS
    side = 0.52 if numbered else 0.24
    values = [one.value for one in cells.values()]
    low = min(0.0, *values) if from_zero else min(values)
    # Equal values are no contrast: the scale spans one point at least.
    colors: Any = ScalarMappable(Normalize(low, max(*values, low + 0.01)), "Blues")
    x_of, y_of = ({key: at for at, key in enumerate(keys)} for keys in (columns, rows))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        chart = Chart(name, title, side * width + 3.2, side * height + 0.8)
        axes = chart.figure.add_subplot()
        axes.set_facecolor("#eceef1")
        for (row, column), one in cells.items():
            x, y, color = x_of[column], y_of[row], colors.to_rgba(one.value)
            cell = Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=0.8)
            chart.mark(axes.add_patch(cell), one, f"{rows[row]} → {columns[column]}")
            if numbered:
                text = f"{100 * one.value:z.{0 if max(values) > 0.2 else 1}f}"
                # Relative luminance of WCAG 2: ink or white, whichever stands out more.
                luminance = np.dot(np.power(color[:3], 2.2), (0.2126, 0.7152, 0.0722))
                ink = INK if luminance > 0.22 else "white"
                number = axes.text(x + 0.5, y + 0.5, text, color=ink, ha="center", va="center")
                number.set_in_layout(False)
        # Long codes such as `lgg-x-official` would run into each other.
        rotation = 0 if numbered and max(map(len, columns.values())) <= 5 else 90
        axes.set_xticks(np.arange(width) + 0.5, columns.values(), rotation=rotation)
        axes.set_yticks(np.arange(height) + 0.5, rows.values())
        axes.tick_params(labeltop=True, labelbottom=False, labelsize=9.5 if numbered else 8)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes.spines[:].set_visible(False)
        scale = chart.figure.colorbar(colors, ax=axes, shrink=0.5, aspect=24, format=PERCENT)
        scale.outline.set_visible(False)
        scale.solids.set(rasterized=False, edgecolor="face")  # else it is an embedded bitmap
        return chart.svg()


def draw_lines(
    name: str,
    title: str,
    panels: Mapping[str, Sequence[Line]],
    width: float = WIDTH,
    height: float = 2.8,
    ticks: Sequence[str] | None = None,
    from_zero: bool = True,
) -> Markup:
    """Lines in panels side by side over training steps or layers, with a legend where they have labels.

    Args:
        panels: title -> lines; labelled lines are shares unless their marks say otherwise.
        ticks: names of layers 0, 1, ...; without them x is the training step.
        from_zero: the axis of y starts at 0; an axis cut to the noise looks like trouble.
    """
    with matplotlib.rc_context(STYLE):
        chart = Chart(name, title, width, height)
        grid = chart.figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (heading, lines) in zip(grid, panels.items(), strict=True):
            for line in lines:
                # Few points are measurements far apart: show where they are.
                marker = {"marker": ""} if len(line.x) > 25 else {}
                (drawn,) = axes.plot(line.x, line.y, label=line.label, **marker)
                # All properties of the cycle are given: a point must not take those of the next line.
                look = {"marker": drawn.get_marker(), "color": drawn.get_color(), "ls": "none"}
                for x, one in line.marks:
                    (point,) = axes.plot(x, one.value, ms=6, **look)
                    chart.mark(point, one, f"{ticks[x] if ticks else x}, {line.label}")
            axes.set_title(heading)
            axes.set_xlabel("layer (0: the embeddings of the tokens)" if ticks else "step")
            axes.xaxis.set_major_locator(MaxNLocator(4 if width < WIDTH else 8, integer=True))
            axes.xaxis.set_major_formatter(THOUSANDS)
            if ticks:
                axes.set_xticks(range(len(ticks)), ticks)
            if from_zero:
                axes.set_ylim(bottom=min(0, *(y for line in lines for y in line.y)))
            if lines[0].label and all(one.is_share for line in lines for _, one in line.marks):
                axes.yaxis.set_major_formatter(PERCENT)
        handles, labels = grid[0].get_legend_handles_labels()
        if labels:
            chart.figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return chart.svg()
