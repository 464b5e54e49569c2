"""The Pareto plot of a FAISS benchmark: recall against throughput, a line an index, a panel a direction.

    rows of faiss.json -> Figure -> <svg> for the page, or pareto.svg and pareto.png

Up and to the right is better. The grey step is the Pareto front: what lies on it is beaten in both at once by
nothing that was measured. Indexes differ in the shape of their marks, not in colour alone, and the legend
says what a vector costs in bytes. Timings are those on the fewest threads.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mmalign.evaluation.ann.results import Row
from mmalign.report.charts import BLUE, INK, MUTED, OCHRE, PLUM, RULE, STYLE, to_markup

_MARKS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*", "p", "h")
_COLORS = (BLUE, OCHRE, PLUM, INK, MUTED)
_TITLES = {"text_to_image": "Texts search pictures", "image_to_text": "Pictures search texts"}
_DOTS_PER_INCH = 150


def draw_pareto(name: str, rows: Sequence[Row], k: int) -> Markup:
    """The plot as an `<svg>` element for a page.

    Args:
        name: distinguishes this chart's ids from those of the page's other charts.
        k: length of the lists that were timed.
    """
    with matplotlib.rc_context(STYLE):
        label = f"recall@{k} and queries a second of FAISS indexes"
        return to_markup(_draw(rows, k), name, label)


def write_pareto(rows: Sequence[Row], k: int, folder: Path) -> None:
    """Write `pareto.svg` and `pareto.png` into the folder; equal rows give equal bytes."""
    with matplotlib.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = _draw(rows, k)
        figure.savefig(folder / "pareto.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / "pareto.png", dpi=_DOTS_PER_INCH)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (recall, throughput) that no other one equals or beats in both, by falling recall."""
    best: list[tuple[float, float]] = []
    for recall, speed in sorted(points, reverse=True):
        if not best or speed > best[-1][1]:
            best.append((recall, speed))
    return best


def _draw(rows: Sequence[Row], k: int) -> Figure:
    measured = [row for row in rows if "refused" not in row]
    fewest = min(row["threads"] for row in measured)
    measured = [row for row in measured if row["threads"] == fewest]
    directions = [name for name in _TITLES if any(row["direction"] == name for row in measured)]
    indexes = list(dict.fromkeys(row["index"] for row in measured))
    looks = dict(zip(indexes, zip(cycle(_MARKS), cycle(_COLORS), strict=False), strict=False))
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for axes, direction in zip(panels, directions, strict=True):
        mine = [row for row in measured if row["direction"] == direction]
        _draw_direction(axes, mine, looks, k)
        axes.set_title(_TITLES[direction], loc="left", fontsize=10, color=INK)
    threads = "1 thread" if fewest == 1 else f"{fewest} threads"
    panels[0].set_ylabel(f"queries a second, {threads}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, labelcolor=INK
    )
    return figure


def _draw_direction(
    axes: Any, rows: Sequence[Row], looks: dict[str, tuple[str, str]], k: int
) -> None:
    edge = front([(row[f"recall@{k}"], row["queries_per_second"]) for row in rows])
    axes.step(*zip(*edge, strict=True), where="post", color=RULE, linewidth=5, zorder=0)
    for index, (mark, color) in looks.items():
        mine = sorted(
            (row for row in rows if row["index"] == index), key=lambda row: row[f"recall@{k}"]
        )
        if not mine:
            continue
        axes.plot(
            [row[f"recall@{k}"] for row in mine],
            [row["queries_per_second"] for row in mine],
            color=color,
            marker=mark,
            markersize=5.5,
            linewidth=1,
            label=f"{index} ({mine[0]['bytes_per_vector']:,.0f} bytes)",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(f"recall@{k} against exact search")
