"""The one table of the pages: rows and columns are parts of the metrics' names, cells are measurements.

parsed name -> measurement, place(name) -> row and column -> Table -> templates/macros.html.j2
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmalign.core.languages import language_name, own_name
from mmalign.report.measurement import AGGREGATES, Measurement, N
from mmalign.results.metric_names import FAMILY, is_aggregate, split_pair

_LAST = ("untrained", "chance")
_WIDE = 5  # more columns leave no space for intervals below the values
# These come first, in this order; other rows and columns follow by name.
_FIRST = (
    *(*AGGREGATES, "text to image", "image to text", "accuracy", "clean", "bitext@1"),
    *("as it is, trained", "as it is, held out", "injected, trained", "injected, held out"),
)

Place = tuple[str, str, str]
"""Row, group of columns, heading."""


@dataclass(frozen=True)
class Row:
    part: str  # of the metrics' names
    name: str  # the same in words
    cells: list[Measurement | None]
    code: str | None = None  # stands beside the name
    own: str | None = None  # a language's name in itself
    pair: tuple[str, str] | None = None  # the languages of a row about two


@dataclass(frozen=True)
class Table:
    """A table as the template draws it.

    Attributes:
        columns: (words above several neighbouring columns, heading).
        seen: captions in training by language; empty where the table does not show them.
    """

    noun: str  # what a row is: `language`, `pair`, `layer`, `index`
    columns: list[tuple[str, str]]
    means: list[Row]  # rows that sum up others, which sorting leaves in their place
    rows: list[Row]
    seen: Mapping[str, int] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, int]:
        """The words above the columns, and over how many columns they stand."""
        return dict(Counter(group for group, _ in self.columns))

    @property
    def has_room(self) -> bool:
        # For intervals below the values; the tooltips show them in any case.
        return len(self.columns) <= _WIDE

    @property
    def last(self) -> list[str]:
        """The fields that have columns of their own, which describe the first metric of a row."""
        cells = [cell for row in (*self.means, *self.rows) for cell in row.cells if cell]
        known = {field for cell in cells for field in _LAST if cell.field(field) is not None}
        return [*(field for field in _LAST if field in known), "count"]


def pivot(
    measured: Mapping[N, Measurement],
    place: Callable[[N], Place | None],
    noun: str,
    known: Iterable[str] = (),
    notes: Mapping[str, str | None] | None = None,
) -> Table:
    """The table of some metrics.

    Args:
        place: where a name stands; None for names that the table leaves out.
        known: languages, by which pairs such as `pt-BR-sw` are split.
        notes: row -> words beside its name; rows then keep the order of the names.
    """
    cells: dict[str, dict[tuple[str, str], Measurement]] = defaultdict(dict)
    for name, one in measured.items():
        if at := place(name):
            cells[at[0]][at[1:]] = one
    columns = sorted({column for row in cells.values() for column in row}, key=_order)
    rows = []
    for part, of_row in cells.items():
        row = _named(part, noun, known, [of_row.get(column) for column in columns])
        rows.append(replace(row, code=notes.get(part)) if notes else row)
    sums = sorted((one for one in rows if is_aggregate(one.part)), key=lambda row: _order(row.part))
    others = [one for one in rows if not is_aggregate(one.part)]
    if notes is None:  # else the order is the author's
        others.sort(key=lambda row: _order(row.name))
    return Table(noun, columns, sums, others)


def under_perturbation(metric: str) -> str | None:
    """The heading of a metric that belongs to a score under a perturbation; None: of another metric."""
    headings = {
        "changed_share": "rows changed",
        "attackable_share": "rows attackable",
        "success_rate": "success rate",
        "queries": "queries a row",
    }
    return "clean, same rows" if metric.endswith("_clean") else headings.get(metric)


def _named(part: str, noun: str, known: Iterable[str], cells: list[Measurement | None]) -> Row:
    if is_aggregate(part):
        return Row(part, AGGREGATES.get(part, part.removeprefix(FAMILY)), cells)
    if noun == "pair":
        pair = split_pair(part, known)
        return Row(part, " → ".join(map(language_name, pair)), cells, part, pair=pair)
    if noun != "language":
        return Row(part, part, cells)
    name = language_name(part)
    return Row(part, name, cells, None if name == part else part, own_name(part))


def _order(words: str | tuple[str, ...]) -> list[Any]:
    """A key that sorts `layer 10` after `layer 9`, and `_FIRST` before everything else."""
    if not isinstance(words, str):
        return [_order(part) for part in words]
    rank = _FIRST.index(words) if words in _FIRST else len(_FIRST)
    return [rank, *(int(one) if one.isdigit() else one for one in re.split(r"(\d+)", words))]
