"""What the page says about each measure: a declared list of sections, each with one table per set.

Results -> metric names -> Section.place -> Table -> Section.chart -> Markup
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from markupsafe import Markup

from mmalign.core.languages import labelled
from mmalign.report.charts import Line, draw_bars, draw_heat_map, draw_lines, highest_first
from mmalign.report.measurement import Measurement, measurements
from mmalign.report.tables import Place, Table, pivot, under_perturbation
from mmalign.results import metric_names as parts
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_WORD_METRICS = {"similarity_gain": "cosine gain", "precision@1": "precision@1"}
_WITHIN_OR_ACROSS = ("_within", "_across")  # event causality: where the two events of a pair are
# Below this mean recall@1 the first hit says little, and the tile shows recall@10.
_FEW_HITS = 0.1
# A map of more languages cannot be read on a page.
_LARGEST_MAP = 40
_MOST_ROWS = 400  # pairs of 20 languages; the list of all metrics has the others
# What the model itself compares; sorted behind its layers.
_OUTPUT = "output of the model (feature)"


def _by_setting(_: Results, name: MetricName) -> Place | None:
    group = " ".join(DIRECTIONS.get(part, part) for part in name.setting)
    return str(name.language), group, name.metric.replace("_", " ")


def _by_variant(results: Results, name: MetricName) -> Place | None:
    """The primary metric of a text task, which is the one with a chance level, by perturbation.

    Under a perturbation it is that of the rows which changed, beside the clean one of these rows and how many
    they are.
    """
    if name.setting == (parts.GENERALISED,):
        return None
    variant, head = name.setting[0], f"{name.prefix}/{parts.MEAN}/clean/"
    if variant != "clean" and (words := under_perturbation(name.metric)):
        of_task = (one.removeprefix(head) for one in results.chance if one.startswith(head))
        return str(name.language), next(of_task, ""), f"{variant}, {words}"
    end = next((end for end in _WITHIN_OR_ACROSS if name.metric.endswith(end)), "")
    primary = name.metric.removesuffix(end)
    if (
        str(replace(name, language=parts.MEAN, setting=("clean",), metric=primary))
        not in results.chance
    ):
        return None
    place = f", {end[1:]} sentences" if end else ""
    return str(name.language), primary, f"{variant}{place}"


def _by_state(_: Results, name: MetricName) -> Place | None:
    """Words by layer, means over languages: the model as it is, mean-centred only, after an injection."""
    metric = name.metric.removesuffix("_centred")
    if name.language != parts.MEAN or metric not in _WORD_METRICS:
        return None
    layer, split = name.setting
    state = "injected" if name.measure == "injected" else "as it is"
    if metric != name.metric:
        # An injection is compared with centring alone, not with itself centred.
        state = "only mean-centred" if state == "as it is" else ""
    heading = f"{state}, {split.replace('_', ' ')}"
    return (_layer(layer), _WORD_METRICS[metric], heading) if state else None


def _layer(part: str) -> str:
    return f"layer {part}" if part.isdigit() else _OUTPUT


def _by_index(_: Results, name: MetricName) -> Place | None:
    index, direction = name.setting
    return (index, DIRECTIONS[direction], name.metric) if name.language == parts.MEAN else None


def _by_probe(_: Results, name: MetricName) -> Place | None:
    words = {"linear": "logistic regression", "knn": "nearest images"}
    return words[name.setting[0]], "", name.metric.replace("_", " ")


@dataclass(frozen=True)
class Section:
    """One section of the page; its table, its tiles and the link to it follow from these fields."""

    measure: str  # first part of the metrics' names
    title: str
    words: str  # how to read the section
    # Label of its tiles; empty: the groups of columns; None: a section without tiles.
    tile: str | None = None
    chart: Callable[[str, str, Table], Markup | None] | None = None  # from name, title and table
    legend: str = ""  # how to read the chart
    # Where a metric stands in the table; None leaves it out.
    place: Callable[[Results, MetricName], Place | None] = _by_setting
    noun: str = "language"  # what a row of the table is
    also: str = ""  # another measure in the same tables


def measured_sections(
    results: Results, seen: Mapping[str, int]
) -> dict[Section, list[dict[str, Any]]]:
    """The sections that have something to show, each with what `_subject` gives for its sets.

    Args:
        seen: captions in training by language.
    """
    parsed: dict[tuple[str, str], dict[MetricName, Measurement]] = defaultdict(dict)
    for name, one in sorted(measurements(results, MetricName.parse).items(), key=str):
        if name.language != parts.PUBLISHED:
            parsed[name.measure, name.subject][name] = one
    known = parts.known_languages(results.metrics)
    sections: dict[Section, list[dict[str, Any]]] = {}
    for section in SECTIONS:
        for measure, subject in [key for key in parsed if key[0] == section.measure]:
            both = parsed[measure, subject] | parsed.get((section.also, subject), {})
            table = pivot(both, partial(section.place, results), section.noun, known)
            if measure == "retrieval":
                table = replace(table, seen=seen)
            if table.columns:
                sections.setdefault(section, []).append(_subject(section, subject, table))
    return sections


def _subject(section: Section, subject: str, table: Table) -> dict[str, Any]:
    """The table of one set or task, its chart, its tiles, and how many rows were left out."""
    name, protocol, words = subject, None, subject
    if section.measure == "retrieval":  # `xm3600@first-caption` is xm3600 by that protocol
        name, _, mark = subject.partition("@")
        protocol = mark or "all-captions"
        words = f"{name}, {protocol}"
    draw = section.chart or (lambda *_: None)
    left_out = len(table.rows) if len(table.rows) > _MOST_ROWS else 0
    return {
        "name": name,
        "protocol": protocol,
        "chart": draw(f"{section.measure}-{subject}", f"{section.title}: {words}", table),
        "table": replace(table, rows=[]) if left_out else table,
        "tiles": list(_tiles(section, words, table)),
        "left_out": left_out,
    }


def _tiles(section: Section, subject: str, table: Table) -> Iterator[tuple[Any, ...]]:
    """(label, metric, set, mean over languages, mean of the worst five) of every group's first column."""
    sums = {row.part: dict(zip(table.columns, row.cells, strict=True)) for row in table.means}
    means = sums.get(parts.MEAN, {})
    for group in table.groups if section.tile is not None else ():
        column, tenth = next(one for one in table.columns if one[0] == group), (group, "recall@10")
        if (first := means.get(column)) and first.value < _FEW_HITS and means.get(tenth):
            column = tenth
        if measured := means.get(column):
            metric = ", ".join(filter(None, column)) if section.tile else column[1]
            over = f"{subject}, mean of {len(table.rows)} {section.noun}s"
            worst = sums.get(parts.WORST5, {}).get(column)
            yield section.tile or group, metric, over, measured, worst


def _bars(headings: Sequence[str], name: str, title: str, table: Table) -> Markup | None:
    """Bars of the rows that have every column with one of these headings."""
    shown = {column: at for at, column in enumerate(table.columns) if column[1] in headings}
    rows = {
        labelled(row.part): {c[0] or c[1]: one for c, at in shown.items() if (one := row.cells[at])}
        for row in table.rows
    }
    rows = {row: cells for row, cells in rows.items() if len(cells) == len(shown)}
    # Several metrics of one row have several chance levels: the table shows them.
    ones = [row.cells[at] for row in table.means if row.part == parts.MEAN for at in shown.values()]
    chances = {one.chance for one in ones if one and one.chance} if len(headings) == 1 else ()
    return draw_bars(name, title, highest_first(rows), sorted(chances)) if shown and rows else None


def _map(name: str, title: str, table: Table) -> Markup | None:
    """A heat map of the first column: the languages with most queries, those with the best mean first."""
    cells = {row.pair: one for row in table.rows if row.pair and (one := row.cells[0])}
    ones = {lang: [one for pair, one in cells.items() if lang in pair] for p in cells for lang in p}
    most = sorted(ones, key=lambda lang: (-sum(one.count for one in ones[lang]), lang))
    best = sorted(
        most[:_LARGEST_MAP],
        key=lambda lang: (-sum(one.value for one in ones[lang]) / len(ones[lang]), lang),
    )
    inside = {pair: one for pair, one in cells.items() if set(pair) <= set(best)}
    rows, columns = ({lang: label(lang) for lang in best} for label in (labelled, str))
    return draw_heat_map(name, title, rows, columns, inside) if inside else None


def _lines(name: str, title: str, table: Table) -> Markup:
    """A panel per group of columns, a line per column, over the layers."""
    panels: dict[str, list[Line]] = {group: [] for group in table.groups}
    for at, (group, heading) in enumerate(table.columns):
        ones = [(x, one) for x, row in enumerate(table.rows) if (one := row.cells[at])]
        # The output is no layer: it has a point, and the line ends before it.
        inner = [(x, one.value) for x, one in ones if table.rows[x].part != _OUTPUT]
        line = Line(heading, [x for x, _ in inner], [y for _, y in inner], ones)
        panels[group].append(line)
    ticks = [row.part.removeprefix("layer ").partition(" ")[0] for row in table.rows]
    return draw_lines(name, title, panels, height=3.4 + 0.8 * (len(panels) > 1), ticks=ticks)


_WHISKERS = "Whiskers are 95 % intervals, diamonds the same model before training"
SECTIONS = (
    Section(
        "retrieval",
        "Retrieval",
        "How often the right image (or a right caption) is among the first k. “Worst five” is the "
        "mean of the five lowest languages.",
        tile="",
        chart=partial(_bars, ("recall@1",)),
        legend=f"recall@1 by language, best first. {_WHISKERS}, the dotted line is chance.",
    ),
    Section(
        "zero_shot",
        "Classification by class names",
        "An image is sorted into the class whose name, in the language of the row, is nearest; no "
        "classifier is trained. Languages may name different numbers of classes.",
        tile="image to class",
        chart=partial(_bars, ("accuracy@1", "accuracy@5")),
        legend=f"Accuracy by language of the class names, best first. {_WHISKERS}.",
    ),
    Section(
        parts.PROBE,
        "Probes of image embeddings",
        "How often a classifier that was trained on embeddings of training images is right on test "
        "images: logistic regression, or the majority of the nearest training images. Mean per-class "
        "recall: every class of the test images counts alike.",
        place=_by_probe,
        noun="probe",
    ),
    Section(
        "alignment",
        "Alignment between languages",
        "bitext@1: how often a caption finds the caption of the same image in another language first; "
        "CSLS corrects hubs. Translation gap: cosine of translations minus that of random captions, "
        "also with each language centred. CKA: centred kernel alignment.",
        tile="caption to caption",
        chart=_map,
        legend="bitext@1 in percent. Rows are queries, columns the pool; languages by their mean, "
        "best first; grey: not measured. At most 40 languages, those with most queries.",
        noun="pair",
    ),
    Section(
        "layers",
        "Layers of the text tower",
        "bitext@1 by layer, mean over ordered pairs of languages, for each way of pooling tokens.",
        chart=_lines,
        legend="The last point is the feature that the model itself compares.",
        place=lambda _, name: (_layer(name.setting[0]), name.metric, f"{name.setting[1]} pooling"),
        noun="layer",
    ),
    Section(
        "geometry",
        "Geometry of the space",
        "Isotropy: 1 where captions spread equally in all directions, 0 along one line. Modality gap: "
        "from the mean image to the mean caption, 0 to 2. Alignment: squared distance of captions to "
        "images; uniformity: how evenly captions cover the sphere; for both, less is better.",
    ),
    Section(
        "words",
        "Single words",
        "How often a word finds one of its translations first among all words of the other language.",
        noun="pair",
    ),
    Section(
        "lexical",
        "Words by layer",
        "Cosine gain: cosine of translations minus that of random pairs. Precision@1: how often a "
        "word finds its translation first. Held-out words share nothing with the words that an "
        "injection was trained on. Mean-centring needs no training; an injection has to be better.",
        chart=_lines,
        legend="Means over languages. The last point is the feature that the model itself gives.",
        place=_by_state,
        noun="layer",
        also="injected",
    ),
    Section(
        "text",
        "Zero-shot transfer",
        "Trained on the labels of one language, tested in the others. A task named `_unseen` holds "
        "items that were never trained on. Chance is the share of the most frequent label. Under a "
        "perturbation or an attack only the rows count that it changed, or has candidates for; means leave "
        "out languages with fewer than 50 of them.",
        tile="zero-shot transfer",
        place=_by_variant,
    ),
    Section(
        "faiss",
        "Search indexes",
        "What an index costs the task: mean recall by index and search parameters, against “exact”.",
        place=_by_index,
        noun="index",
    ),
)
