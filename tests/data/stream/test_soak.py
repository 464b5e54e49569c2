"""A loader that runs for long keeps its memory and its file descriptors."""

import multiprocessing
import os
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from shard_sets import make_set
from tiny import tiny_tokenizer

from mmalign.core.config import validate
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder, open_sets

BATCHES = 20_000
EVERY = 50  # batches between two looks
FLAT_KIB = 4096  # what the heap may move by
IN_FLIGHT = 8  # descriptors that batches on their way hold, more or less


def look_at(process: int) -> tuple[int, int]:
    """Anonymous resident memory in KiB, and open file descriptors."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    return int(found[1]), len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_descriptors_are_flat_over_many_batches(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "train", 60)
    tree = {"train": [str(folder)], "augmentation": {"crop_scale": [0.5, 1.0], "flip": True}}
    config = validate(DataConfig, tree, "test")
    plan = GlobalOrder(open_sets(config), config, seed=0)
    maker = BatchLoader(
        plan, config, tiny_tokenizer(), 16, Preprocess(8, config.augmentation), 2, 0, 1
    )
    looks: dict[int, list[tuple[int, int]]] = {}
    for number, _ in enumerate(batches(maker, 0, BATCHES, workers=2)):
        if number % EVERY == 0 and number >= BATCHES // 4:
            workers = [child.pid for child in multiprocessing.active_children()]
            for process in (os.getpid(), *workers):
                assert process is not None
                looks.setdefault(process, []).append(look_at(process))
    assert len(looks) == 3
    for found in looks.values():
        thirds = [found[i * len(found) // 3 : (i + 1) * len(found) // 3] for i in range(3)]
        memory = [statistics.median(kib for kib, _ in third) for third in thirds]
        descriptors = [max(count for _, count in third) for third in thirds]
        assert all(after - before < FLAT_KIB for before, after in pairwise(memory)), memory
        assert descriptors[2] <= descriptors[0] + IN_FLIGHT, descriptors
