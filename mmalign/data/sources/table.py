"""Tables of images and captions: CSV, TSV (both also as .gz) and parquet.

    <folder>/<file>   columns: an image's path, captions --rows of one image together--> LazyPair
    <folder>/<path>, or an image in a cell of a parquet file ---------------------------+

Consecutive rows that name the same image are one pair, so a table may have one row per image with a column
for each language, or one row per caption. Equal paths are equal images, wherever they stand.
"""

import hashlib
import posixpath
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pydantic

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, check_split, key_of
from mmalign.data.sources.columns import (
    CaptionColumns,
    ParquetCell,
    Row,
    embedded_image,
    read_captions,
    read_table,
)
from mmalign.data.sources.rows import FolderSource, attempt


class Table(FolderSource):
    """Which tables to read, in this order, and what their columns are."""

    kind: Literal["table"]
    files: tuple[str, ...]
    """Tables, by their path from one of the folders, or patterns (`data/*.parquet`): .csv, .tsv, .csv.gz,
    .tsv.gz or .parquet."""
    image: str = "image"
    """The column of the image's path from one of the folders; of parquet also of its bytes."""
    captions: CaptionColumns
    split: str = "train"
    """The split of every image, unless there is a column of splits."""
    split_column: str | None = None
    license: str = "unknown"
    """Of every image and its captions."""
    quotes: bool | None = None
    """Whether `"..."` may enclose a cell of a CSV or TSV file; if not, every character is part of a cell.
    Without it, a file that can be read in both ways is an error."""

    @pydantic.field_serializer("quotes")
    def _as_before(self, quotes: bool | None) -> bool:
        # True was the default of 0.1.0: a folder that it built still counts as built.
        return quotes is not False

    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        split = [self.split_column] if self.split_column else []
        columns = list(dict.fromkeys([self.image, *self.captions.names, *split]))

        def image_of(numbered: tuple[int, Row]) -> tuple[Any, ...]:
            where, cells = numbered[1]
            # A row without an image belongs to no other row. Captions of two splits must not meet.
            if isinstance(cells, BadRow) or not (name := _identity(cells[self.image])):
                return (where,)
            return (name, *(cells[column] for column in split))

        for file, path in self._tables():
            rows = enumerate(read_table(path, columns, self.quotes))
            for _, together in groupby(rows, image_of):
                captions: list[Caption] = []
                first = None
                for number, (where, cells) in together:
                    found: Any = cells
                    if not isinstance(cells, BadRow):
                        found = attempt(read_captions, cells, self.captions, where)
                    if isinstance(found, BadRow):
                        yield found
                        continue
                    captions += found
                    first = first or (path, number, f"{key_of(file)}-{number:09d}", where, cells)
                if first is not None:
                    yield attempt(self._lazy_pair, *first, captions)

    def _tables(self) -> Iterator[tuple[str, Path]]:
        """Name and path of every table; those of a pattern in the order of their names."""
        for file in self.files:
            if "*" not in file:
                yield file, self.find_file(file)
                continue
            found: dict[str, Path] = {}
            for folder in self.paths():
                for path in folder.glob(file):
                    other = found.setdefault(path.relative_to(folder).as_posix(), path)
                    if other != path:  # keys and attributions hold the names
                        raise UserError(
                            f"{path}: has the name of {other}; rename one of the tables, or name the folder "
                            "above both with `--from` and the folders in `source.files`"
                        )
            if not found:
                raise UserError(f"{', '.join(self.folders)}: no `{file}` there; fix `source.files`")
            yield from ((name, self.inside(path)) for name, path in sorted(found.items()))

    def _lazy_pair(
        self,
        table: Path,
        number: int,
        key: str,
        where: str,
        cells: dict[str, Any],
        captions: list[Caption],
    ) -> LazyPair:
        split = cells[self.split_column] if self.split_column else self.split
        check_split(split, where)
        once = tuple(dict.fromkeys(captions))
        name, source = _identity(cells[self.image]), Path(self.folders[0]).name
        if name is not None and embedded_image(cells[self.image]) is not None:
            pair = Pair(key, b"", once, name, split, source, self.license)
            return LazyPair(
                pair, ParquetCell(str(table), self.image, number, name), where, "its image"
            )
        if name is None:
            raise BadRow("row", f"{where}: `{self.image}` must be a path")
        # Downloading is the task of img2dataset, whose output is a source of its own.
        if name.startswith(("http://", "https://")):
            raise UserError(
                f"{where}: `{self.image}` holds URLs; download the images with img2dataset, and build "
                "from its output with `kind: img2dataset`"
            )
        image = self.find_image(name, where)
        pair = Pair(key, b"", once, name, split, source, self.license)
        return LazyPair(pair, image, where, f"the image `{name}`")


def _identity(path: Any) -> str | None:
    """Equal for equal images: a path in its shortest form, or the hash of an image; None: it is neither."""
    if (image := embedded_image(path)) is not None:
        return hashlib.sha256(image).hexdigest()
    if not isinstance(path, str) or not path:
        return None
    return path if "://" in path else posixpath.normpath(path)
