"""Pictures with a class each, from a folder or from shards, and the names of the classes.

<folder>/<class>/<picture>      + names from class_names.py -+-> Pictures: bytes by number, classes, names
shards, captions = class names                               -+
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.image_formats import READ_SUFFIXES
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.class_names import Names, read_names
from mmalign.models.encoder import DualModel


@dataclass(frozen=True)
class Pictures:
    """The pictures of a set and the names of their classes.

    Attributes:
        where: one entry a picture: which one it is, in words.
        classes: the class of each picture.
        names: language -> class -> name.
        sha256: of what the set holds: the manifest, or names and sizes of the files and names of the classes.
        read: number of a picture -> its bytes.
    """

    where: list[str]
    classes: list[str]
    names: Names
    sha256: str
    read: Callable[[int], bytes]


def pictures_of_folder(folder: Path, class_names: str) -> Pictures:
    """All pictures right below the subfolders, in alphabetical order: ImageNet's layout.

    Args:
        class_names: `source` of `class_names.read_names`.

    Raises:
        UserError: no such folder, no pictures in it, or names that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it must hold a subfolder of pictures a class")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    below = [file for one in subfolders for file in sorted(one.iterdir())]
    files = [file for file in below if file.suffix.lower().removeprefix(".") in READ_SUFFIXES]
    if not files:
        raise UserError(
            f"{folder}: no subfolder holds images ({', '.join(READ_SUFFIXES)}); unpack them into one "
            "subfolder per class"
        )
    classes = [file.parent.name for file in files]
    names = read_names(class_names, list(dict.fromkeys(classes)))
    listing = [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]
    sha256 = hashlib.sha256(json.dumps([listing, names]).encode()).hexdigest()
    return Pictures(list(map(str, files)), classes, names, sha256, lambda i: files[i].read_bytes())


def pictures_of_shards(folder: Path) -> Pictures:
    """A class is what has the same captions in all languages; the first one in each is its name there.

    Raises:
        UserError: no data set there, or a damaged one.
    """
    shard_set = ShardSet(folder)
    classes: list[str] = []
    names: Names = {}
    for sample in range(len(shard_set)):
        # Reversed: of several captions in a language the first one stays.
        called = {one.lang: one.text for one in reversed(shard_set.read(sample).captions)}
        classes.append(json.dumps(called, sort_keys=True))
        for lang, name in called.items():
            names.setdefault(lang, {})[classes[-1]] = name
    where = [f"{folder}, sample `{key}`" for key in shard_set.keys]
    return Pictures(
        where, classes, names, shard_set.manifest.sha256, lambda i: shard_set.read(i).image
    )


def encode_pictures(model: DualModel, pictures: Pictures, numbers: Sequence[int]) -> np.ndarray:
    """(n, D) float32 of unit length.

    Raises:
        UserError: a picture that cannot be decoded, by its name.
    """
    try:
        return model.encode_images(pictures.read(i) for i in numbers)
    except UndecodableImage as error:
        broken = next(i for i in numbers if not _decodes(pictures.read(i)))
        raise UserError(f"{pictures.where[broken]}: {error}; mend it or take it away") from None


def _decodes(data: bytes) -> bool:
    try:
        decode(data)
    except UndecodableImage:
        return False
    return True
