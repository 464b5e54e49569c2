"""Words and their translations, layer by layer: as the model is, by centring alone, and after an injection.

lexical/<lexicon>/mean/<layer>/<trained or held_out>/<metric>[_centred]   -+-> two charts by layer, a table
injected/<lexicon>/mean/<layer>/<trained or held_out>/<metric>            -+

The means over languages only; every language stands in the list of all metrics.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mmalign.report.charts import BLUE, GREEN, INK, MUTED, OCHRE, PLUM, STYLE, note, to_markup
from mmalign.report.measurement import Mark, look_up, mark
from mmalign.report.tables import Column, Row, Table, count_column
from mmalign.results.metric_names import MEAN, layers_of, subjects
from mmalign.results.results import Results

MEASURE, INJECTED = "lexical", "injected"
_SPLITS = {"trained": "trained words", "held_out": "held-out words"}
_METRICS = {"similarity_gain": "gain", "precision@1": "P@1"}
_PANELS = {
    "similarity_gain": "cosine of translations minus random pairs",
    "precision@1": "precision@1, a word finds its translation first",
}


@dataclass(frozen=True)
class _State:
    """One of the three that are compared: first part and end of its metrics' names, and its looks."""

    words: str
    measure: str
    suffix: str
    colors: dict[str, str]
    dashes: str
    marker: str


_STATES = (
    _State("as it is", MEASURE, "", {"trained": MUTED, "held_out": BLUE}, "--", "o"),
    _State("mean-centring only", MEASURE, "_centred", {"held_out": GREEN}, ":", "^"),
    _State("injected", INJECTED, "", {"trained": PLUM, "held_out": OCHRE}, "-", "s"),
)


@dataclass(frozen=True)
class LexicalPlot:
    """What the page shows of one lexicon; `is_injected`: whether words were trained on."""

    subject: str
    is_injected: bool
    chart: Markup
    table: Table


def lexical_plots(results: Results) -> list[LexicalPlot]:
    """Chart and table of each lexicon that was probed."""
    plots = []
    for subject in subjects(results.metrics, MEASURE):
        probed = layers_of(results.metrics, MEASURE, subject)
        is_injected = subject in subjects(results.metrics, INJECTED)
        chart = _draw(results, subject, probed)
        plots.append(LexicalPlot(subject, is_injected, chart, _table(results, subject, probed)))
    return plots


def _head(state: _State, subject: str) -> str:
    return f"{state.measure}/{subject}/{MEAN}"


def _table(results: Results, subject: str, layers: list[str]) -> Table:
    """A row a layer, a group of columns a state."""
    measured = [one for one in _STATES if subject in subjects(results.metrics, one.measure)]
    columns = [
        Column(
            f"{heading}, {words.partition(' ')[0]}",
            ((_head(state, subject), f"{split}/{metric}{state.suffix}"),),
            group=state.words,
        )
        for state in measured
        for metric, heading in _METRICS.items()
        for split, words in _SPLITS.items()
    ]
    asked = ((_head(_STATES[0], subject), "held_out/precision@1"),)
    columns += [Column("chance of P@1", asked, "chance"), count_column(asked)]
    rows = []
    for layer in layers:
        found = [[look_up(results, f"{a}/{layer}/{b}") for a, b in one.paths] for one in columns]
        rows.append(Row(layer, _name(layer), [[one for one in ones if one] for ones in found]))
    return Table("layer", columns, [], rows)


def _draw(results: Results, subject: str, layers: list[str]) -> Markup:
    """Two panels side by side, one line a state and split."""
    marks: list[Mark] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        panels = figure.subplots(1, len(_PANELS))
        for place, (metric, title) in enumerate(_PANELS.items()):
            axes = panels[place]
            for state in _STATES:
                for split, color in state.colors.items():
                    tail = f"{split}/{metric}{state.suffix}"
                    label = f"{state.words}, {_SPLITS[split]}" if place == 0 else None
                    points = _points(results, f"{_head(state, subject)}/", tail, layers, state)
                    _draw_line(axes, layers, points, state, color, label, marks)
            _finish(axes, title, layers, metric == "precision@1")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, labelcolor=INK)
        words = f"Words of {subject} by layer: {' and '.join(_PANELS.values())}"
        return to_markup(figure, f"lexical-{subject}", words, marks)


def _points(
    results: Results, head: str, tail: str, layers: list[str], state: _State
) -> dict[str, tuple[float, Mark]]:
    """Layer -> (value, what the point says)."""
    points = {}
    split = _SPLITS[tail.partition("/")[0]]
    for layer in layers:
        one = look_up(results, f"{head}{layer}/{tail}")
        if one:
            points[layer] = one.value, mark(one, f"{_name(layer)}, {state.words}, {split}")
    return points


def _draw_line(
    axes: Any,
    layers: list[str],
    points: dict[str, tuple[float, Mark]],
    state: _State,
    color: str,
    label: str | None,
    marks: list[Mark],
) -> None:
    """A line through the layers; the feature stands beside it."""
    inner = [(layers.index(at), y) for at, (y, _) in points.items() if at.isdigit()]
    if inner:
        axes.plot(*zip(*inner, strict=True), color=color, linestyle=state.dashes, linewidth=1.3)
    for at, (y, words) in points.items():
        own = label if at == next(iter(points)) else None
        style: dict[str, Any] = {"color": color, "linestyle": state.dashes, "label": own}
        shape = state.marker if at.isdigit() else "D"
        (point,) = axes.plot([layers.index(at)], [y], marker=shape, markersize=5, **style)
        point.set_gid(note(marks, words))


def _finish(axes: Any, title: str, layers: list[str], is_share: bool) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer (0: the embeddings of the tokens)")
    axes.margins(y=0.1)
    axes.axhline(0, color=MUTED, linewidth=0.7)
    if is_share:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _name(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else layer
