"""The statistics of a data set as one figure, PNG or SVG.

dictionary of summary.summarise -> top:    image sizes; captions, languages and bytes per image
                                -> bottom: one row per language: captions, their lengths
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from mmalign.core.commit import replacing
from mmalign.core.errors import UserError, printable
from mmalign.data.stats.summary import short_label, size_in_words

SUFFIXES = (".png", ".svg")
_BLUE, _OCHRE, _INK = "#2b5c8a", "#c77c1e", "#22272e"  # they also differ in lightness
_STYLE = {
    "svg.hashsalt": "mmalign",  # equal statistics give an equal file
    "font.size": 9,
    "text.parse_math": False,  # names are untrusted text: a dollar sign in them starts no formula
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dfe3e8",
    "ytick.major.size": 0,
    "legend.frameon": False,
}
# Inches. The layout is ours: an automatic one takes seconds where there are many languages.
_TOP, _ROW, _COLUMN, _LABELS = 4.0, 0.19, 7.7, 2.0

Quantiles = Mapping[str, float]


def check_target(path: Path) -> None:
    """Stop before any work if `draw` could not write this file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: give --picture a file that ends in {' or '.join(SUFFIXES)}")


def draw(tree: Mapping[str, Any], path: Path) -> None:
    """Write the figure; equal statistics give equal bytes."""
    # Languages stand in up to three columns, so that each of many has a row that can be read.
    languages = list(tree["languages"].items())[:300]
    columns = min(3, max(1, math.ceil(len(languages) / 45)))
    rows = max(1, math.ceil(len(languages) / columns))
    width, height = columns * _COLUMN, _TOP + _ROW * rows + 0.4
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))

        def axes_at(left: float, top: float, wide: float, high: float, share: Any = None) -> Axes:
            bottom = height - top - high
            box = (left / width, bottom / height, wide / width, high / height)
            return figure.add_axes(box, sharex=share)

        figure.text(0.01, 1 - 0.12 / height, _title(tree), va="top", fontsize=11)
        _draw_sizes(axes_at(0.7, 0.7, 2.3, 2.3), tree["sizes"])
        ranges = {
            "captions per image": tree["captions_per_picture"],
            "languages per sample": tree["languages_per_sample"],
            "KiB per image": {name: n / 1024 for name, n in tree["picture_bytes"].items()},
        }
        counts = axes_at(4.7, 0.7, width - 4.9, 2.3)
        _draw_ranges(counts, list(ranges.values()))
        counts.set_yticks(range(len(ranges)), list(ranges))
        # At least up to 4, so that an axis where all is 1 has more than one label.
        counts.set_xlim(0.4, 1.3 * max(4, *(one["max"] for one in ranges.values())))
        counts.set(ylim=(len(ranges) - 0.4, -0.6), title="Captions, languages, bytes")
        counts.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=3, fontsize=8.5)
        shared: tuple[Any, Any] = (None, None)  # all columns have the scales of the first one
        for start in range(0, len(languages), rows):
            left = _LABELS + start // rows * _COLUMN
            bars = axes_at(left, _TOP, 2.5, _ROW * rows, shared[0])
            lengths = axes_at(left + 2.65, _TOP, 2.9, _ROW * rows, shared[1])
            _draw_languages(bars, lengths, languages[start : start + rows], rows)
            shared = (bars, lengths)
        for axes in figure.axes:
            _plain_log(axes.xaxis)
        # Without the date, which would make each SVG another file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def _title(tree: Mapping[str, Any]) -> str:
    read, of = tree["shards"]["read"], tree["shards"]["of"]
    return (
        f"{printable(tree['name'])}/{printable(tree['split'])}: {tree['pictures']:,} images, "
        f"{tree['captions']:,} captions, {len(tree['languages'])} languages, "
        f"{size_in_words(tree['bytes']['shards'])}"
    ) + (f", {read:,} of {of:,} shards" if read < of else "")


def _draw_sizes(axes: Axes, sizes: Sequence[Sequence[int]]) -> None:
    # One mark per group of sizes, the largest last, on top of no other.
    width, height, count = np.array(sizes[::-1]).T
    area = 6 + 260 * count / count.max()
    axes.scatter(width, height, area, color=_BLUE, alpha=0.55, edgecolor="white", linewidth=0.4)
    ends = (min(width.min(), height.min()) / 2, max(width.max(), height.max()) * 2)
    axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle=":")
    axes.set(xlim=ends, ylim=ends, xscale="log", yscale="log")
    axes.set(xlabel="width, pixels", ylabel="height, pixels")
    axes.set_title("Image sizes (area: samples; dotted: square)")
    _plain_log(axes.yaxis)


def _draw_languages(bars: Axes, lengths: Axes, part: Sequence[tuple[str, Any]], rows: int) -> None:
    captions = [facts["captions"] for _, facts in part]
    # From 0.5: a single caption must have a bar on a logarithmic scale.
    bars.barh(range(len(part)), [count - 0.5 for count in captions], left=0.5, color=_BLUE)
    labels = [short_label(facts["name"], code, 28) for code, facts in part]
    bars.set(xscale="log", title="Captions")
    bars.set_yticks(range(len(part)), labels, fontsize=8)
    unit = "tokens" if "tokens" in part[0][1] else "characters"
    _draw_ranges(lengths, [facts[unit] for _, facts in part])
    lengths.set_title(f"{unit.capitalize()} per caption")
    lengths.set_yticks([])
    for axes in (bars, lengths):
        axes.set_ylim(rows - 0.4, -0.6)
        axes.grid(visible=False, axis="y")


def _draw_ranges(axes: Axes, quantiles: Sequence[Quantiles]) -> None:
    """A line from 5 % to 95 %, a dot at the median, a tick at the largest value; a log scale."""
    # Some images have no caption; a logarithmic scale has no zero.
    low, middle, high, most = (
        [max(0.5, one[name]) for one in quantiles] for name in ("p5", "p50", "p95", "max")
    )
    y = range(len(quantiles))
    axes.set_xscale("log")
    axes.hlines(y, low, high, color=_BLUE, linewidth=2, label="5 % to 95 %")
    axes.plot(middle, y, "o", color=_OCHRE, markersize=4, label="median")
    axes.plot(most, y, "|", color=_INK, markersize=6, label="largest")
    axes.grid(visible=False, axis="y")


def _plain_log(axis: Any) -> None:
    """Labels such as 200 and 5k instead of powers; fewer of them where the axis spans much."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_locator(NullLocator())
