"""Tables of any publisher (.tsv, .csv, .jsonl, .json), row by row; each row knows its file and line."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.text.tasks.codes import bcp47

# Digits alone: `float` would also read `nan`, `inf` and `1_0`.
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)

# Tokenizers and hashes fail on halves of surrogate pairs, which JSON can write.
UNUSABLE = re.compile("[\0\ud800-\udfff]")

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: of the file, from 1; where the row ends if it covers several.
        number: of the row, from 1; a header does not count. Equal in files that are aligned by row.
        cells: by column; text, or any value that JSON holds.
    """

    path: Path
    line: int
    number: int
    cells: Mapping[str, Any]

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"

    def error(self, what: str) -> UserError:
        return UserError(f"{self.place}: {what}")

    def cell(self, column: str) -> str:
        """The text in `column`; it may be empty."""
        value = self.cells.get(column)
        if not isinstance(value, str):
            raise self.error(f"`{column}` is missing or not text")
        return value

    def text(self, column: str) -> str:
        """The text in `column`; it must not be empty."""
        value = self.cells.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"`{column}` must be text and not empty")
        return value

    def name(self, column: str) -> str:
        """An identifier or a class in `column`, written as text or as a whole number."""
        value = self.cells.get(column)
        return str(value) if type(value) is int else self.text(column)

    def score(self, column: str) -> float:
        value: Any = self.cells.get(column)
        is_number = (
            _NUMBER.fullmatch(value) if isinstance(value, str) else type(value) in (int, float)
        )
        number = float(str(value)) if is_number else math.nan  # `1e400` is infinite
        if not math.isfinite(number):
            raise self.error(f"`{column}` is `{value}`; write a number")
        return number

    def language(self, column: str) -> str:
        """The language code in `column` as BCP-47."""
        code = self.text(column).strip()
        if not is_language_code(bcp47(code)):
            raise self.error(f"`{column}` is `{code}`; write a language code")
        return bcp47(code)

    def renamed(self, column: str, names: Mapping[str, T]) -> T:
        """The class in `column` under our name; `names` holds every class of the set."""
        value = self.name(column).strip()
        if value not in names:
            raise self.error(f"`{column}` is `{value}`; it must be one of {', '.join(names)}")
        return names[value]


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends."""
    # Split at line feeds alone: `splitlines` would also cut at U+2028 and others that texts may hold.
    parts = read_text(path).split("\n")
    if parts[-1] == "":
        parts.pop()
    return [part.removesuffix("\r") for part in parts]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file with its line ends as they are, without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get it with the file beside it") from None


def rows(
    path: Path, columns: Sequence[str] = (), quoted: bool = False, skip_broken: bool = False
) -> Iterator[Row]:
    """The rows of a table: one JSON object per line in .jsonl files, else cells split by a delimiter.

    Args:
        columns: of a file without a header line; otherwise the header names them.
        quoted: a CSV library wrote the file: cells may be quoted and hold line breaks. The delimiter
            is a comma in .csv files and a tab in others.
        skip_broken: leave out the rows of too few or too many cells, as the publisher's own reader
            does where the release is known to hold some.
    """
    if path.suffix == ".jsonl":
        for n, text in enumerate(lines(path), start=1):
            yield Row(path, n, n, _json_object(text, f"{path}, line {n}", "write one per line"))
        return
    delimiter = "," if path.suffix == ".csv" else "\t"
    if quoted:
        numbered = _parsed(path, delimiter)
    else:  # a file of one column has no delimiter: a tab is part of the text
        limit = 0 if len(columns) == 1 else -1
        numbered = ((n, line.split("\t", limit)) for n, line in enumerate(lines(path), start=1))
    columns = columns or next(numbered, (0, []))[1]
    for number, (line, cells) in enumerate(numbered, start=1):
        for before, cell in enumerate(cells if quoted else ()):
            inside = [part.count(delimiter) for part in cell.rstrip("\n").split("\n")]
            last, breaks = len(columns) - 1, len(inside) - 1
            # The rest of its row, whole rows, and the start of one: nothing closes its quotation mark.
            if breaks and inside == [last - before, *[last] * (breaks - 1), before]:
                raise UserError(
                    f"{path}, line {line - breaks}: a quotation mark opens here and closes in line "
                    f"{line}, behind other rows; remove it or double it"
                )
        if len(cells) == len(columns):
            yield Row(path, line, number, dict(zip(columns, cells, strict=True)))
        elif not skip_broken:
            raise UserError(
                f"{path}, line {line}: {len(cells)} columns; there must be {len(columns)}: "
                f"{', '.join(columns)}"
            )


def parallel(path: Path, own: list[T], beside: Path, other: list[U]) -> Iterator[tuple[U, T]]:
    """The rows of file `beside` with those of `path`, which belong together line by line."""
    if len(own) != len(other):
        there = f"{len(other)} in {beside.name}"
        raise UserError(f"{path}: {len(own)} lines, but {there}; get both again")
    return zip(other, own, strict=True)


def json_tree(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds."""
    return _json_object(read_text(path), str(path), "get the file again")


def _json_object(text: str, where: str, fix: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested thousands deep
        raise UserError(f"{where}: not JSON ({error}); {fix}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{where}: not a JSON object; {fix}")
    return tree


def _parsed(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    parser = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        yield from ((parser.line_num, cells) for cells in parser if cells)
    except csv.Error as error:  # an unclosed quote makes one cell of the rest of the file
        raise UserError(f"{path}, line {parser.line_num}: {error}; get the file again") from None
