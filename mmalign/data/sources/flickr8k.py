"""Flickr8k (Hodosh, Young and Hockenmaier, JAIR 2013): 8,000 pictures with five English captions each.

    Flickr8k.token.txt                          <name>.jpg#<0 to 4><TAB>caption -----+
    Flickr_8k.{trainImages,devImages,testImages}.txt   the names of each split ------+-> Row -> Draft
    Flicker8k_Dataset/<name>.jpg                       (the publisher's spelling) ---+

The text files may lie in Flickr8k_text/, as in the publisher's second archive. Captions of pictures that no
list names are not read; one of them has a name without a picture (`2258277193_586949ec62.jpg.1`).

The layout is as loaders in the field read it, for example Raman-Raje/ImageCaptioning@62a7448
(descriptions.py); the publisher's own files were not at hand.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.sources.rows import (
    Row,
    drafts_of,
    find_file,
    find_picture,
    read_lines,
    source_folders,
)

_LICENSE = "captions: not stated; pictures: Flickr's terms"
_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
_PICTURES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
_TEXTS = "Flickr8k_text"


class Flickr8k(Section):
    """Where Flickr8k lies."""

    kind: Literal["flickr8k"]
    folders: tuple[str, ...] = ()
    """Folders that hold the text files and Flicker8k_Dataset/; `--from FOLDER` sets them."""


def read_drafts(config: Flickr8k, seed: int) -> Iterator[LazyPair]:
    """The splits `train`, `val` and `test`, each in the order of its list; `seed` changes nothing.

    Raises:
        UserError: a file or a picture is missing, a line is broken, or a picture has no caption.
    """
    return drafts_of(_rows(config), config.kind, _LICENSE)


def _rows(config: Flickr8k) -> Iterator[Row]:
    folders = source_folders(config.kind, config.folders)
    captions = _read_captions(_find_text(folders, "Flickr8k.token.txt"))
    for split, file in _LISTS.items():
        path = _find_text(folders, file)
        for number, name in enumerate(read_lines(path), start=1):
            where = f"{path}, line {number}"
            if name not in captions:
                raise UserError(f"{where}: Flickr8k.token.txt has no caption of `{name}`")
            image = find_picture(folders, _PICTURES, name, where)
            yield Row(name, image, [("en", text) for text in captions[name]], where, split)


def _find_text(folders: Sequence[Path], name: str) -> Path:
    return find_file(folders, name, f"{_TEXTS}/{name}")


def _read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each picture, in the order of the file."""
    captions = defaultdict(list)
    for number, line in enumerate(read_lines(path), start=1):
        name, tab, text = line.partition("\t")
        picture, hash_sign, _ = name.partition("#")
        if not tab or not hash_sign:
            raise UserError(
                f"{path}, line {number}: must look like `name.jpg#0`, a tab, and a caption"
            )
        captions[picture].append(text)
    return dict(captions)
