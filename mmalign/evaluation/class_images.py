"""Images with one class each, from a folder or from shards, and the names of the classes.

<folder>/<class>/<image>   + names from class_names.py -+-> LabelledImages: bytes by number, classes, names
shards, captions = class names                          -+         -> drawn -> embeddings
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmalign.core.batching import batched
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.data.image_formats import READ_SUFFIXES
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.class_names import Names, read_names
from mmalign.evaluation.embed import encode_images
from mmalign.evaluation.over_ranks import encode_over_ranks
from mmalign.models.encoder import BATCH_SIZE, DualModel


@dataclass(frozen=True)
class LabelledImages:
    """The images of a set and the names of their classes.

    Attributes:
        where: the file or sample of each image, for messages.
        classes: the class of each image.
        names: of the classes, by language; none where they were not asked for.
        sha256: of the manifest, or of names and sizes of the files and names of the classes.
        read: number of an image -> its bytes.
        left_out: what is not measured, in words.
    """

    where: list[str]
    classes: list[str]
    names: Names
    sha256: str
    read: Callable[[int], bytes]
    left_out: tuple[str, ...] = ()


def images_of_folder(folder: Path, class_names: str | None = None) -> LabelledImages:
    """All images right below the subfolders, in alphabetical order: ImageNet's layout.

    Args:
        class_names: as in a suite; none: the subfolders alone are the classes, and have no names.

    Raises:
        UserError: no such folder, no images in it, or names that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it must hold one subfolder of images per class")
    below = [file for file in sorted(folder.glob("*/*")) if file.is_file()]
    files = list(filter(_is_image, below))
    if not files:
        raise UserError(
            f"{folder}: no subfolder holds images ({', '.join(READ_SUFFIXES)}); unpack them into one "
            "subfolder per class"
        )
    classes = [file.parent.name for file in files]
    subfolders = [one.name for one in folder.iterdir() if one.is_dir()]
    names = read_names(class_names, subfolders) if class_names else {}
    named = set().union(*names.values()) if class_names else set(subfolders)
    if unnamed := sorted(set(classes) - named):
        near = difflib.get_close_matches(unnamed[0], named - set(classes), n=1)
        hint = f"did you mean `{near[0]}`?" if near else "rename it, remove it, or name its class"
        raise UserError(
            f"{folder}: `images` has a subfolder `{unnamed[0]}`, which is no class of `class_names: "
            f"{class_names}`; {hint}"
        )
    # A class without images stays among the names to choose from: chance is that of what was asked for.
    bare = sorted(named - set(classes))
    stray = sum(map(_is_image, (*folder.glob("*.*"), *folder.glob("*/*/**/*.*"))))
    formats = Counter(file.suffix or file.name for file in below if not _is_image(file))
    left_out = {
        f"classes without images: {len(bare)} ({', '.join(bare[:3])})": bare,
        f"images that lie in no subfolder of a class: {stray}": stray,
        f"files of other formats: {formats.total()} ({', '.join(sorted(formats))})": formats,
    }
    # Sizes instead of contents: ImageNet's 50,000 files would take minutes to read twice.
    listing = [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]
    sha256 = hashlib.sha256(json.dumps([listing, names]).encode()).hexdigest()
    where, found = list(map(str, files)), tuple(words for words, some in left_out.items() if some)
    return LabelledImages(where, classes, names, sha256, lambda i: files[i].read_bytes(), found)


def draw_per_class(classes: Sequence[str], most: int | None, seed: int) -> list[int]:
    """At most so many images of each class, ascending; none: all."""
    of_class: dict[str, list[int]] = {}
    for image, one in enumerate(classes):
        of_class.setdefault(one, []).append(image)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(members)[:most] for members in of_class.values()]
    return sorted(np.concatenate(drawn).tolist())


def encode_labelled(model: DualModel, images: LabelledImages, kept: Sequence[int]) -> np.ndarray:
    """(n, D) float32 of unit length, the images with these numbers. A collective."""
    return encode_over_ranks(
        lambda batch: encode_images(
            model, images.read, images.where.__getitem__, [kept[i] for i in batch]
        ),
        list(batched(range(len(kept)), BATCH_SIZE)),
    )


def _is_image(file: Path) -> bool:
    return file.suffix.lower().removeprefix(".") in READ_SUFFIXES


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
        captions = reversed(shard_set.read(sample).captions)
        called = {canonical_language(one.lang): one.text for one in captions}
        classes.append(json.dumps(called, sort_keys=True))
        for lang, name in called.items():
            names.setdefault(lang, {})[classes[-1]] = name
    where = [f"{folder}, sample `{key}`" for key in shard_set.keys]
    sha256 = shard_set.manifest.sha256
    return LabelledImages(where, classes, names, sha256, lambda i: shard_set.read(i).image)
