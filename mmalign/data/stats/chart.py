"""The statistics of a data set as one figure, PNG or SVG.

    tree of stats.summarise -> above: picture sizes; captions, languages and bytes
                            -> below: a row a language: captions (log scale), lengths of captions

Many languages stand in two or three columns, so that every one keeps a row that can be read. Colours are far
apart in lightness too, and none carries a meaning alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mmalign.core.errors import UserError
from mmalign.data.stats.table import plain, short_label, size_in_words

SUFFIXES = (".png", ".svg")
_INK, _MUTED, _RULE = "#22272e", "#5d6673", "#dfe3e8"
_BLUE, _OCHRE = "#2b5c8a", "#c77c1e"
_STYLE = {
    "svg.hashsalt": "mmalign",
    "font.size": 9,
    # Names are strangers' text: a dollar sign in them starts no formula.
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _RULE,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_ROWS = 45  # of languages in a column, while three columns are enough
_MOST_COLUMNS = 3
_MOST_LANGUAGES = 300
_LETTERS = 28  # of a language's label
# Inches. Laid out by hand: an automatic layout takes seconds and differs in the last digits.
_ROW = 0.19
_SIDE = 2.3  # of the square of picture sizes
_ABOVE = 4.0  # down to the first row of languages
_BELOW = 0.4
_LABELS = 2.0
_ONE_COLUMN, _OF_SEVERAL = (2.7, 3.3), (1.5, 1.9)  # width of bars, of lengths

Language = tuple[str, Mapping[str, Any]]


def check_target(path: Path) -> None:
    """Stop before any work if `draw` could not write this file.

    Raises:
        UserError: another suffix than .png or .svg.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: give --picture a file that ends in {' or '.join(SUFFIXES)}")


def draw(tree: Mapping[str, Any], path: Path) -> None:
    """Write the figure; equal statistics give equal bytes."""
    languages = list(tree["languages"].items())[:_MOST_LANGUAGES]
    columns = max(1, min(_MOST_COLUMNS, math.ceil(len(languages) / _ROWS)))
    bars, lengths = _ONE_COLUMN if columns == 1 else _OF_SEVERAL
    column = _LABELS + bars + lengths + 0.3
    rows = math.ceil(len(languages) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(columns * column, _ABOVE + _ROW * rows + _BELOW))
        figure.text(0.01, 1 - 0.12 / figure.get_figheight(), _title(tree), va="top", fontsize=11)
        _draw_sizes(_place(figure, 0.7, 0.7, _SIDE, _SIDE), tree)
        left = 0.7 + _SIDE + 1.7
        _draw_counts(_place(figure, left, 0.7, columns * column - left - 0.2, _SIDE), tree)
        for start in range(0, len(languages), max(1, rows)):
            left = _LABELS + start // rows * column
            both = (
                _place(figure, left, _ABOVE, bars, _ROW * rows),
                _place(figure, left + bars + 0.15, _ABOVE, lengths, _ROW * rows),
            )
            _draw_languages(*both, languages[start : start + rows], languages, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Axes whose frame lies there, in inches from the upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )


def _title(tree: Mapping[str, Any]) -> str:
    read, of = tree["shards"]["read"], tree["shards"]["of"]
    drawn = f", {read:,} of {of:,} shards" if read < of else ""
    words = (
        f"{plain(tree['name'])}/{plain(tree['split'])}: {tree['pictures']:,} pictures",
        f"{tree['captions']:,} captions",
        f"{len(tree['languages'])} languages",
        size_in_words(tree["bytes"]["shards"]),
    )
    return ", ".join(words) + drawn


def _draw_sizes(axes: Any, tree: Mapping[str, Any]) -> None:
    """A mark a cell of sizes; its area is the share of the samples."""
    width, height, count = np.array(tree["sizes"][::-1]).T
    area = 6 + 260 * count / count.max()
    axes.scatter(width, height, area, color=_BLUE, alpha=0.55, edgecolor="white", linewidth=0.4)
    low = min(width.min(), height.min()) / 2
    high = max(width.max(), height.max()) * 2
    axes.plot((low, high), (low, high), color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlim=(low, high), ylim=(low, high), xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_log(axis, high / low)
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.set_title("Picture sizes (area: samples; dotted: square)")


def _draw_counts(axes: Any, tree: Mapping[str, Any]) -> None:
    """Marks at the quantiles of what is counted a picture or a sample."""
    names = {
        "captions a picture": tree["captions_per_picture"],
        "languages a sample": tree["languages_per_sample"],
        "KiB a picture": {name: value / 1024 for name, value in tree["picture_bytes"].items()},
    }
    _draw_ranges(axes, list(names.values()), list(names.values()))
    axes.set_yticks(range(len(names)), list(names), color=_INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("Captions, languages, bytes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=3, fontsize=8.5)


def _draw_languages(
    bars: Any, lengths: Any, part: Sequence[Language], every: Sequence[Language], rows: int
) -> None:
    """One column of languages; all columns have the same scales."""
    captions = [facts["captions"] for _, facts in part]
    bars.barh(range(len(part)), captions, left=0.5, height=0.72, color=_BLUE)
    bars.set_xscale("log")
    most = max(facts["captions"] for _, facts in every)
    bars.set_xlim(0.5, 1.6 * most)
    _plain_log(bars.xaxis, 2 * most)
    labels = [short_label(facts["name"], code, _LETTERS) for code, facts in part]
    bars.set_yticks(range(len(part)), labels, color=_INK, fontsize=8)
    bars.set_title("Captions")
    unit = "tokens" if "tokens" in every[0][1] else "characters"
    _draw_ranges(lengths, [facts[unit] for _, facts in part], [facts[unit] for _, facts in every])
    lengths.set_yticks([])
    lengths.set_title(f"{unit.capitalize()} a caption")
    for axes in (bars, lengths):
        axes.set_ylim(rows - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(labeltop=rows > 25)


def _draw_ranges(
    axes: Any, quantiles: Sequence[Mapping[str, float]], every: Sequence[Mapping[str, float]]
) -> None:
    """A line from 5 % to 95 %, a dot at the median, a tick at the largest value; a log scale for `every`."""
    y = list(range(len(quantiles)))
    low, middle, high, most = (
        [one[name] for one in quantiles] for name in ("p5", "p50", "p95", "max")
    )
    least, largest = min(one["p5"] for one in every), max(one["max"] for one in every)
    axes.set_xscale("log")
    axes.set_xlim(max(0.5, least) / 1.3, max(4, largest) * 1.3)
    _plain_log(axes.xaxis, largest / max(0.5, least))
    axes.hlines(y, low, high, color=_BLUE, linewidth=2, label="5 % to 95 %")
    axes.plot(middle, y, "o", color=_OCHRE, markersize=4, label="median")
    axes.plot(most, y, "|", color=_INK, markersize=6, label="largest")
    axes.grid(visible=False, axis="y")


def _plain_log(axis: Any, span: float) -> None:
    """Labels such as 200 and 5k instead of powers; fewer of them where the axis spans much."""
    subs = (1.0, 2.0, 5.0) if span < 60 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
    axis.set_minor_locator(NullLocator())


def _short_number(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
