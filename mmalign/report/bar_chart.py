"""Horizontal bars: a group a language, and in it a bar a direction (or another measure of it).

    languages -> bars with intervals, untrained values and chance -> Figure -> Markup

Over every bar lies an empty strip as long as the axis: it is what the pointer meets, so that a bar of a
thousandth can be pointed at too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mmalign.report.charts import BLUE, INK, OCHRE, STYLE, note, to_markup
from mmalign.report.measurement import Mark

_COLORS = (BLUE, OCHRE)
_INTERVAL, _UNTRAINED, _CHANCE = "95 % interval", "untrained model", "chance"


@dataclass(frozen=True)
class Bar:
    """One bar: a value, its 95 % interval, what the untrained model reached, and what it says."""

    value: float
    interval: tuple[float, float] | None
    untrained: float | None
    mark: Mark


def draw_bars(
    name: str,
    groups: Mapping[str, Mapping[str, Bar]],
    chances: Sequence[float],
    title: str,
) -> Markup:
    """The chart, in the order given.

    Args:
        groups: language -> direction -> bar; every language has the same directions, two at most.
        chances: each is drawn as a line across all bars.
    """
    series = list(next(iter(groups.values())))
    height = 0.8 / len(series)
    end = _upper_limit(groups)
    marks: list[Mark] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.9 + 0.36 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(series):
            y = [row - 0.4 + height * (place + 0.5) for row in range(len(groups))]
            bars = [of_language[one] for of_language in groups.values()]
            _draw_series(axes, y, height, bars, one, place)
            strips = axes.barh(y, end, height=height, color="none", edgecolor="none", zorder=9)
            for strip, bar in zip(strips, bars, strict=True):
                strip.set_gid(note(marks, bar.mark))
                strip.set_in_layout(False)
        for place, chance in enumerate(dict.fromkeys(chances)):
            label = None if place else _CHANCE
            axes.axvline(chance, color=INK, linewidth=1.1, linestyle=":", label=label)
        _finish(axes, list(groups), end)
        _draw_legend(figure, axes, series)
        return to_markup(figure, name, title, marks)


def _finish(axes: Any, languages: Sequence[str], end: float) -> None:
    axes.set_yticks(range(len(languages)), languages, color=INK)
    axes.set_ylim(len(languages) - 0.4, -0.6)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    # A tall chart is read from either end.
    axes.tick_params(labeltop=len(languages) > 25, top=False)
    axes.grid(visible=False, axis="y")


def _draw_legend(figure: Figure, axes: Any, series: Sequence[str]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    last = [*series, _INTERVAL, _UNTRAINED, _CHANCE]
    order = sorted(range(len(labels)), key=lambda place: last.index(labels[place]))
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=6,
        fontsize=9,
        labelcolor=INK,
    )


def _draw_series(
    axes: Any, y: Sequence[float], height: float, bars: Sequence[Bar], name: str, place: int
) -> None:
    values = [bar.value for bar in bars]
    axes.barh(y, values, height=0.88 * height, color=_COLORS[place], alpha=0.88, label=name)
    ends = [bar.interval or (bar.value, bar.value) for bar in bars]
    lows = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    highs = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    label = _INTERVAL if place == 0 and any(bar.interval for bar in bars) else None
    style = {"ecolor": INK, "elinewidth": 0.9, "capsize": 1.8, "label": label}
    axes.errorbar(values, y, xerr=[lows, highs], fmt="none", **style)
    known = [
        (bar.untrained, at) for bar, at in zip(bars, y, strict=True) if bar.untrained is not None
    ]
    if known:
        axes.plot(
            *zip(*known, strict=True),
            linestyle="none",
            marker="D",
            markersize=3.6,
            markerfacecolor="white",
            markeredgecolor=INK,
            markeredgewidth=0.9,
            clip_on=False,
            label=_UNTRAINED if place == 0 else None,
        )


def _upper_limit(groups: Mapping[str, Mapping[str, Bar]]) -> float:
    bars = [bar for of_language in groups.values() for bar in of_language.values()]
    longest = max(max(bar.value, (bar.interval or (0, 0))[1], bar.untrained or 0) for bar in bars)
    return min(1.0, 1.08 * longest) or 1.0
