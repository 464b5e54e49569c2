"""Writing the features of a frozen image tower beside the shards (stream/image_features.py has the layout).

    shard -> images as training sees them, in loader workers -> tower -> rows, float16 -> 00000.npy
          -> crc32 of each row, images that cannot be used   -> 00000.json; without it the shard is not done
    all shards -> features.json; without it the folder is not done

The ranks share the shards, and one that is done already is not made again: a run that was stopped goes on
with the next shard, and a data set that grew costs its new shards.
"""

import json
import uuid
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmalign.core import distributed
from mmalign.core.commit import flush, write_atomic, write_manifest
from mmalign.core.console import track
from mmalign.core.errors import UserError, describe_os_error
from mmalign.core.precision import Precision, inference, inference_precision
from mmalign.core.workers import leave_signals_to_the_parent, start_workers
from mmalign.data.images import UndecodableImage
from mmalign.data.preprocess import Preprocess, stack_images
from mmalign.data.shards.manifest import Manifest, Shard
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.stream import image_features as layout
from mmalign.data.stream.image_features import INDEX, TowerIdentity, record_file, rows_file
from mmalign.models.encoder import weights_sha256
from mmalign.models.image_tower import ImageTower

BATCH_SIZE = 64  # images that the tower sees at a time
Job = tuple[int, range]  # a shard, and the samples of a batch, counted in the complete set


def describe_tower(tower: ImageTower) -> TowerIdentity:
    image = tower.architecture
    preprocessing = layout.describe_preprocessing(image.size, image.mean, image.std)
    return TowerIdentity(weights_sha256(tower), preprocessing, tower.width)


def write_features(
    tower: ImageTower, data: Path, workers: int, precision: Precision = "auto"
) -> dict[str, Any]:
    """Make the features of a data set that are missing; returns the content of `features.json`.

    A collective: every rank calls it with the same weights, each on its own device.

    Args:
        tower: in evaluation mode, float32.
        workers: processes of each rank that decode images; 0: the rank itself.
        precision: what the tower computes in; see `inference_precision`.

    Raises:
        UserError: no data set there, a feature that float16 cannot hold, or a folder that cannot be written.
    """
    shard_set, identity = distributed.on_all(lambda: ShardSet(data)), describe_tower(tower)
    manifest, folder = shard_set.manifest, identity.folder_in(data)
    distributed.must_agree((manifest.sha256, identity.key), f"{data}: the data or the image tower")
    todo = distributed.on_main(lambda: _shards_to_do(folder, manifest))
    if todo is not None:
        mine = todo[distributed.rank() :: distributed.world_size()]
        distributed.on_all(
            lambda: _write_shards(tower, shard_set, mine, folder, workers, precision)
        )
        distributed.on_main(lambda: _finish(folder, manifest, identity))
    shard_set.close()
    facts = distributed.on_main(lambda: layout.read_facts(folder))
    assert facts is not None
    return facts


def _shards_to_do(folder: Path, manifest: Manifest) -> list[int] | None:
    """Numbers of the shards that lack features; None: none does and the folder is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = enumerate(manifest.shards)
    todo = [n for n, one in shards if one.samples and not _is_done(folder, manifest, one)]
    facts = layout.read_facts(folder)
    if facts is not None and facts["data_sha256"] == manifest.sha256 and not todo:
        return None
    (folder / INDEX).unlink(missing_ok=True)  # while the folder is being changed it is not complete
    return todo


def _is_done(folder: Path, manifest: Manifest, shard: Shard) -> bool:
    try:
        record = json.loads((folder / record_file(shard)).read_bytes())
        size = (folder / rows_file(shard)).stat().st_size
        return bool(record["of"] == _source(manifest, shard) and record["size"] == size)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _source(manifest: Manifest, shard: Shard) -> dict[str, Any]:
    files = {name: manifest.files.get(name, {}).get("sha256") for name in (shard.tar, shard.index)}
    return {"samples": shard.samples, "sha256": files}


def _write_shards(
    tower: ImageTower,
    shard_set: ShardSet,
    numbers: Sequence[int],
    folder: Path,
    workers: int,
    precision: Precision,
) -> None:
    first = shard_set.first.tolist()
    # A shard is cut into batches in one way, so that its rows do not depend on ranks and stops.
    jobs: list[Job] = [
        (number, range(first[number + 1])[start : start + BATCH_SIZE])
        for number in numbers
        for start in range(first[number], first[number + 1], BATCH_SIZE)
    ]
    loader: DataLoader[Any] = DataLoader(
        jobs,  # type: ignore[arg-type]  # a list is a data set: it has a length and items
        batch_size=None,
        collate_fn=partial(_load, shard_set, layout.plain_view(tower.size)),  # runs in the workers
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_parent,
    )
    loaded = zip(jobs, track(start_workers(loader), "batches of images", len(jobs)), strict=True)
    for number, of_shard in groupby(loaded, key=lambda pair: pair[0][0]):
        rows: list[np.ndarray] = []
        unusable: dict[str, dict[str, str]] = {}
        shard = shard_set.manifest.shards[number]
        for (_, samples), batch in of_shard:
            if isinstance(batch, UserError):
                raise batch
            start = samples[0] - first[number]
            image_BCHW, lost = batch
            with inference(precision):
                rows.append(_features(tower, image_BCHW, f"{shard.file}, sample {start}"))
            rows[-1][list(lost)] = 0  # black pixels have a feature too
            unusable.update({str(start + row): why for row, why in lost.items()})
        record = {
            "of": _source(shard_set.manifest, shard),
            "unusable": unusable,
            "precision": inference_precision(precision),
        }
        _write_shard(folder, shard, np.concatenate(rows), record)


def _load(
    shard_set: ShardSet, view: Preprocess, job: Job
) -> tuple[Tensor, dict[int, dict[str, str]]] | UserError:
    """Pixels of a batch, and by row why an image cannot be used, whose pixels are black."""
    _, samples = job
    pixels = [torch.zeros(view.size, view.size, 3, dtype=torch.uint8)] * len(samples)
    unusable = {}
    for row, sample in enumerate(samples):
        try:
            pair = shard_set.read(sample)
            # A generator as in training; without augmentation it decides nothing.
            pixels[row] = view(pair.image, np.random.default_rng(0))
        except UnusableSample as error:
            unusable[row] = layout.no_feature(error.key, error.reason, error.detail)
        except UndecodableImage as error:
            unusable[row] = layout.no_feature(pair.key, error.reason, str(error))
        except UserError as error:
            # Returned: a loader wraps what a worker raises into a traceback.
            return error
        except OSError as error:  # of the machine: no descriptors, a failing disk
            return UserError(describe_os_error(error))
    return stack_images(pixels), unusable


def _features(tower: ImageTower, image_BCHW: Tensor, where: str) -> np.ndarray:
    image_BCHW = image_BCHW.to(next(tower.parameters()).device)
    feature_BF = tower(image_BCHW.contiguous(memory_format=torch.channels_last)).half().cpu()
    if not feature_BF.isfinite().all():
        raise UserError(
            f"{where} or one behind it: its feature is not finite in float16; train from pixels"
        )
    rows: np.ndarray = feature_BF.numpy()
    return rows


def _write_shard(folder: Path, shard: Shard, row_SF: np.ndarray, record: dict[str, Any]) -> None:
    path = folder / rows_file(shard)
    # A unique name: a killed run may have left a file, and another run may write the same folder.
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        np.save(file, row_SF)
    record = {**record, **flush(temporary), "crc32": [zlib.crc32(row) for row in row_SF]}
    temporary.replace(path)
    # Last: rows without a record are not done.
    write_atomic(folder / record_file(shard), json.dumps(record) + "\n")


def _finish(folder: Path, manifest: Manifest, identity: TowerIdentity) -> None:
    files: dict[str, dict[str, Any]] = {}
    reasons: Counter[str] = Counter()
    precisions: set[str] = set()
    for shard in (shard for shard in manifest.shards if shard.samples):
        record = json.loads((folder / record_file(shard)).read_bytes())
        files[rows_file(shard)] = {name: record[name] for name in ("size", "sha256")}
        files[record_file(shard)] = flush(folder / record_file(shard))
        reasons.update(why["reason"] for why in record["unusable"].values())
        precisions.add(record.get("precision", "fp32"))  # older versions knew no other
    for path in folder.iterdir():
        # Of shards that the data set no longer has.
        if path.name not in files:
            path.unlink()
    info = {
        "format": layout.FORMAT_VERSION,
        "rows": manifest.samples,
        "width": identity.width,
        "dtype": "float16",
        "precision": ", ".join(sorted(precisions)),
        "unusable": dict(sorted(reasons.items())),
        "weights_sha256": identity.weights_sha256,
        "preprocessing": identity.preprocessing,
        "data_sha256": manifest.sha256,
        "libraries": {name: version(name) for name in ("torch", "timm", "pillow")},
    }
    write_manifest(folder, info, INDEX, files)
