"""Charts as inline SVG: drawn by matplotlib, with text that stays text in the reader's own font.

    numbers -> Figure -> SVG without prologue, metadata and clashing ids -> Markup for the page

Equal numbers give equal bytes. Colour never carries a meaning alone: lines differ in dashes, marks
in shape, and cells bear numbers while they are large enough. A mark that stands for a metric holds the
metric's name and a title, which a browser shows with or without the page's script.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from mmalign.report.measurement import Mark

INK, MUTED, RULE = "#22272e", "#5d6673", "#dfe3e8"
BLUE, OCHRE, PLUM, GREEN = "#2b5c8a", "#c77c1e", "#7a4a7d", "#1f7a4d"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mmalign",
    "font.size": 9.5,
    # Names are strangers' text: a dollar sign in them starts no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_MARK = "mark-"
_LAYER_STYLES = ((BLUE, "-", "o"), (OCHRE, "--", "s"), (PLUM, "-.", "^"), (GREEN, ":", "v"))


@dataclass(frozen=True)
class Line:
    """One line of a curve chart; `label` is None where it stands alone."""

    steps: Sequence[float]
    values: Sequence[float]
    label: str | None = None
    color: str = BLUE
    dashed: bool = False


def draw_curve(name: str, title: str, line: Line, from_zero: bool = False) -> Markup:
    """One quantity over training steps, small.

    Args:
        name: distinguishes this chart's ids from those of the page's other charts.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.4), layout="constrained")
        axes = _draw_lines(figure, [line])
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if from_zero:
            axes.set_ylim(bottom=0)
        return to_markup(figure, name, f"{title} over training steps")


def draw_shares(name: str, title: str, lines: Sequence[Line]) -> Markup:
    """Several shares over training steps, in percent from 0 up, with a legend."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.8), layout="constrained")
        axes = _draw_lines(figure, lines)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        figure.legend(loc="outside right upper", fontsize=9, labelcolor=INK)
        return to_markup(figure, name, f"{title} over training steps")


def draw_layers(
    name: str,
    title: str,
    layers: Sequence[str],
    lines: Mapping[str, Mapping[str, tuple[float, Mark]]],
) -> Markup:
    """A share by layer, a line a pooling; what comes after the last layer stands beside the lines.

    Args:
        layers: the places on the axis: "0", "1", ..., and words such as "feature".
        lines: pooling -> layer -> (share, what the point says).
    """
    marks: list[Mark] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for place, (pooling, points) in enumerate(lines.items()):
            color, dashes, marker = _LAYER_STYLES[place % len(_LAYER_STYLES)]
            inner = [(layers.index(at), y) for at, (y, _) in points.items() if at.isdigit()]
            if inner:
                axes.plot(*zip(*inner, strict=True), color=color, linestyle=dashes, linewidth=1.3)
            for at, (y, words) in points.items():
                label = pooling if at == next(iter(points)) else None
                style: dict[str, Any] = {"color": color, "linestyle": dashes, "label": label}
                shape = marker if at.isdigit() else "D"
                (point,) = axes.plot([layers.index(at)], [y], marker=shape, markersize=6, **style)
                point.set_gid(note(marks, words))
        axes.set_xticks(range(len(layers)), layers)
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer of the text tower (0: the embeddings of the tokens)")
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        figure.legend(loc="outside right upper", fontsize=9, labelcolor=INK)
        return to_markup(figure, name, title, marks)


def note(marks: list[Mark], one: Mark) -> str:
    """Keep a mark, and the id by which `to_markup` finds its shape (`artist.set_gid`)."""
    marks.append(one)
    return f"{_MARK}{len(marks) - 1}"


def to_markup(figure: Figure, name: str, label: str, marks: Sequence[Mark] = ()) -> Markup:
    """The figure as an `<svg>` element that can stand beside others in one HTML page.

    Args:
        marks: by the number in the ids of `note`; they become `data-metric` and `<title>`.
    """
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # The page's own style and fonts hold in here as well.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"|font-family: [^;"]*;? ?', "", svg).replace(
        "xlink:href", "href"
    )
    svg = re.sub(rf'<g id="{_MARK}(\d+)">', lambda m: _open_mark(marks[int(m[1])]), svg)
    # Only ids that something points to are needed, and each chart needs its own.
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    own = re.sub(r"[^\w-]", "-", name)
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{own}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{own}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def _open_mark(one: Mark) -> str:
    title = f'<title data-field="value">{escape(one.words)}</title>'
    return f'<g data-metric="{escape(one.metric)}">{title}'


def _draw_lines(figure: Figure, lines: Sequence[Line]) -> Any:
    axes = figure.add_subplot()
    for line in lines:
        axes.plot(
            line.steps,
            line.values,
            color=line.color,
            linewidth=1.5,
            linestyle="--" if line.dashed else "-",
            # Few points are measurements far apart: show where they are.
            marker="o" if len(line.steps) <= 25 else None,
            markersize=3,
            label=line.label,
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return axes
