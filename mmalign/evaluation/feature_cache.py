"""Writing the features of a frozen image tower beside the shards (data/features.py has the layout).

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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmalign import distributed
from mmalign.commit import settle, write_atomic, write_manifest
from mmalign.console import track
from mmalign.data.features import (
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
from mmalign.data.preprocess import UndecodableImage, stack_pictures
from mmalign.data.reader import ShardSet, UnusableSample
from mmalign.data.shards import Manifest, Shard
from mmalign.data.workers import leave_signals_to_the_parent
from mmalign.errors import UserError
from mmalign.evaluation.encoder import weights_sha256
from mmalign.model.image_tower import ImageTower

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
    todo = _together(lambda: _shards_to_do(folder, shard_set.manifest), only_main=True)
    todo = distributed.broadcast(todo)
    if todo is not None:
        mine = todo[distributed.rank() :: distributed.world_size()]
        _together(lambda: _write_shards(tower, shard_set, mine, folder, workers))
        _together(lambda: _finish(folder, shard_set.manifest, identity), only_main=True)
    shard_set.close()
    facts = read_facts(folder)
    assert facts is not None
    return facts
