"""Cached image features: the output of a frozen image tower for a data set's images, read instead of pixels.

    <set>/features/<key>/00000.npy      (samples, F) float16; row i is of the image of sample i of 00000.tar
                         00000.json     crc32 of each row; which rows are not features, and why
                         features.json  written last: tower, preprocessing, data, size and sha256 of each file

    tower of a run -> TowerIdentity -> open_features: all of it compared -> FeatureSet.read(i) -> feature_F

The features are those before the projection, which still trains. The images are seen as in training without
augmentation: reading features instead of pixels changes the speed of a run and rounds a feature to float16,
nothing else. `mmalign embed` writes them (evaluation/feature_cache.py).
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.preprocess import Augmentation, Preprocess
from mmalign.data.reasons import REASONS
from mmalign.data.shards.folder import Folder, LocalFolder, Recent, opened, read_file
from mmalign.data.shards.manifest import Shard, ShardTable
from mmalign.data.shards.reader import ShardSet, UnusableSample

FOLDER = "features"
INDEX = "features.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TowerIdentity:
    """Which tower makes features, and from which pixels."""

    weights_sha256: str  # over names and bytes of all its tensors
    preprocessing: dict[str, Any]  # as `describe_preprocessing` says it
    width: int  # F

    @property
    def key(self) -> str:
        """Name of the folder of its features: one data set can have those of several towers."""
        tree = json.dumps(self.preprocessing, sort_keys=True)
        return f"{self.weights_sha256[:16]}-{hashlib.sha256(tree.encode()).hexdigest()[:16]}"

    def folder_in(self, data: Path) -> Path:
        return data / FOLDER / self.key


def plain_view(size: int) -> Preprocess:
    """The preprocessing of training without augmentation."""
    return Preprocess(size, Augmentation())


def describe_preprocessing(
    size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """The preprocessing of `TowerIdentity`."""
    # Versions of libraries say little about pixels: a new one may change nothing, and one version may be
    # built with different decoders. So generated images of each format are preprocessed and hashed.
    digest = hashlib.sha256()
    view = plain_view(size)
    for image in _generated_images(size):
        digest.update(view(image, np.random.default_rng(0)).numpy().tobytes())
    return {
        "size": size,
        "mean": list(mean),
        "std": list(std),
        "view": "training, without augmentation",
        "pixels_sha256": digest.hexdigest(),
    }


def _generated_images(size: int) -> Iterator[bytes]:
    """Encoded images, large enough that a JPEG is decoded at a reduced size."""
    coarse_HWC = np.random.default_rng(0).integers(0, 256, (12, 9, 4), np.uint8)
    # Odd sizes, so that rounding matters.
    shape = (3 * size + 11, 4 * size + 7)
    drawn = Image.fromarray(coarse_HWC).resize(shape, Image.Resampling.BICUBIC)
    for image_format, mode in (("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB")):
        encoded = io.BytesIO()
        drawn.convert(mode).save(encoded, image_format)
        yield encoded.getvalue()


def open_features(shard_set: ShardSet, tower: TowerIdentity) -> "FeatureSet":
    """The features of a data set by exactly this tower; a UserError that says why not."""
    folder: Folder
    if isinstance(shard_set.folder, LocalFolder):
        folder = LocalFolder(tower.folder_in(shard_set.folder.path))
        found = read_facts(folder.path)
        if found is None:
            raise UserError(_why_none(shard_set.folder.path, tower))
        facts = found
        for name, of_file in facts["files"].items():
            file = folder.path / name
            if not file.is_file() or file.stat().st_size != of_file["size"]:
                raise UserError(
                    f"{file}: missing or of another size than {INDEX} says; {_fix(folder)}"
                )
    else:
        try:
            folder = shard_set.folder.inner(f"{FOLDER}/{tower.key}", INDEX)
        except UserError as error:
            raise UserError(
                f"data.image_features: {error}; features at a URL are made with `mmalign embed` beside a "
                "copy of the data set, and uploaded with it"
            ) from None
        facts = _parse_facts(folder.manifest, folder)
    manifest = shard_set.manifest
    # Features of all shards contain those of the first ones.
    if facts["data_sha256"] not in (manifest.sha256, manifest.grown_sha256):
        raise UserError(
            f"{folder.location(INDEX)}: its features were made from other data, the manifest of "
            f"{shard_set.folder} has changed since; run `mmalign embed` again"
        )
    return FeatureSet(shard_set, folder, facts)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What `features.json` of a folder says; None: there is none, so the features are not finished."""
    path = folder / INDEX
    return _parse_facts(path.read_bytes(), LocalFolder(folder)) if path.is_file() else None


def _parse_facts(data: bytes, folder: Folder) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(data)
        for name in ("weights_sha256", "preprocessing", "data_sha256", "width", "rows"):
            facts[name]
        for of_file in facts["files"].values():
            of_file["size"], of_file["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder.location(INDEX)}: damaged; {_fix(folder)}") from None
    return facts


def _fix(folder: Folder) -> str:
    return f"delete {folder} and run `mmalign embed` again"


def _why_none(data: Path, tower: TowerIdentity) -> str:
    """Why the features of a tower are not in a data set, and what is there instead."""
    fix = f"make them with `mmalign embed RUN --data {data}`"
    if tower.folder_in(data).is_dir():
        return f"{tower.folder_in(data)}: its features are not finished; {fix}"
    paths = sorted((data / FOLDER).glob(f"*/{INDEX}"))
    others = [facts for path in paths if (facts := read_facts(path.parent)) is not None]
    if not others:
        return f"{data / FOLDER}: no features of this run's image tower; {fix}"
    # Features of the same weights are the closest miss, so they are reported first.
    others.sort(key=lambda facts: facts["weights_sha256"] != tower.weights_sha256)
    there, here = others[0]["preprocessing"], tower.preprocessing
    if others[0]["weights_sha256"] != tower.weights_sha256:
        why = (
            f"weights (sha256 {others[0]['weights_sha256'][:16]}, this run's image tower has "
            f"{tower.weights_sha256[:16]})"
        )
    elif (name := next(n for n in here if there.get(n) != here[n])) == "pixels_sha256":
        why = "preprocessing (another version of a library decodes or resizes images differently)"
    else:
        why = f"preprocessing (`{name}` is {there.get(name)} there and {here[name]} here)"
    return f"{data / FOLDER}: its features were made with other {why}; {fix}"


@dataclass(frozen=True)
class _Rows:
    """Where the rows of one shard are, and what is known of them."""

    start: int  # of the first row in the file
    crc32: list[int]
    unusable: dict[str, dict[str, str]]  # by row number


class FeatureSet:
    """The features of a data set, by the number of the sample as in `ShardSet`."""

    def __init__(self, shard_set: ShardSet, folder: Folder, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.width: int = facts["width"]
        self._shard_set = shard_set
        self._shards = shard_set.manifest.shards
        make = partial(_open_rows, folder, self._shards, facts)
        self.rows: Recent[int, _Rows] = Recent(make, 128)

    def read(self, index: int) -> Tensor:
        """The feature of sample `index`'s image, (F,) float16.

        Raises:
            UnusableSample: the image could not be read or decoded when the features were made.
            UserError: the row is not what was written.
        """
        number, row = self._shard_set.locate(index)
        rows = self.rows[number]
        if str(row) in rows.unusable:
            why = rows.unusable[str(row)]
            tar = self._shard_set.folder.location(self._shards[number].tar)
            raise UnusableSample(why["reason"], why["detail"], tar, why["key"])
        size = 2 * self.width  # of a row in float16
        # Read and not mapped: if a mapped file shrinks, the process is killed.
        with opened(
            self.folder, rows_file(self._shards[number]), self._shard_set.files
        ) as descriptor:
            data = os.pread(descriptor, size, rows.start + row * size)
        if len(data) != size or zlib.crc32(data) != rows.crc32[row]:
            location = self.folder.location(rows_file(self._shards[number]))
            raise UserError(
                f"{location}: damaged, row {row} is not what was written; {_fix(self.folder)}"
            )
        return torch.frombuffer(bytearray(data), dtype=torch.float16)


def _open_rows(
    folder: Folder, shards: tuple[Shard, ...] | ShardTable, facts: dict[str, Any], number: int
) -> _Rows:
    shard = shards[number]
    name = record_file(shard)
    try:
        data = read_file(folder, name)
        if hashlib.sha256(data).hexdigest() != facts["files"][name]["sha256"]:
            raise UserError(f"{folder.location(name)}: damaged; {_fix(folder)}")
        file = os.fdopen(folder.open(rows_file(shard)), "rb", buffering=0)
    except OSError as error:
        raise_if_of_machine(error)
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); {_fix(folder)}"
        ) from None
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    with file, suppress(ValueError):
        version = np.lib.format.read_magic(file)
        found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        shape = (shard.samples, facts["width"])
        if version == (1, 0) and found == shape and dtype == np.float16 and not by_columns:
            record = json.loads(data)
            return _Rows(file.tell(), record["crc32"], record["unusable"])
    location = folder.location(rows_file(shard))
    raise UserError(f"{location}: damaged, it is no array of features; {_fix(folder)}")


def rows_file(shard: Shard) -> str:
    """File name of a shard's features."""
    return shard.file.removesuffix(".tar") + ".npy"


def record_file(shard: Shard) -> str:
    """File name of their checksums, which is written after them."""
    return shard.file.removesuffix(".tar") + ".json"


def no_feature(key: str, reason: str, detail: str) -> dict[str, str]:
    """What a record says of a sample whose image cannot be used; `reason` is a key of data/reasons.py."""
    assert reason in REASONS, reason
    return {"key": key, "reason": reason, "detail": detail}
