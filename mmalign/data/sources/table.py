"""Tables of images and captions: CSV, TSV (both also as .gz) and parquet.

    <folder>/<file>   columns: an image's path, captions --rows of one image together--> LazyPair
    <folder>/<path> --------------------------------------------------------------------+

Consecutive rows that name the same image are one pair, so a table may have one row per image with a column
for each language, or one row per caption. Equal paths are equal images, wherever they stand.

A table of URLs is refused: downloading is the task of img2dataset, whose output is a source of its own
(img2dataset.py).
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, File, LazyPair, check_split, key_of
from mmalign.data.sources.columns import CaptionColumns, Row, read_captions, read_table
from mmalign.data.sources.rows import FolderSource, find_file


class Table(FolderSource):
    """Which tables to read, in this order, and what their columns are."""

    kind: Literal["table"]
    files: tuple[str, ...]
    """Tables, by their path from one of the folders: .csv, .tsv, .csv.gz, .tsv.gz or .parquet."""
    image: str = "image"
    """The column of the image's path from one of the folders."""
    captions: CaptionColumns
    split: str = "train"
    """The split of every image, unless there is a column of splits."""
    split_column: str | None = None
    license: str = "unknown"
    """Of every image and its captions."""
    quotes: bool = True
    """Whether `"..."` may enclose a cell of a CSV or TSV file; if not, every character is part of a cell."""


def read_drafts(config: Table, seed: int) -> Iterator[LazyPair | BadRow]:
    """The rows of all tables in their order; `seed` is there because every source has it.

    Raises:
        UserError: a folder, a table or a column is missing, a table is not of its format or holds URLs.
    """
    split = [config.split_column] if config.split_column else []
    columns = list(dict.fromkeys([config.image, *config.captions.names, *split]))

    def image_of(numbered: tuple[int, Row]) -> str:
        """The image of a row, or a name of its own for a row without one."""
        where, cells = numbered[1]
        name = None if isinstance(cells, BadRow) else cells[config.image]
        return name if isinstance(name, str) and name else where

    for file in config.files:
        rows = enumerate(read_table(find_file(config.paths(), file), columns, config.quotes))
        for _, together in groupby(rows, image_of):
            captions: list[Caption] = []
            good: list[tuple[int, str, dict[str, Any]]] = []
            for number, (where, cells) in together:
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
                    key = f"{key_of(file)}-{number:09d}"
                    yield _lazy_pair(key, cells, captions, where, config)
                except BadRow as bad:
                    yield bad


def _lazy_pair(
    key: str, cells: dict[str, Any], captions: Sequence[Caption], where: str, config: Table
) -> LazyPair:
    name = cells[config.image]
    if not isinstance(name, str) or not name:
        raise BadRow("row", f"{where}: `{config.image}` must be a path")
    if name.startswith(("http://", "https://")):
        raise UserError(
            f"{where}: `{config.image}` holds URLs; download the images with img2dataset, and build "
            "from its output with `kind: img2dataset`"
        )
    split = cells[config.split_column] if config.split_column else config.split
    check_split(split, where)
    folders = [Path(folder) for folder in config.folders]
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise BadRow("missing", f"{where}: the image `{name}` is in none of the folders")
    once = tuple(dict.fromkeys(captions))
    pair = Pair(key, b"", once, name, split, folders[0].name, config.license)
    return LazyPair(pair, File.of(path), where, f"the image `{name}`")
