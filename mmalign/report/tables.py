"""Tables of measurements: a row a language (or a pair, or an index), a column a metric or a field of one.

    Results, columns -> Table -> templates/macros.html.j2

Everything here is looked up, nothing is estimated anew. Means over languages stand in a group of their
own above the languages, so that sorting the languages leaves them where they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from mmalign.core.languages import language_name, own_name
from mmalign.report.measurement import (
    UNTRAINED,
    Measurement,
    look_up,
    row_name,
    shown,
)
from mmalign.results.metric_names import (
    ALL,
    MEAN,
    WORST5,
    is_aggregate,
    languages,
    split_pair,
    subjects,
)
from mmalign.results.results import Results

# A longer table is folded and gets a box that filters it.
LONG = 30
_MEANS = (MEAN, WORST5, ALL)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        paths: what stands before and after the row's part in the names of the metrics; a cell holds all
            of them that differ in what is shown, which is how counts of two directions share a column.
        field: which field of the measurements is shown.
        group: the words above several neighbouring columns.
        has_intervals: the cell shows the 95 % interval below the value.
    """

    heading: str
    paths: tuple[tuple[str, str], ...]
    field: str = "value"
    group: str = ""
    has_intervals: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its part of the metrics' names, its name in words, and the measurements of each cell."""

    part: str
    name: str
    cells: list[list[Measurement]]
    code: str | None = None
    own: str | None = None


@dataclass(frozen=True)
class Table:
    """A table as the template draws it.

    Attributes:
        first: heading of the first column.
        means: rows that stand above the others and are never sorted.
        seen: captions in training by language; empty where the table does not show them.
    """

    first: str
    columns: list[Column]
    means: list[Row]
    rows: list[Row]
    seen: Mapping[str, int] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """The columns, neighbours with the same words above them together."""
        return [(name, list(of)) for name, of in groupby(self.columns, key=lambda one: one.group)]

    @property
    def is_long(self) -> bool:
        """Whether the table is folded and can be filtered."""
        return len(self.rows) > LONG


def language_rows(results: Results, columns: Sequence[Column], parts: Sequence[str]) -> list[Row]:
    """A row for each language or aggregate that was measured, in the order given."""
    rows = [_row(results, columns, part) for part in parts]
    return [row for row in rows if any(row.cells)]


def language_table(
    results: Results,
    columns: Sequence[Column],
    parts: Sequence[str],
    seen: Mapping[str, int] | None = None,
) -> Table:
    """The means, then the languages by name."""
    means = language_rows(results, columns, [part for part in _MEANS if part in parts])
    spoken = sorted((one for one in parts if not is_aggregate(one)), key=row_name)
    return Table(
        "language", list(columns), means, language_rows(results, columns, spoken), seen or {}
    )


def pair_table(results: Results, columns: Sequence[Column], pairs: Sequence[str]) -> Table:
    """The mean, then pairs of languages, `<a>-<b>`, as "Swahili → French"."""
    known = known_languages(results)
    rows = []
    for pair in (one for one in pairs if one != MEAN):
        a, b = split_pair(pair, known)
        cells = _row(results, columns, pair).cells
        rows.append(Row(pair, f"{language_name(a)} → {language_name(b)}", cells, pair))
    means = language_rows(results, columns, [MEAN])
    return Table("languages", list(columns), means, sorted(rows, key=lambda row: row.name))


def count_column(paths: Sequence[tuple[str, str]]) -> Column:
    """The column of the counts, which closes a table."""
    return Column("n", tuple(paths), "count")


def untrained_columns(results: Results, columns: Sequence[Column]) -> list[Column]:
    """The same metrics of the untrained model, if it was measured."""
    if UNTRAINED not in results.baselines:
        return []
    return [Column(one.heading, one.paths, UNTRAINED, "untrained") for one in columns]


def third_parts(results: Results, measure: str, subject: str) -> list[str]:
    """What stands in the third place of a subject's metrics: languages, pairs, aggregates, indexes."""
    prefix = f"{measure}/{subject}/"
    return sorted({name.split("/")[2] for name in results.metrics if name.startswith(prefix)})


def known_languages(results: Results) -> set[str]:
    """The languages of all measures that name one language at a time."""
    return {
        lang
        for measure in ("retrieval", "text", "zero_shot", "geometry")
        for one in subjects(results.metrics, measure)
        for lang in languages(results.metrics, measure, one)
    }


def _row(results: Results, columns: Sequence[Column], part: str) -> Row:
    cells = []
    for column in columns:
        found = [look_up(results, f"{head}/{part}/{tail}") for head, tail in column.paths]
        ones = [one for one in found if one and one.field(column.field) is not None]
        differing = {shown(one, column.field): one for one in reversed(ones)}
        cells.append([one for one in ones if one in differing.values()])
    if is_aggregate(part):
        return Row(part, row_name(part), cells)
    name = language_name(part)
    return Row(part, name, cells, None if name == part else part, own_name(part))
