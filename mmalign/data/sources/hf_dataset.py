"""Data sets of the library `datasets` on disk, as `save_to_disk` writes them.

    <folder>/dataset_dict.json   a split a folder -+-> rows --> captions -------------+-> Draft
    <folder>/dataset_info.json   one split --------+        --> where a picture lies -+

A picture column is of the type `Image`, bytes, or a path. Pictures of equal bytes are equal, so sets with
a row a caption keep their meaning. Nothing is downloaded, and the hub is not asked.

https://huggingface.co/docs/datasets/process#save
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from mmalign.core.batch import Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, check_split, key_of
from mmalign.data.sources.columns import CaptionColumns, check_columns, read_captions
from mmalign.data.sources.rows import source_folders

_ONE_SPLIT = "train"  # what a folder without splits is


class HfDataset(Section):
    """Which folders to read, in this order, and what their columns are."""

    kind: Literal["hf_dataset"]
    folders: tuple[str, ...] = ()
    """Folders that `save_to_disk` wrote; `--from FOLDER` sets them."""
    image: str = "image"
    """The column of the picture."""
    captions: CaptionColumns
    license: str = "unknown"
    """Of every picture and its captions."""


@dataclass(frozen=True)
class Cell:
    """A picture in a row of a data set.

    Attributes:
        split: of the folder; None where it has none.
        sha256: of the picture's bytes.
    """

    folder: str
    split: str | None
    column: str
    row: int
    sha256: str

    def read(self) -> bytes:
        data = picture_bytes(_open(self.folder, self.column)[self.split][self.row][self.column])
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise OSError(None, "it changed while it was read")
        return data


def read_drafts(config: HfDataset, seed: int) -> Iterator[LazyPair | BadRow]:
    """The rows of all folders and splits in their order; `seed` is there because every source has it.

    Raises:
        UserError: a folder or a column is missing, or the library is.
    """
    folders = source_folders(config.kind, config.folders)
    for number, folder in enumerate(folders):
        prefix = f"{number}-" if len(folders) > 1 else ""
        for split, rows in _open(str(folder), config.image).items():
            where = f"{folder}, split `{split}`" if split else str(folder)
            check_columns([config.image, *config.captions.names], rows.column_names, where)
            for i, row in enumerate(rows):
                yield read_row(row, folder, split, i, prefix, config)


def read_row(
    row: Mapping[str, Any],
    folder: Path,
    split: str | None,
    number: int,
    prefix: str,
    config: HfDataset,
) -> LazyPair | BadRow:
    """Row `number` of a split."""
    name = split or _ONE_SPLIT
    where = f"{folder}, split `{name}`, row {number}"
    try:
        check_split(name, where)
        captions = read_captions(row, config.captions, where)
        sha256 = hashlib.sha256(picture_bytes(row[config.image])).hexdigest()
    except BadRow as bad:
        return bad
    except (OSError, TypeError) as error:
        return BadRow("no image", f"{where}: `{config.image}` holds no picture ({error})")
    pair = Pair(
        key=key_of(f"{prefix}{name}-{number:09d}"),
        image=b"",
        captions=captions,
        picture=sha256,
        split=name,
        source=folder.name,
        license=config.license,
    )
    cell = Cell(str(folder), split, config.image, number, sha256)
    return LazyPair(pair, cell, where, "its picture")


def picture_bytes(value: Any) -> bytes:
    """The bytes of a cell: {"bytes", "path"} as `Image` stores it, bytes, or a path.

    Raises:
        OSError: the path is not there.
        TypeError: it is none of these.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return Path(value).read_bytes()
    if not isinstance(value, bytes):
        raise TypeError(f"of the type {type(value).__name__}")
    return value


@lru_cache(
    maxsize=4
)  # a process opens a folder once: its rows stay on the disk, mapped into memory
def _open(folder: str, image: str) -> dict[str | None, Any]:
    """The splits of a folder, with pictures as they are stored.

    Raises:
        UserError: it is no such folder, or the library is not there.
    """
    try:
        from datasets import DatasetDict, Image, load_from_disk
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
    for split, rows in splits.items():
        if isinstance(rows.features.get(image), Image):
            splits[split] = rows.cast_column(image, Image(decode=False))
    return splits
