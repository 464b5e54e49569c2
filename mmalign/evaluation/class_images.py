"""Images with one class each, from a folder or from shards, and the names of the classes.

<folder>/<class>/<image>   + names from class_names.py -+-> LabelledImages: bytes by number, classes, names
shards, captions = class names                          -+
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
class LabelledImages:
    """The images of a set and the names of their classes.

    Attributes:
        where: the file or sample of each image, for messages.
        classes: the class of each image.
        sha256: of the manifest, or of names and sizes of the files and names of the classes.
        read: number of an image -> its bytes.
    """

    where: list[str]
    classes: list[str]
    names: Names
    sha256: str
    read: Callable[[int], bytes]


def images_of_folder(folder: Path, class_names: str) -> LabelledImages:
    """All images right below the subfolders, in alphabetical order: ImageNet's layout.

    Raises:
        UserError: no such folder, no images in it, or names that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it must hold one subfolder of images per class")
    below = sorted(folder.glob("*/*"))
    files = [file for file in below if file.suffix.lower().removeprefix(".") in READ_SUFFIXES]
    if not files:
        raise UserError(
            f"{folder}: no subfolder holds images ({', '.join(READ_SUFFIXES)}); unpack them into one "
            "subfolder per class"
        )
    classes = [file.parent.name for file in files]
    names = read_names(class_names, list(dict.fromkeys(classes)))
    # Sizes instead of contents: ImageNet's 50,000 files would take minutes to read twice.
    listing = [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]
    sha256 = hashlib.sha256(json.dumps([listing, names]).encode()).hexdigest()
    where = list(map(str, files))
    return LabelledImages(where, classes, names, sha256, lambda i: files[i].read_bytes())


def images_of_shards(folder: Path) -> LabelledImages:
    """A class: all samples with the same captions. Its name in a language is the first caption there.

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
    sha256 = shard_set.manifest.sha256
    return LabelledImages(where, classes, names, sha256, lambda i: shard_set.read(i).image)


def encode_images(model: DualModel, images: LabelledImages, numbers: Sequence[int]) -> np.ndarray:
    """(n, D) float32 of unit length.

    Raises:
        UserError: an image that cannot be decoded, by its name.
    """
    try:
        return model.encode_images(images.read(i) for i in numbers)
    except UndecodableImage:
        for i in numbers:  # the model does not say which one it is
            try:
                decode(images.read(i))
            except UndecodableImage as error:
                raise UserError(f"{images.where[i]}: {error}; fix it or remove it") from None
        raise
