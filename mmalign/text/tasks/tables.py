"""Tables of any publisher, row by row, each row knowing where it stands.

    .tsv, .csv, .jsonl, .json -> Row (cells by column; file and line for the error message) -> readers

Text files are UTF-8. Plain tab-separated files have no quoting: a quote is part of the text. Files
that a CSV library wrote have it, and are read by one.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: of the file, from 1; where the row ends if it covers several.
        number: of the row, from 1; a header does not count. Equal in files that are aligned by row.
        cells: by column; text, or whatever JSON holds.
    """

    path: Path
    line: int
    number: int
    cells: Mapping[str, Any]

    def error(self, what: str) -> UserError:
        """To raise: the file, the line, and what is wrong."""
        return UserError(f"{self.path}, line {self.line}: {what}")

    def cell(self, column: str) -> str:
        """The text in `column`; it may be empty."""
        value = self.cells.get(column)
        if not isinstance(value, str):
            raise self.error(f"`{column}` must be there and be text")
        return value

    def text(self, column: str) -> str:
        """The text in `column`; it must not be empty."""
        value = self.cells.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"`{column}` must be text and not empty")
        return value

    def name(self, column: str) -> str:
        """An identifier or a class in `column`, be it written as text or as a whole number."""
        value = self.cells.get(column)
        return str(value) if type(value) is int else self.text(column)

    def score(self, column: str) -> float:
        """The number in `column`."""
        value = self.cells.get(column)
        try:
            return float(value)  # type: ignore[arg-type]  # whatever it cannot read it refuses
        except (TypeError, ValueError):
            raise self.error(f"`{column}` is `{value}`; write a number") from None

    def renamed(self, column: str, names: Mapping[str, str]) -> str:
        """The class in `column` under our name; `names` holds every class that the set knows."""
        value = self.name(column)
        if value not in names:
            raise self.error(f"`{column}` is `{value}`; it must be one of {', '.join(names)}")
        return names[value]


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file.

    Split at line feeds alone: `splitlines` would also cut at U+2028 and others that texts may hold.
    """
    parts = read_text(path).split("\n")
    if parts[-1] == "":
        parts.pop()
    return [part.removesuffix("\r") for part in parts]


def read_text(path: Path) -> str:
    """What a UTF-8 file holds, its line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it") from None
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; it belongs to the one beside it, get both"
        ) from None


def tsv(path: Path, columns: Sequence[str] = (), skip_broken: bool = False) -> Iterator[Row]:
    """The rows of a tab-separated file without quoting.

    Args:
        columns: of a file that has no header line; else the header names them.
        skip_broken: leave out the rows of too few or too many cells, as the publisher's own reader
            does where the release is known to hold some.
    """
    numbered = ((number, line.split("\t")) for number, line in enumerate(lines(path), start=1))
    return _rows(path, numbered, columns, skip_broken)


def quoted(path: Path, columns: Sequence[str] = (), delimiter: str = "\t") -> Iterator[Row]:
    """The rows of a file that a CSV library wrote: cells may be quoted and hold line breaks."""
    return _rows(path, _parsed(path, delimiter), columns, False)


def jsonl(path: Path) -> Iterator[Row]:
    """The objects of a file with one JSON object a line."""
    for number, line in enumerate(lines(path), start=1):
        try:
            tree = json.loads(line)
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; write one a line")
        yield Row(path, number, number, tree)


def table(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl file or, whatever else it is called, of a .tsv file with a header."""
    return jsonl(path) if path.suffix == ".jsonl" else tsv(path)


def json_tree(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds."""
    try:
        tree = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not JSON ({error}); get the file again") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no JSON object at its top; get the file again")
    return tree


def _rows(
    path: Path,
    numbered: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    skip_broken: bool,
) -> Iterator[Row]:
    if not columns:
        columns = next(numbered, (0, []))[1]
    for number, (line, cells) in enumerate(numbered, start=1):
        if len(cells) == len(columns):
            yield Row(path, line, number, dict(zip(columns, cells, strict=True)))
        elif not skip_broken:
            raise UserError(
                f"{path}, line {line}: {len(cells)} columns; there must be {len(columns)}: "
                f"{', '.join(columns)}"
            )


def _parsed(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    parser = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for cells in parser:
            if cells:
                yield parser.line_num, cells
    except csv.Error as error:  # a quote that nothing closes makes a cell of the rest of the file
        raise UserError(f"{path}, line {parser.line_num}: {error}; get the file again") from None
