"""A heat map over pairs of languages: every cell is a shape of its own, so that it can be pointed at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from mmalign.core.languages import labelled
from mmalign.report.charts import INK, STYLE, note, to_markup
from mmalign.report.measurement import Mark

# Cells smaller than this would not hold their number.
_LANGUAGES_WITH_NUMBERS = 20


def draw_heat_map(
    name: str,
    languages: Sequence[str],
    cells: Mapping[tuple[str, str], tuple[float, Mark]],
    title: str,
) -> Markup:
    """A cell a pair: the row's language asks, the column's language answers.

    Args:
        cells: (share, what the cell says) by (row, column); a pair that is not there stays grey.
    """
    size = len(languages)
    with_numbers = size <= _LANGUAGES_WITH_NUMBERS
    side = 0.52 if with_numbers else 0.24
    top = max((value for value, _ in cells.values()), default=1.0) or 1.0
    marks: list[Mark] = []
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side * size + 3.2, side * size + 0.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("#eceef1")
        colors: Any = ScalarMappable(matplotlib.colors.Normalize(0, top), "Blues")
        for (row, column), (value, words) in cells.items():
            if row in languages and column in languages:
                corner = languages.index(column), languages.index(row)
                style: dict[str, Any] = {
                    "facecolor": colors.to_rgba(value),
                    "edgecolor": "white",
                    "lw": 0.8,
                }
                cell = axes.add_patch(Rectangle(corner, 1, 1, **style))
                cell.set_gid(note(marks, words))
                cell.set_in_layout(False)  # measuring every cell takes most of the time
        if with_numbers:
            values = [[_value(cells, row, column) for column in languages] for row in languages]
            write_cells(axes, colors, values)
        _finish(axes, languages, with_numbers)
        _draw_scale(figure, axes, colors)
        return to_markup(figure, name, title, marks)


def write_cells(axes: Any, colors: Any, table: Sequence[Sequence[float]]) -> None:
    """The numbers, in ink or white, whichever stands out more from its cell."""
    digits = 0 if colors.get_clim()[1] >= 0.1 else 1
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if math.isnan(value):
                continue
            red, green, blue, _ = colors.to_rgba(value)
            luminance = (
                0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
            )  # as WCAG 2 has it
            number = axes.text(
                column + 0.5,
                row + 0.5,
                f"{100 * value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=9.5,
                color=INK if luminance > 0.22 else "white",
            )
            number.set_in_layout(False)


def _value(cells: Mapping[tuple[str, str], tuple[float, Mark]], row: str, column: str) -> float:
    return cells[row, column][0] if (row, column) in cells else math.nan


def _finish(axes: Any, languages: Sequence[str], with_numbers: bool) -> None:
    size = len(languages)
    ticks = [place + 0.5 for place in range(size)]
    # Long codes such as `lgg-x-official` would run into each other.
    upright = with_numbers and max(map(len, languages)) <= 5
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_xticks(ticks, languages, rotation=0 if upright else 90)
    axes.set_yticks(ticks, [labelled(language) for language in languages])
    axes.tick_params(
        labelcolor=INK, labelsize=9.5 if with_numbers else 8, labeltop=True, labelbottom=False
    )
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    axes.set_ylabel("query")
    axes.set_xlabel("pool")
    axes.xaxis.set_label_position("top")


def _draw_scale(figure: Figure, axes: Any, colors: ScalarMappable) -> None:
    scale = figure.colorbar(colors, ax=axes, shrink=0.5, aspect=24, pad=0.02)
    scale.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    scale.outline.set_visible(False)
    # By default the scale becomes an embedded bitmap.
    solids: Any = scale.solids
    solids.set(rasterized=False, edgecolor="face")
