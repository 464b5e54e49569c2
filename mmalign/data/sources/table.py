"""Tables of pictures and captions: CSV, TSV (both also as .gz) and parquet.

    <folder>/<file>   columns: a picture's path, captions --rows of one picture together--> Draft
    <folder>/<path> --------------------------------------------------------------------+

Rows that stand together and name the same picture are one pair, so a table may have a row a picture with a
column for each language, or a row a caption. Pictures of equal paths are equal, wherever they stand.

A table of URLs is refused: downloading is the work of img2dataset, whose output is a source of its own
(img2dataset.py).
"""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, File, LazyPair, check_split, key_of
from mmalign.data.sources.columns import CaptionColumns, check_columns, read_captions
from mmalign.data.sources.rows import find_file, source_folders

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = ".parquet"
_URL = ("http://", "https://")
_MAX_CELL = (
    1_000_000  # characters; a quotation mark that is not closed ends here and not with the file
)


class Table(Section):
    """Which tables to read, in this order, and what their columns are."""

    kind: Literal["table"]
    folders: tuple[str, ...] = ()
    """Folders in which tables and pictures are looked for; `--from FOLDER` sets them."""
    files: tuple[str, ...]
    """Tables, by their path from one of the folders: .csv, .tsv, .csv.gz, .tsv.gz or .parquet."""
    image: str = "image"
    """The column of the picture's path from one of the folders."""
    captions: CaptionColumns
    split: str = "train"
    """The split of every picture, unless a column tells it."""
    split_column: str | None = None
    license: str = "unknown"
    """Of every picture and its captions."""
    quotes: bool = True
    """Whether `"..."` may enclose a cell of a CSV or TSV file; if not, every character is part of a cell."""

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        split = [self.split_column] if self.split_column else []
        return list(dict.fromkeys([self.image, *self.captions.names, *split]))


Row = tuple[str, dict[str, Any] | BadRow]
"""(file and line, the columns that are read)"""


def read_drafts(config: Table, seed: int) -> Iterator[LazyPair | BadRow]:
    """The rows of all tables in their order; `seed` is there because every source has it.

    Raises:
        UserError: a folder, a table or a column is missing, a table is not of its format or holds URLs.
    """
    folders = source_folders(config.kind, config.folders)
    for name in config.files:
        path = find_file(folders, name)
        rows = enumerate(_read_rows(path, config))
        for _, together in groupby(rows, lambda row: _picture_of(row[1], config)):
            numbered = list(together)
            yield from _read_picture(numbered, key_of(name), folders, config)


def _picture_of(row: Row, config: Table) -> Any:
    """What rows of one picture have in common; a bad row has nothing in common with another."""
    where, cells = row
    name = None if isinstance(cells, BadRow) else cells[config.image]
    return name if isinstance(name, str) and name else where


def _read_picture(
    numbered: Sequence[tuple[int, Row]], table: str, folders: Sequence[Path], config: Table
) -> Iterator[LazyPair | BadRow]:
    """The draft of the rows of one picture, and those rows that cannot be used."""
    captions: list[Caption] = []
    good: list[tuple[int, str, dict[str, Any]]] = []
    for number, (where, cells) in numbered:
        try:
            if isinstance(cells, BadRow):
                raise cells
            captions += read_captions(cells, config.captions, where)
            good.append((number, where, cells))
        except BadRow as bad:
            yield bad
    if good:
        number, where, cells = good[0]
        try:
            key = f"{table}-{number:09d}"
            yield _draft(key, cells, tuple(dict.fromkeys(captions)), where, folders, config)
        except BadRow as bad:
            yield bad


def _draft(
    key: str,
    cells: dict[str, Any],
    captions: tuple[Caption, ...],
    where: str,
    folders: Sequence[Path],
    config: Table,
) -> LazyPair:
    name = cells[config.image]
    if not isinstance(name, str) or not name:
        raise BadRow("row", f"{where}: `{config.image}` must be a path")
    if name.startswith(_URL):
        raise UserError(
            f"{where}: `{config.image}` holds URLs; download the pictures with img2dataset, and build "
            "from its output with `kind: img2dataset`"
        )
    split = cells[config.split_column] if config.split_column else config.split
    check_split(split, where)
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise BadRow("missing", f"{where}: the picture `{name}` is in none of the folders")
    pair = Pair(
        key=key,
        image=b"",
        captions=captions,
        picture=name,
        split=split,
        source=folders[0].name,
        license=config.license,
    )
    return LazyPair(pair, File.of(path), where, f"the picture `{name}`")


def _read_rows(path: Path, config: Table) -> Iterator[Row]:
    """The columns of every row that the recipe names."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == _PARQUET:
        return _read_parquet(path, config.columns)
    if suffix not in _SEPARATORS:
        raise UserError(f"{path}: must be a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file")
    return read_text(path, _SEPARATORS[suffix], config.columns, config.quotes)


def read_text(path: Path, separator: str, columns: list[str], quotes: bool = True) -> Iterator[Row]:
    """Some columns of every line of a text file with a header, plain or `.gz`.

    Raises:
        UserError: it lacks a column, or is no such text.
    """
    with _long_cells(), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        # Bytes that are no UTF-8 become half characters, so that only their row is lost.
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        lines = csv.reader(
            text,
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            header = next(lines, [])
            check_columns(columns, header, str(path))
            for cells in lines:
                if cells:
                    where = f"{path}, line {lines.line_num}"
                    yield where, _cells(cells, header, columns, where)
        except (csv.Error, OSError, EOFError) as error:
            raise UserError(
                f"{path}, line {lines.line_num}: is no such table ({error}); mend it, or give "
                "`quotes: false` if quotation marks are part of its cells"
            ) from None


@contextmanager
def _long_cells() -> Iterator[None]:
    """The library keeps one limit for the whole process; it is put back."""
    before = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _cells(
    cells: list[str], header: list[str], columns: list[str], where: str
) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow("row", f"{where}: has {len(cells)} cells, the header has {len(header)}")
    row = {column: cells[header.index(column)] for column in columns}
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:
        return BadRow("not UTF-8", f"{where}: is not UTF-8")
    return row


def _read_parquet(path: Path, columns: list[str]) -> Iterator[Row]:
    number = 0
    for batch in parquet_batches(path, columns):
        for row in batch:
            number += 1
            yield f"{path}, row {number}", row


def parquet_batches(path: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Some columns of a parquet file, some rows at a time.

    Raises:
        UserError: the library is not there, the file is not parquet or lacks a column.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs the extra `recipes`; run pip install 'mmalign[recipes]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(columns, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no readable parquet file ({error})".split("\n")[0]) from None
