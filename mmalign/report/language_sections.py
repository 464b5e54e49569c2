"""How languages lie to each other: alignment of captions, geometry of the space, layers, words.

alignment/<set>/<a>-<b> or mean/<metric>            -> a heat map of bitext@1, a table of means
geometry/<set>/<language or mean>/<metric>          -> a table
layers/<set>/<layer or feature>/<pooling>/bitext@1  -> a line a pooling
words/<dictionary>/<a>-<b> or mean/translation@1    -> a table
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmalign.core.languages import labelled
from mmalign.report.charts import draw_layers
from mmalign.report.heat_map import draw_heat_map
from mmalign.report.measurement import UNTRAINED, Measurement, look_up, mark
from mmalign.report.tables import (
    Column,
    Row,
    Table,
    count_column,
    known_languages,
    language_table,
    pair_table,
    third_parts,
    untrained_columns,
)
from mmalign.results.metric_names import MEAN, split_pair, subjects
from mmalign.results.results import Results

_BITEXT = "bitext@1"
_WORDS_OF = {
    _BITEXT: "caption finds its translation, cosine (bitext@1), %",
    "bitext_csls@1": "the same, hubs corrected (CSLS), %",
    "translation_gap": "translation minus random caption, cosine",
    "translation_gap_centred": "the same, each language centred",
    "cka": "centred kernel alignment (CKA)",
    "isotropy": "isotropy",
    "modality_gap": "modality gap",
    "alignment": "alignment",
    "uniformity": "uniformity",
}
_GEOMETRY = ("isotropy", "modality_gap", "alignment", "uniformity")
# A matrix of more languages cannot be read on a page.
_LARGEST_MATRIX = 40


@dataclass(frozen=True)
class Matrix:
    """bitext@1 between languages.

    Attributes:
        shown: the languages of the chart, best ones first; of: how many languages there are.
        best, worst: (words, measurement) of the pairs with the highest and the lowest value.
    """

    subject: str
    chart: Markup
    shown: list[str]
    of: int
    mean: Measurement | None
    best: tuple[str, Measurement]
    worst: tuple[str, Measurement]
    means: Table


def alignments(results: Results) -> list[Matrix]:
    """Heat map and means of each set; shown are at most the 40 languages with most queries."""
    found = [_matrix(results, subject) for subject in subjects(results.metrics, "alignment")]
    return [one for one in found if one]


def geometries(results: Results) -> list[tuple[str, Table]]:
    """(set, table) of what the space looks like, a row a language."""
    sections = []
    for subject in subjects(results.metrics, "geometry"):
        head = f"geometry/{subject}"
        known = {name.rpartition("/")[2] for name in results.metrics if name.startswith(f"{head}/")}
        measured = [metric for metric in _GEOMETRY if metric in known]
        columns = [Column(_WORDS_OF[metric], ((head, metric),)) for metric in measured]
        columns += untrained_columns(results, columns)
        columns.append(count_column([(head, metric) for metric in measured]))
        parts = third_parts(results, "geometry", subject)
        sections.append((subject, language_table(results, columns, parts)))
    return sections


def layer_plots(results: Results) -> list[dict[str, Any]]:
    """Chart and table of each set: bitext@1 by layer, a line a pooling."""
    plots = []
    for subject in subjects(results.metrics, "layers"):
        layers = sorted(third_parts(results, "layers", subject), key=_place_of_layer)
        names = [
            name.split("/") for name in results.metrics if name.startswith(f"layers/{subject}/")
        ]
        poolings = sorted({parts[3] for parts in names})
        lines: dict[str, dict[str, Any]] = {pooling: {} for pooling in poolings}
        for pooling in poolings:
            for layer in layers:
                one = look_up(results, f"layers/{subject}/{layer}/{pooling}/{_BITEXT}")
                if one:
                    lines[pooling][layer] = one.value, mark(one, f"{_layer(layer)}, {pooling}")
        title = f"{_BITEXT} on {subject} by layer of the text tower"
        chart = draw_layers(f"layers-{subject}", title, layers, lines)
        table = _layer_table(results, subject, layers, poolings)
        plots.append({"subject": subject, "chart": chart, "table": table})
    return plots


def dictionaries(results: Results) -> list[tuple[str, Table]]:
    """(dictionary, table) of the words that find their translation, a row a pair."""
    sections = []
    for subject in subjects(results.metrics, "words"):
        path = ((f"words/{subject}", "translation@1"),)
        value = Column("translation@1", path, has_intervals=True)
        columns = [value, *untrained_columns(results, [value]), Column("chance", path, "chance")]
        columns.append(count_column(path))
        parts = third_parts(results, "words", subject)
        sections.append((subject, pair_table(results, columns, parts)))
    return sections


def _matrix(results: Results, subject: str) -> Matrix | None:
    cells = _cells(results, subject)
    if not cells:
        return None
    queries: dict[str, int] = defaultdict(int)
    values: dict[str, list[float]] = defaultdict(list)
    for pair, one in cells.items():
        for lang in pair:
            queries[lang] += one.count
            values[lang].append(one.value)
    largest = sorted(queries, key=lambda lang: (-queries[lang], lang))[:_LARGEST_MATRIX]
    shown = sorted(largest, key=lambda lang: (-sum(values[lang]) / len(values[lang]), lang))
    said = {pair: (one.value, mark(one, _arrow(pair))) for pair, one in cells.items()}
    ordered = sorted(cells, key=lambda pair: (cells[pair].value, pair))
    title = f"{_BITEXT} on {subject} between {len(shown)} languages"
    return Matrix(
        subject=subject,
        chart=draw_heat_map(f"alignment-{subject}", shown, said, title),
        shown=shown,
        of=len(queries),
        mean=look_up(results, f"alignment/{subject}/{MEAN}/{_BITEXT}"),
        best=(_arrow(ordered[-1]), cells[ordered[-1]]),
        worst=(_arrow(ordered[0]), cells[ordered[0]]),
        means=_means(results, subject),
    )


def _cells(results: Results, subject: str) -> dict[tuple[str, str], Measurement]:
    known = known_languages(results)
    cells = {}
    for pair in third_parts(results, "alignment", subject):
        one = look_up(results, f"alignment/{subject}/{pair}/{_BITEXT}")
        if one and pair != MEAN:
            cells[split_pair(pair, known)] = one
    return cells


def _arrow(pair: tuple[str, str]) -> str:
    return f"{labelled(pair[0])} → {labelled(pair[1])}"


def _means(results: Results, subject: str) -> Table:
    """A row a measure: the mean over all ordered pairs, by every measure that was taken."""
    heading = {"value": "mean of pairs", UNTRAINED: "untrained", "chance": "chance", "count": "n"}
    found = [(m, look_up(results, f"alignment/{subject}/{MEAN}/{m}")) for m in _WORDS_OF]
    measured = [(metric, one) for metric, one in found if one]
    columns = [
        Column(words, (), field, has_intervals=field == "value")
        for field, words in heading.items()
        if any(one.field(field) is not None for _, one in measured)
    ]
    rows = []
    for metric, one in measured:
        cells = [[one] if one.field(column.field) is not None else [] for column in columns]
        rows.append(Row(metric, _WORDS_OF[metric], cells))
    return Table("measure", columns, [], rows)


def _layer_table(
    results: Results, subject: str, layers: Sequence[str], poolings: Sequence[str]
) -> Table:
    head = f"layers/{subject}"
    columns = [Column(one, ((head, f"{one}/{_BITEXT}"),)) for one in poolings]
    columns.append(count_column([(head, f"{one}/{_BITEXT}") for one in poolings]))
    rows = []
    for layer in layers:
        found = [[look_up(results, f"{a}/{layer}/{b}") for a, b in one.paths] for one in columns]
        cells = [[one for one in ones if one][:1] for ones in found]
        rows.append(Row(layer, _layer(layer), cells))
    return Table("layer", columns, [], rows)


def _layer(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else f"{layer} (what the model compares)"


def _place_of_layer(layer: str) -> tuple[bool, int, str]:
    """Layers by number, then what is no layer."""
    return not layer.isdigit(), int(layer) if layer.isdigit() else 0, layer
