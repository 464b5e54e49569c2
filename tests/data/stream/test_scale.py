"""What `benchmarks/scale.py` simulates is what the processes of a run do."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from shard_sets import make_pair, write_set
from tiny import tiny_tokenizer

from mmalign.core import distributed
from mmalign.core.batch import Pair
from mmalign.core.config import validate
from mmalign.data.preprocess import Preprocess
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import scale

RANKS, WORKERS, BATCH, STEPS = 4, 2, 16, range(3, 9)
_GROUPS = {"groups": 2, "shuffle_shards": 4}
FIELDS: dict[str, dict[str, Any]] = {
    "uniform": _GROUPS,
    "weighted": {**_GROUPS, "language_floor": 0.4},
}


class NotingSet(ShardSet):
    """Real tars; each worker writes down what it reads and announces."""

    log: Path

    def read(self, index: int, with_image: bool = True) -> Pair:
        self.note("read", [index])
        return super().read(index, with_image)

    def prefetch(self, numbers: Iterable[int], by_range: bool = False) -> None:
        self.note("announced", list(numbers))

    def note(self, kind: str, numbers: list[int]) -> None:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        with self.log.with_name(f"{self.log.name}-{worker.id}").open("a") as file:
            file.writelines(json.dumps([kind, number]) + "\n" for number in numbers)


def read_for_real(folder: Path, log: Path) -> None:
    for name, fields in FIELDS.items():
        shards, rank = NotingSet(folder), distributed.rank()
        shards.log = log / name / str(rank)
        config = validate(DataConfig, {"train": [str(folder)], **fields}, "test")
        order = GlobalOrder([shards], config, 0)
        shared = (config, tiny_tokenizer(), 32, Preprocess(8), BATCH)
        loader = BatchLoader(order, *shared, rank, distributed.world_size())
        for _ in batches(loader, STEPS.start, STEPS.stop, WORKERS):
            pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`, and `log`: what real workers ask for, by name of the fields, rank and worker."""
    folder = tmp_path_factory.mktemp("scale")
    # By shard: the manifest does not say which sample of a shard is in which language.
    pairs = [make_pair(n, (("en", "sw")[n % 10 < 2],)) for n in range(400)]
    write_set(folder / "set", pairs, samples_per_shard=2)
    for name in FIELDS:
        (folder / "log" / name).mkdir(parents=True)
    run_ranks(RANKS, read_for_real, folder / "ranks", folder / "set", folder / "log")
    return folder


@pytest.mark.parametrize("name", FIELDS)
def test_simulated_workers_ask_for_what_real_ones_ask_for(folder: Path, name: str) -> None:
    store, order, config = scale.make_order(folder / "set", **FIELDS[name])
    assert len(store.manifest.shards) == 200
    cluster = scale.Cluster(2, RANKS // 2, WORKERS, BATCH)
    simulated = scale.traces(store, order, config, tiny_tokenizer(), cluster, range(RANKS), STEPS)
    for (rank, worker), trace in simulated:
        log = folder / "log" / name / f"{rank}-{worker}"
        lines = [json.loads(one) for one in log.read_text().splitlines()]
        assert [n for kind, n in lines if kind == "read"] == trace.samples
        assert [n for kind, n in lines if kind == "announced"] == trace.announced
        assert len(trace.samples) == len(STEPS) // WORKERS * BATCH // RANKS
