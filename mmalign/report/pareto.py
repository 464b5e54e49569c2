"""The Pareto plot of a FAISS benchmark: recall against throughput, a line per index, a panel per direction.

    rows of faiss.json -> Figure -> pareto.svg and pareto.png

Up and to the right is better, and the grey step is the Pareto front. Timings are those on the fewest threads.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mmalign.evaluation.ann.results import SPEED, Row
from mmalign.report.charts import STYLE, THOUSANDS, WIDTH

_TITLES = {"text_to_image": "Texts search images", "image_to_text": "Images search texts"}


def write_pareto(rows: Sequence[Row], k: int, folder: Path) -> None:
    """Write `pareto.svg` and `pareto.png` into the folder; equal rows give equal bytes.

    Args:
        k: length of the lists that were timed.
    """
    with matplotlib.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = _draw(rows, k)
        plain: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
        for kind, look in (("svg", plain), ("png", {"dpi": 150})):
            part = folder / f".pareto.{kind}"  # a full disk must not leave half a plot
            figure.savefig(part, format=kind, **look)
            part.replace(folder / f"pareto.{kind}")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (recall, throughput) that no other one equals or exceeds in both, by falling recall."""
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
    sizes = {row["index"]: row["bytes_per_vector"] for row in measured}
    figure: Any = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for axes, direction in zip(panels, directions, strict=True):
        mine = [row for row in measured if row["direction"] == direction]
        edge = front([(row[f"recall@{k}"], SPEED(row)) for row in mine])
        axes.step(
            *zip(*edge, strict=True), where="post", color="#dfe3e8", lw=5, marker="", zorder=0
        )
        # Indexes differ in their markers, not in colour alone, and have the same one in both panels.
        for (index, size), marker in zip(sizes.items(), cycle("osD^vPX<>*ph"), strict=False):
            points = sorted(
                (row[f"recall@{k}"], SPEED(row)) for row in mine if row["index"] == index
            )
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, marker=marker, lw=1, ls="-", label=f"{index} ({size:,.0f} bytes)")
        axes.set(title=_TITLES[direction], yscale="log", xlabel=f"recall@{k} against exact search")
        axes.yaxis.set_major_formatter(THOUSANDS)
    panels[0].set_ylabel(f"queries per second, {fewest} thread{'s' if fewest > 1 else ''}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
