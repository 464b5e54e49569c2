"""What a frozen image tower made of a data set's pictures, read instead of pixels.

    <set>/features/<key>/00000.npy      (samples, F) float16; row i is of the picture of sample i of 00000.tar
                         00000.json     crc32 of each row; which rows are no features, and why
                         features.json  written last: tower, preprocessing, data, size and sha256 of each file

    tower of a run -> TowerIdentity -> open_features: all of it compared -> FeatureSet.read(i) -> feature_F

Beside shards at a URL they are uploaded with the set, and fetched like its shards.

The features are those before the projection, which still trains. A folder is named by its tower and its
preprocessing, so those of several towers lie side by side. The pictures are seen as training sees them
without augmentation: reading features in place of pixels changes the speed of a run and rounds a
feature to float16, nothing else. `mmalign embed` writes them (evaluation/feature_cache.py).
"""

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.core.errors import UserError
from mmalign.data.preprocess import Augmentation, Preprocess
from mmalign.data.shards.folder import Folder, LocalFolder, read_file
from mmalign.data.shards.manifest import Shard
from mmalign.data.shards.reader import REASONS, ShardSet, UnusableSample

FOLDER = "features"
INDEX = "features.json"
FORMAT_VERSION = 1
_OPEN_SHARDS = 128  # whose file and checksums a process keeps at hand


@dataclass(frozen=True)
class TowerIdentity:
    """Which tower makes features, and of what pixels.

    Attributes:
        weights_sha256: over names and bytes of all its tensors.
        preprocessing: `size`, `mean`, `std`, `view`, and `pixels_sha256` of what it makes of drawn pictures.
        width: F.
    """

    weights_sha256: str
    preprocessing: dict[str, Any]
    width: int

    @property
    def key(self) -> str:
        """Name of the folder of its features."""
        tree = json.dumps(self.preprocessing, sort_keys=True)
        return f"{self.weights_sha256[:16]}-{hashlib.sha256(tree.encode()).hexdigest()[:16]}"

    def folder_in(self, data: Path) -> Path:
        """Where the features of the data set in the folder `data` lie."""
        return data / FOLDER / self.key


def plain_view(size: int) -> Preprocess:
    """What training makes of a picture where nothing is augmented."""
    return Preprocess(size, Augmentation())


def describe_preprocessing(
    size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """The preprocessing of `TowerIdentity`.

    Versions of libraries say little about pixels: one may change nothing, and one version may be built with
    another decoder. So it is tried: drawn pictures of each format go through it, and their pixels are hashed.
    """
    digest = hashlib.sha256()
    view = plain_view(size)
    for picture in _drawn_pictures(size):
        digest.update(view(picture, np.random.default_rng(0)).numpy().tobytes())
    return {
        "size": size,
        "mean": list(mean),
        "std": list(std),
        "view": "training, without augmentation",
        "pixels_sha256": digest.hexdigest(),
    }


def _drawn_pictures(size: int) -> Iterator[bytes]:
    """Encoded pictures, large enough for every short cut of decoding."""
    coarse_HWC = np.random.default_rng(0).integers(0, 256, (12, 9, 4), np.uint8)
    shape = (3 * size + 11, 4 * size + 7)
    drawn = Image.fromarray(coarse_HWC).resize(shape, Image.Resampling.BICUBIC)
    for image_format, mode in (("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGB")):
        encoded = io.BytesIO()
        drawn.convert(mode).save(encoded, image_format)
        yield encoded.getvalue()


def open_features(shard_set: ShardSet, tower: TowerIdentity) -> "FeatureSet":
    """The features of a data set by this very tower.

    Raises:
        UserError: there are none, or they were made with other weights, other preprocessing or of other
            data, or a file is missing or has another size than was written.
    """
    find = _local if isinstance(shard_set.folder, LocalFolder) else _at_url
    folder, facts = find(shard_set, tower)
    if facts["data_sha256"] != shard_set.manifest.sha256:
        raise UserError(
            f"{folder.place(INDEX)}: its features were made of other data, {shard_set.folder} has another "
            "manifest since; run `mmalign embed` again"
        )
    return FeatureSet(shard_set, folder, facts)


def _local(shard_set: ShardSet, tower: TowerIdentity) -> tuple[Folder, dict[str, Any]]:
    """Features in a folder of this machine; whether all files are there is seen at once."""
    assert isinstance(shard_set.folder, LocalFolder)
    data = shard_set.folder.path
    folder = tower.folder_in(data)
    facts = read_facts(folder)
    if facts is None:
        raise UserError(_why_none(data, tower))
    for name, of_file in facts["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != of_file["size"]:
            raise UserError(
                f"{file}: missing or of another size than {INDEX} says; {_mend(folder)}"
            )
    return LocalFolder(folder), facts


def _at_url(shard_set: ShardSet, tower: TowerIdentity) -> tuple[Folder, dict[str, Any]]:
    """Features beside shards at a URL, whose files are fetched when they are read."""
    from mmalign.data.shards.remote_folder import RemoteFolder  # see data/shards/folder.py

    assert isinstance(shard_set.folder, RemoteFolder)
    try:
        folder = shard_set.folder.inner(f"{FOLDER}/{tower.key}", INDEX)
    except UserError as error:
        raise UserError(
            f"data.image_features: {error}; features at a URL are made with `mmalign embed` beside a copy of "
            "the data set, and uploaded with it"
        ) from None
    return folder, _facts_in(folder.manifest, folder.place(INDEX), _mend(folder))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What `features.json` of a folder says; None: there is none, so the features are not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / INDEX
    return _facts_in(path.read_bytes(), path, _mend(folder)) if path.is_file() else None


def _facts_in(data: bytes, place: Path | str, mend: str) -> dict[str, Any]:
    """What the bytes of a `features.json` say."""
    try:
        facts: dict[str, Any] = json.loads(data)
        for name in ("weights_sha256", "preprocessing", "data_sha256", "width", "rows"):
            facts[name]
        for of_file in facts["files"].values():
            of_file["size"], of_file["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{place}: damaged; {mend}") from None
    return facts


def _mend(folder: Path | Folder) -> str:
    return f"delete {folder} and run `mmalign embed` again"


def _why_none(data: Path, tower: TowerIdentity) -> str:
    """The sentence that says what lies there in place of the features that are wanted."""
    mend = f"make them with `mmalign embed RUN --data {data}`"
    if tower.folder_in(data).is_dir():
        return f"{tower.folder_in(data)}: its features are not finished; {mend}"
    found = [read_facts(path.parent) for path in sorted((data / FOLDER).glob(f"*/{INDEX}"))]
    others = [facts for facts in found if facts is not None]
    if not others:
        return f"{data / FOLDER}: no features of this run's image tower; {mend}"
    for facts in others:
        if facts["weights_sha256"] == tower.weights_sha256:
            differing = _first_difference(facts["preprocessing"], tower.preprocessing)
            return f"{data / FOLDER}: its features were made with other preprocessing ({differing}); {mend}"
    return (
        f"{data / FOLDER}: its features were made with other weights (sha256 "
        f"{others[0]['weights_sha256'][:16]}, this run's image tower has {tower.weights_sha256[:16]}); {mend}"
    )


def _first_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    name = next(name for name in here if there.get(name) != here[name])
    if name == "pixels_sha256":
        return "another version of a library decodes or resizes in another way"
    return f"`{name}` is {there.get(name)} there and {here[name]} here"


@dataclass(frozen=True)
class _OpenShard:
    """The rows of one shard; `crc32` a row, `unusable` by row number."""

    file: BinaryIO
    start: int
    crc32: list[int]
    unusable: dict[str, dict[str, str]]


class FeatureSet:
    """The features of a data set, by the number of the sample as in `ShardSet`.

    Attributes:
        folder: where they lie.
        width: F.
    """

    def __init__(self, shard_set: ShardSet, folder: Folder, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.width: int = facts["width"]
        self._shards: tuple[Shard, ...] = shard_set.manifest.shards
        self._tars = [shard_set.place_of(number) for number in range(len(self._shards))]
        self._first: np.ndarray = shard_set.first
        self._files: dict[str, dict[str, Any]] = facts["files"]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker opens its own files.
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, index: int) -> Tensor:
        """The feature of sample `index`'s picture, (F,) float16.

        Raises:
            UnusableSample: the picture could not be read or decoded when the features were made.
            UserError: the row is not what was written.
        """
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        row = index - int(self._first[number])
        shard = self._shard(number)
        if str(row) in shard.unusable:
            why = shard.unusable[str(row)]
            raise UnusableSample(why["reason"], why["detail"], self._tars[number], why["key"])
        size = 2 * self.width
        data = os.pread(shard.file.fileno(), size, shard.start + row * size)
        if len(data) != size or zlib.crc32(data) != shard.crc32[row]:
            path = self.folder.place(rows_file(self._shards[number]))
            raise UserError(
                f"{path}: damaged, row {row} is not what was written; {_mend(self.folder)}"
            )
        return torch.frombuffer(bytearray(data), dtype=torch.float16)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].file.close()

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= _OPEN_SHARDS:
            self._open.popitem(last=False)[1].file.close()
        self._open[number] = self._open_shard(self._shards[number])
        return self._open[number]

    def _open_shard(self, shard: Shard) -> _OpenShard:
        try:
            facts = self._record(shard)
            # Read and not mapped: a file that shrinks under a map kills the process.
            file = os.fdopen(self.folder.open(rows_file(shard)), "rb", buffering=0)
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}); {_mend(self.folder)}"
            ) from None
        start = _start_of_rows(file, (shard.samples, self.width))
        if start is None:
            file.close()
            place = self.folder.place(rows_file(shard))
            raise UserError(f"{place}: damaged, it is no array of features; {_mend(self.folder)}")
        return _OpenShard(file, start, facts["crc32"], facts["unusable"])

    def _record(self, shard: Shard) -> dict[str, Any]:
        """What is known of a shard's rows."""
        name = record_file(shard)
        data = read_file(self.folder, name)
        if hashlib.sha256(data).hexdigest() != self._files[name]["sha256"]:
            raise UserError(f"{self.folder.place(name)}: damaged; {_mend(self.folder)}")
        facts: dict[str, Any] = json.loads(data)
        return facts


def _start_of_rows(file: BinaryIO, shape: tuple[int, int]) -> int | None:
    """Where in a .npy file the rows begin; None: it is none of that shape in float16.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    try:
        version = np.lib.format.read_magic(file)
        found, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        return None
    fits = version == (1, 0) and found == shape and dtype == np.float16 and not by_columns
    return file.tell() if fits else None


def rows_file(shard: Shard) -> str:
    """File name of a shard's features."""
    return shard.file.removesuffix(".tar") + ".npy"


def record_file(shard: Shard) -> str:
    """File name of what is known of them, which is written after them."""
    return shard.file.removesuffix(".tar") + ".json"


def no_feature(key: str, reason: str, detail: str) -> dict[str, str]:
    """What a record says of a sample whose picture cannot be used; `reason` is one of shards/reader.py's."""
    assert reason in REASONS, reason
    return {"key": key, "reason": reason, "detail": detail}
