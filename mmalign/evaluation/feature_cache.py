"""Writing the features of a frozen image tower beside the shards (stream/image_features.py has the layout).

    shard -> pictures as training sees them, in loader workers -> tower, float32 -> rows, float16 -> 00000.npy
          -> crc32 of each row, pictures that cannot be used   -> 00000.json, which makes the shard count
    all shards -> features.json, which makes the folder count

Shards are dealt out over the ranks, and one that is there already is not made again: a run that was stopped
goes on with the next shard, and a data set that grew costs its new shards. A shard is cut into batches
in one way, so that ranks and stops change nothing in its rows.
"""

import json
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmalign.core import distributed
from mmalign.core.commit import flush, write_atomic, write_manifest
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import leave_signals_to_the_parent, start_workers
from mmalign.data.images import UndecodableImage
from mmalign.data.preprocess import Preprocess, stack_images
from mmalign.data.shards.manifest import Manifest, Shard
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.stream.image_features import (
    FORMAT_VERSION,
    INDEX,
    TowerIdentity,
    describe_preprocessing,
    no_feature,
    plain_view,
    read_facts,
    record_file,
    rows_file,
)
from mmalign.models.encoder import weights_sha256
from mmalign.models.image_tower import ImageTower

BATCH_SIZE = 64  # pictures that the tower sees at a time
Job = tuple[int, int, int]
"""Number of a shard, and the first and the last sample but one of a batch, counted in the whole set."""


def describe_tower(tower: ImageTower) -> TowerIdentity:
    """What features of this tower must have been made with."""
    preprocessing = describe_preprocessing(tower.size, tower.mean, tower.std)
    return TowerIdentity(weights_sha256(tower), preprocessing, tower.width)


def write_features(tower: ImageTower, data: Path, workers: int) -> dict[str, Any]:
    """Make the features of a data set, or what of them is missing; returns what `features.json` says.

    A collective: every rank calls it with the same weights, each on its own device.

    Args:
        tower: in evaluation mode, float32.
        data: folder of the data set.
        workers: processes of each rank that decode pictures; 0: the rank itself.

    Raises:
        UserError: no data set there, a feature that float16 cannot hold, or a folder that cannot be written.
    """
    shard_set, identity = ShardSet(data), describe_tower(tower)
    folder = identity.folder_in(data)
    todo: list[int] | None = None
    with _on_all_ranks(folder):
        if distributed.is_main():
            todo = _shards_to_do(folder, shard_set.manifest)
    todo = distributed.broadcast(todo)
    if todo is not None:
        with _on_all_ranks(folder):
            mine = todo[distributed.rank() :: distributed.world_size()]
            _write_shards(tower, shard_set, mine, folder, workers)
        with _on_all_ranks(folder):
            if distributed.is_main():
                _finish(folder, shard_set.manifest, identity)
    shard_set.close()
    facts = read_facts(folder)
    assert facts is not None
    return facts


@contextmanager
def _on_all_ranks(folder: Path) -> Iterator[None]:
    """What goes wrong in the block on one rank goes wrong on all, so that none waits for it in vain."""
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{folder}: cannot be written ({error.strerror}); mend that and run it again"
    problems = [found for found in distributed.gather_objects(problem) if found is not None]
    if problems:
        raise UserError(problems[0])


def _shards_to_do(folder: Path, manifest: Manifest) -> list[int] | None:
    """Numbers of the shards that lack features; None: all are there and the folder counts."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        number
        for number, shard in enumerate(manifest.shards)
        if shard.samples and not _is_done(folder, manifest, shard)
    ]
    facts = read_facts(folder)
    if facts is not None and facts["data_sha256"] == manifest.sha256 and not todo:
        return None
    (folder / INDEX).unlink(missing_ok=True)  # while it is being changed it does not count
    return todo


def _is_done(folder: Path, manifest: Manifest, shard: Shard) -> bool:
    """Whether a shard's rows are there, of the bytes that it has today."""
    try:
        record = json.loads((folder / record_file(shard)).read_bytes())
        size = (folder / rows_file(shard)).stat().st_size
        return bool(record["of"] == _source(manifest, shard) and record["size"] == size)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _source(manifest: Manifest, shard: Shard) -> dict[str, Any]:
    """What a shard's features depend on beside the tower."""
    files = {name: manifest.files.get(name, {}).get("sha256") for name in (shard.tar, shard.index)}
    return {"samples": shard.samples, "sha256": files}


def _write_shards(
    tower: ImageTower, shard_set: ShardSet, numbers: Sequence[int], folder: Path, workers: int
) -> None:
    jobs = _jobs(shard_set, numbers)
    loader = DataLoader(
        _Pictures(shard_set, plain_view(tower.size)),
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_parent,
    )
    seen = zip(jobs, track(start_workers(loader), "batches of pictures", len(jobs)), strict=True)
    for number, of_shard in groupby(seen, key=lambda pair: pair[0][0]):
        rows: list[np.ndarray] = []
        unusable: dict[str, dict[str, str]] = {}
        shard = shard_set.manifest.shards[number]
        for (_, first, _), views in of_shard:
            if isinstance(views, UserError):
                raise views
            start = first - int(shard_set.first[number])
            rows.append(_features(tower, views, f"{shard.file}, sample {start}"))
            unusable.update({str(start + row): why for row, why in views.unusable.items()})
        record = {"of": _source(shard_set.manifest, shard), "unusable": unusable}
        _write_shard(folder, shard, np.concatenate(rows), record)


def _jobs(shard_set: ShardSet, numbers: Sequence[int]) -> list[Job]:
    """The batches of some shards, in order."""
    first = shard_set.first.tolist()
    return [
        (number, start, min(start + BATCH_SIZE, first[number + 1]))
        for number in numbers
        for start in range(first[number], first[number + 1], BATCH_SIZE)
    ]


@dataclass(frozen=True)
class _Views:
    """Pixels of a batch, and by row what could not be used; its pixels are black."""

    image_BCHW: Tensor
    unusable: dict[int, dict[str, str]]


class _Pictures(Dataset[Any]):
    """The pictures of a batch, by the place that `_jobs` gives it.

    An error is returned and not raised: a loader wraps what a worker raises into a traceback.
    """

    def __init__(self, shard_set: ShardSet, view: Preprocess) -> None:
        self.shard_set = shard_set
        self.view = view

    def __getitem__(self, job: Job) -> "_Views | UserError":
        _, first, last = job
        black = torch.zeros(self.view.size, self.view.size, 3, dtype=torch.uint8)
        pixels, unusable = [black] * (last - first), {}
        try:
            for row, index in enumerate(range(first, last)):
                seen = self._look(index)
                if isinstance(seen, Tensor):
                    pixels[row] = seen
                else:
                    unusable[row] = seen
        except UserError as error:
            return error
        return _Views(stack_images(pixels), unusable)

    def _look(self, index: int) -> Tensor | dict[str, str]:
        """The pixels of a sample's picture, or why there are none."""
        try:
            pair = self.shard_set.read(index)
        except UnusableSample as error:
            return no_feature(error.key, error.reason, error.detail)
        try:
            # A generator as in training; without augmentation it decides nothing.
            return self.view(pair.image, np.random.default_rng(0))
        except UndecodableImage as error:
            return no_feature(pair.key, error.reason, str(error))


@torch.no_grad()
def _features(tower: ImageTower, views: _Views, where: str) -> np.ndarray:
    """(B, F) float16; rows without a picture are zero. `where` is the place of the first one."""
    device = next(tower.parameters()).device
    image_BCHW = views.image_BCHW.to(device).contiguous(memory_format=torch.channels_last)
    feature_BF = tower(image_BCHW).half().cpu()
    feature_BF[list(views.unusable)] = 0
    if not feature_BF.isfinite().all():
        raise UserError(
            f"{where} or one behind it: its feature is not finite in float16; train from pixels, or take "
            "another image tower"
        )
    rows: np.ndarray = feature_BF.numpy()
    return rows


def _write_shard(folder: Path, shard: Shard, row_SF: np.ndarray, record: dict[str, Any]) -> None:
    path = folder / rows_file(shard)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        np.save(file, row_SF)
    record = {**record, **flush(temporary), "crc32": [zlib.crc32(row) for row in row_SF]}
    temporary.replace(path)
    write_atomic(folder / record_file(shard), json.dumps(record) + "\n")


def _finish(folder: Path, manifest: Manifest, identity: TowerIdentity) -> None:
    """Write `features.json`, and take away what no shard of the data set has any more."""
    files: dict[str, dict[str, Any]] = {}
    reasons: Counter[str] = Counter()
    for shard in (shard for shard in manifest.shards if shard.samples):
        record = json.loads((folder / record_file(shard)).read_bytes())
        files[rows_file(shard)] = {name: record[name] for name in ("size", "sha256")}
        files[record_file(shard)] = flush(folder / record_file(shard))
        reasons.update(why["reason"] for why in record["unusable"].values())
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    info = {
        "format": FORMAT_VERSION,
        "rows": manifest.samples,
        "width": identity.width,
        "dtype": "float16",
        "unusable": dict(sorted(reasons.items())),
        "weights_sha256": identity.weights_sha256,
        "preprocessing": identity.preprocessing,
        "data_sha256": manifest.sha256,
        "libraries": {name: version(name) for name in ("torch", "timm", "pillow")},
    }
    write_manifest(folder, info, INDEX, files)
