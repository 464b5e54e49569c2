"""Rows of tables and their captions, for every source that has columns: table, img2dataset, hf_dataset, wit.

CSV, TSV (also .gz), parquet --read_table--> (where, row {column: value} or BadRow)
row + CaptionColumns --read_captions--> Captions
"""

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from mmalign.core.batch import Caption
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language, is_language_code
from mmalign.data.shards.lazy_pair import BadRow
from mmalign.data.shards.reader import is_utf8
from mmalign.data.sources.rows import open_file

_SEPARATORS = {".csv": ",", ".tsv": "\t"}

# (file and line, the columns that are read)
Row = tuple[str, dict[str, Any] | BadRow]


class CaptionColumns(Section):
    """Either one column per language, or a column of captions and a column of their languages.

    A cell is a text or a list of texts; a cell of languages is a code or a list of codes.
    """

    by_language: dict[str, str] = pydantic.Field(default_factory=dict)
    """The column of each language, for example {en: caption, de: caption_de}."""
    text: str | dict[str, str] | None = None
    """The column of captions in any language, or several by their field: {alt: alt, recaption: text_2}."""
    language: str | None = None
    """The column of their languages (BCP-47)."""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> "CaptionColumns":
        if bool(self.by_language) == bool(self.text or self.language):
            raise ValueError("give either `by_language` or both `text` and `language`")
        if not self.by_language and not (self.text and self.language):
            raise ValueError("`text` and `language` are columns that belong together; give both")
        for code in self.by_language:
            if not is_language_code(canonical_language(code)):
                raise ValueError(f"`by_language` has `{code}`, which is no BCP-47 language code")
        return self

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return [*self.by_language.values(), *self.fields.values(), *filter(None, [self.language])]

    @property
    def fields(self) -> dict[str, str]:
        """The columns of `text`, by the field of their captions."""
        return self.text if isinstance(self.text, dict) else {"": self.text} if self.text else {}


def read_captions(
    row: Mapping[str, Any], columns: CaptionColumns, where: str
) -> tuple[Caption, ...]:
    """The captions of a row, without blank ones and empty cells.

    Raises:
        BadRow: no caption is left, or a cell is not a text.
    """
    found = [
        (lang, text, "")
        for lang, column in columns.by_language.items()
        for text in _texts(row, column, where)
    ]
    language = str(columns.language)  # given where `text` is
    for field, column in columns.fields.items():
        texts, langs = (_texts(row, name, where) for name in (column, language))
        if not isinstance(row[language], list):
            langs = langs * len(texts)
        if len(langs) != len(texts):
            sentence = f"{where}: has {len(texts)} captions, but {len(langs)} languages"
            raise BadRow("language", sentence)
        found += [(lang, text, field) for lang, text in zip(langs, texts, strict=True)]
    captions = tuple(
        Caption(lang, text.strip(), field) for lang, text, field in found if text.strip()
    )
    if not captions:
        raise BadRow("no caption", f"{where}: has no caption, or only blank ones")
    return captions


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    value = row[column]
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise BadRow("caption", f"{where}: `{column}` must be a text or a list of texts")
    return values


def check_columns(wanted: Collection[str], found: Collection[str], where: str) -> None:
    """Check that a table has the columns that a recipe names."""
    for name in wanted:
        if name not in found:
            raise UserError(
                f"{where}: has no column `{name}`; name one of {', '.join(found)} in the recipe"
            )


def read_table(path: Path, columns: list[str], quotes: bool | None = None) -> Iterator[Row]:
    """Some columns of every row of a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file.

    `quotes`: as in `split_rows`.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return _read_parquet(path, columns)
    if suffix not in _SEPARATORS:
        raise UserError(f"{path}: must be a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file")
    return _read_text(path, _SEPARATORS[suffix], columns, quotes)


def split_rows(
    lines: Iterable[str], path: Path, separator: str, quotes: bool | None
) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of every row of a CSV or TSV file that is not blank.

    Args:
        lines: with their ends as they are in the file.
        quotes: whether `"..."` may enclose a cell. None: in CSV files, unless a cell would hold other rows;
            in TSV files, where publishers do either, a cell that begins with a quotation mark is an error.
    """
    # Characters. The library's limit, one for the process, is too short for some captions; but a quotation
    # mark that is not closed must end somewhere before the end of the file.
    csv.field_size_limit(1_000_000)
    unsure = quotes is None and separator == "\t"
    rows = csv.reader(
        lines,
        delimiter=separator,
        quoting=csv.QUOTE_NONE if unsure or quotes is False else csv.QUOTE_MINIMAL,
        strict=True,
    )
    line = 1
    try:
        for cells in rows:
            if unsure and any(cell.startswith('"') for cell in cells):
                raise UserError(
                    f"{path}, line {line}: a cell begins with a quotation mark; give `quotes: true` if such "
                    "marks enclose cells, or `quotes: false` if they are part of the text"
                )
            if quotes is None and holds_rows(cells, separator):
                raise UserError(
                    f"{path}, line {line}: the quotation mark that opens here is closed in line "
                    f"{rows.line_num}, around what looks like other rows; close it, or give `quotes: false` "
                    "if such marks are part of the text, or `quotes: true` if the cell is right"
                )
            if cells:
                yield line, cells
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: the row that begins here is invalid ({error}); close its quotation mark, "
            "or give `quotes: false` if such marks are part of the text"
        ) from None


def holds_rows(cells: list[str], separator: str) -> bool:
    """Whether a cell seems to hold other rows: its lines have the separators of rows in their place."""
    last = len(cells) - 1
    for i, cell in enumerate(cells):
        first, *inner = (line.count(separator) for line in cell.split("\n"))
        if (
            last
            and inner
            and first >= last - i
            and inner[-1] >= i
            and min(inner[:-1], default=last) >= last
        ):
            return True
    return False


def _read_text(
    path: Path, separator: str, columns: list[str], quotes: bool | None
) -> Iterator[Row]:
    with open_file(path) as file:
        # Invalid UTF-8 becomes half of a surrogate pair, so that only its row is lost.
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        rows = split_rows(text, path, separator, quotes)
        header = next(rows, (1, []))[1]
        check_columns(columns, header, str(path))
        for line, cells in rows:
            where = f"{path}, line {line}"
            if len(cells) != len(header):
                sentence = f"{where}: has {len(cells)} cells, the header has {len(header)}"
                yield where, BadRow("row", sentence)
                continue
            row = {name: cells[header.index(name)] for name in columns}
            if not all(map(is_utf8, row.values())):
                yield where, BadRow("not UTF-8", f"{where}: is not UTF-8")
            # No caption holds a tab: a quotation mark that is not closed made one cell of several.
            elif separator == "\t" and (
                holds_rows(cells, separator) or any("\t" in cell for cell in row.values())
            ):
                sentence = (
                    f"{where}: a quotation mark opens that is closed after other cells or rows; close "
                    "it, or give `quotes: false` if such marks are part of the text"
                )
                yield where, BadRow("row", sentence)
            else:
                yield where, row


def rows_of(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch or table of pyarrow; None for one that is not UTF-8."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in rows_of(batch.slice(i, 1))]


def parquet_library(path: Path) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; a UserError that names `path` if they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs the extra `recipes`; run pip install 'mmalign[recipes]'"
        ) from None
    return pyarrow, parquet


def _read_parquet(path: Path, columns: list[str]) -> Iterator[Row]:
    pyarrow, parquet = parquet_library(path)
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(columns, file.schema_arrow.names, str(path))
            # Few at once where they may hold images.
            kinds = [file.schema_arrow.field(name).type for name in columns]
            large = any(map(_may_hold_bytes, kinds))
            batches = file.iter_batches(batch_size=64 if large else 4096, columns=columns)
            rows = chain.from_iterable(map(rows_of, batches))
            for number, row in enumerate(rows, start=1):
                where = f"{path}, row {number}"
                yield where, row or BadRow("not UTF-8", f"{where}: is not UTF-8")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no readable parquet file ({error})".split("\n")[0]) from None


def _may_hold_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind))


def embedded_image(value: Any) -> bytes | None:
    """The image in a cell: its bytes, or {"bytes", "path"} as the library `datasets` has it; or None."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


@dataclass(frozen=True)
class ParquetCell:
    """An image in a row of a parquet file."""

    path: str
    column: str
    row: int
    sha256: str  # of the image's bytes

    def read(self) -> bytes:
        data = embedded_image(_cell(self.path, self.column, self.row))
        if data is None or hashlib.sha256(data).hexdigest() != self.sha256:
            raise OSError(None, "it changed while it was read")
        return data


def _cell(path: str, column: str, row: int) -> Any:
    ends = _row_groups(path)
    group = int(np.searchsorted(ends, row, side="right"))
    first = int(ends[group - 1]) if group else 0
    return _group(path, column, group)[row - first].as_py()


@lru_cache(maxsize=4)
def _row_groups(path: str) -> np.ndarray:
    """The number of rows up to and with each group."""
    _, parquet = parquet_library(Path(path))
    facts = parquet.read_metadata(path)
    return np.cumsum([facts.row_group(n).num_rows for n in range(facts.num_row_groups)])


@lru_cache(maxsize=1)  # a process reads the rows of a shard in their order
def _group(path: str, column: str, group: int) -> Any:
    _, parquet = parquet_library(Path(path))
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)
