"""Data sets of the library `datasets` on disk, as `save_to_disk` writes them.

    <folder>/dataset_dict.json   one folder per split -+-> rows --> captions -------------+-> LazyPair
    <folder>/dataset_info.json   one split ------------+        --> where the image is ---+

An image column is of the type `Image`, bytes, or a path. Nothing is downloaded, and the hub is not contacted.

https://huggingface.co/docs/datasets/process#save
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mmalign.core.batch import Pair
from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, check_split, key_of
from mmalign.data.sources.columns import CaptionColumns, check_columns, read_captions, rows_of
from mmalign.data.sources.rows import FolderSource, attempt


class HfDataset(FolderSource):
    """What the columns of folders are that `save_to_disk` wrote."""

    kind: Literal["hf_dataset"]
    image: str = "image"
    """The column of the image."""
    captions: CaptionColumns
    license: str = "unknown"
    """Of every image and its captions."""

    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        for prefix, folder in self.prefixed():
            for split, rows in _open(str(folder)).items():
                where = f"{folder}, split `{split}`" if split else str(folder)
                columns = list(dict.fromkeys([self.image, *self.captions.names]))
                check_columns(columns, rows.column_names, where)
                # Few at once, because each has an image.
                batches = rows.select_columns(columns).iter(batch_size=64)
                for number, row in enumerate(chain.from_iterable(map(rows_of, batches))):
                    yield attempt(self.read_row, row, folder, split, number, prefix)

    def read_row(
        self,
        row: Mapping[str, Any] | None,
        folder: Path,
        split: str | None,
        number: int,
        prefix: str,
    ) -> LazyPair:
        """Row `number` of a split; None if a text of it is not UTF-8.

        Raises:
            BadRow: it cannot be used.
        """
        name = split or "train"  # a folder without splits is for training
        where = f"{folder}, split `{name}`, row {number}"
        check_split(name, where)
        if row is None:
            raise BadRow("not UTF-8", f"{where}: is not UTF-8")
        captions = read_captions(row, self.captions, where)
        value = image_in(row[self.image])
        file = self.find_image(value, where) if isinstance(value, str) else None
        try:
            data = value if file is None else file.read()
        except OSError as error:
            raise_if_of_machine(error)
            raise BadRow("read error", f"{where}: `{value}`: {error.strerror}") from None
        if not isinstance(data, bytes):
            sentence = f"{where}: `{self.image}` holds no image (of the type {type(data).__name__})"
            raise BadRow("no image", sentence)
        # Equal bytes are equal images, so sets with one row per caption keep their meaning.
        sha256 = hashlib.sha256(data).hexdigest()
        image = file or Cell(str(folder), split, self.image, number, sha256)
        key = key_of(f"{prefix}{name}-{number:09d}")
        pair = Pair(key, b"", captions, sha256, name, folder.name, self.license)
        return LazyPair(pair, image, where, "its image")


@dataclass(frozen=True)
class Cell:
    """An image in a row of a data set."""

    folder: str
    split: str | None  # None if the folder has no splits
    column: str
    row: int
    sha256: str  # of the image's bytes

    def read(self) -> bytes:
        cell = _open(self.folder)[self.split].select_columns(self.column)[self.row][self.column][0]
        data: bytes = image_in(cell.as_py())
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise OSError(None, "it changed while it was read")
        return data


def image_in(value: Any) -> Any:
    """Bytes or path of a cell: {"bytes", "path"} as `Image` stores it, or the value itself."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


# A process opens a folder once: its rows stay on the disk, mapped into memory.
@lru_cache(maxsize=4)
def _open(folder: str) -> dict[str | None, Any]:
    """The splits of a folder, whose rows come as tables of pyarrow, with images as they are stored."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise UserError(
            f"{folder}: reading it needs the extra `recipes`; run pip install 'mmalign[recipes]'"
        ) from None
    try:
        loaded = load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: is no folder of `save_to_disk` ({error})".split("\n")[0]
        ) from None
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {None: loaded}
    return {split: rows.with_format("arrow") for split, rows in splits.items()}
