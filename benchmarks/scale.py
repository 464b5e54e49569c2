"""Data at the size of the open web: what 64 nodes of 8 ranks with 8 workers read of 200,000 shards.

    a manifest, written as `data index` writes it -> GlobalOrder, BatchLoader: those of training
                                                  -> reads and announcements of each rank's workers
    store: no bytes, only who asked for what; clock: steps and a node's network at the given rates

Only the store and the clock are simulated: `Store` answers as `ShardSet` does, from the manifest alone. What
it notes for 200 shards is what real processes read of real tars (tests/data/stream/test_scale.py). A rank
that starts, and one that resumes in the middle of an epoch, are processes of their own. The last line has

    startup_cpu_s             CPU seconds of a rank from opening the data to its first batch, without imports
    rss_mib_per_rank          memory for this: private pages of a rank and its workers, and shared ones once
    manifest_mib              manifest.json and its table
    node_read_ratio           bytes that a node downloads in an epoch, over those of the samples that it
                              draws; the largest of all nodes. The cache holds three windows
    first_batch_mib_per_node  indexes and samples, each by one request, as no shard is local yet
    resume_s                  CPU seconds of a resumed rank, and the time of its node's first batch on the
                              network
    repeat_spread             from the first to the last draw of a sample that is drawn 20 times or more, as
                              a part of the epoch; the median over a shard. One language of a hundred has
                              10 % of the draws for this, 50 times its captions
    distinct_shards_per_batch shards that a batch has samples of

and the table also the first batch over the bytes of the node's samples, and node_read_ratio with the repeats.

    python benchmarks/scale.py [--shards 200000] [--nodes 64] [--batch 65536]

Four minutes; `--shards 8000 --nodes 4 --batch 4096` half a minute.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import validate
from mmalign.data.shards.columns import Shard
from mmalign.data.shards.manifest import MANIFEST, write_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.shard_table import TABLE
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.tokenizer import Tokenizer, train_tokenizer

SAMPLES, LANGUAGES = 10_000, 100  # of a shard, about
SAMPLE_BYTES, ROW_BYTES = 100_000, 180  # of a sample in its tar, and in its index
RARE = 0.1  # share of the draws that one language has where samples are repeated
MIB = 2**20
Reader = tuple[int, int]
"""A worker process: its rank, and its number among the workers of the rank."""


@dataclass
class Trace:
    """What one worker asked for."""

    samples: list[int] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)


class Store(ShardSet):
    """A data set of which there is only a manifest; it notes which worker asks for what."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, check_files=False)
        self.trace = Trace()

    def read(self, index: int, with_image: bool = True) -> Pair:
        self.trace.samples.append(index)
        number, row = self.locate(index)
        lang = self.languages_in(number)[row][0]
        return Pair(f"{index}", b"", (Caption(lang, "a"),), f"{index}", "train", "", "")

    def prefetch(self, numbers: Iterable[int], by_range: bool = False) -> None:
        self.trace.announced += numbers

    def languages_in(self, number: int) -> list[tuple[str, ...]]:
        counts = self.manifest.shards[number].languages
        return [(lang,) for lang, count in counts.items() for _ in range(count)]


@dataclass(frozen=True)
class Cluster:
    """The processes of a run."""

    nodes: int
    ranks: int  # of a node
    workers: int  # of a rank
    batch_size: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks


def write_set(folder: Path, shards: int, seed: int = 0) -> Path:
    """The manifest of a set of `shards` shards of 10,000 samples in 100 languages."""
    rng = np.random.default_rng(seed)
    mean = rng.dirichlet(np.full(LANGUAGES, 0.5)) * SAMPLES
    codes = [f"q{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(LANGUAGES)]
    rows: list[dict[str, Any]] = []
    files = {}
    for number in range(shards):
        counts = {c: n for c, n in zip(codes, rng.poisson(mean).tolist(), strict=True) if n}
        total = sum(counts.values())
        shard = Shard(f"{number:06d}.tar", total, total, counts, captioned=total)
        rows.append(shard.to_json())
        for name, size in ((shard.tar, SAMPLE_BYTES), (shard.index, ROW_BYTES)):
            files[name] = {"size": size * total, "sha256": f"{number:064x}"}
    facts = {"name": "scale", "split": "train", "recipe": {}, "recipe_sha256": "", "format": 1}
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, {**facts, "shards": rows}, files)
    return folder


def make_order(folder: Path, groups: int, **fields: Any) -> tuple[Store, GlobalOrder, DataConfig]:
    config = validate(DataConfig, {"train": [str(folder)], "groups": groups, **fields}, "options")
    store = Store(folder)
    return store, GlobalOrder([store], config, 0), config


def traces(
    store: Store,
    order: GlobalOrder,
    config: DataConfig,
    tokenizer: Tokenizer,
    cluster: Cluster,
    ranks: Iterable[int],
    steps: range,
) -> Iterator[tuple[Reader, Trace]]:
    """What the workers of some ranks ask for in these steps, one worker after another."""
    for rank in ranks:
        for worker in range(cluster.workers):
            # A worker is a fork: it has what its rank has made, and makes the rest itself.
            forked = copy.copy(order)
            forked._epochs, forked._windows = dict(order._epochs), {}
            loader = BatchLoader(
                forked, config, tokenizer, 16, None, cluster.batch_size, rank, cluster.world_size
            )
            store.trace = Trace()
            for step in steps[worker :: cluster.workers]:
                loader.make(step)
            yield (rank, worker), store.trace


def memory() -> tuple[float, float]:
    """MiB of private and of mapped pages of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(found["RssAnon"]) / 1024, int(found["RssFile"]) / 1024


def start(folder: Path, cluster: Cluster, step: int) -> dict[str, float]:
    """A rank that starts at a step: CPU seconds to its first batch, and MiB."""
    tokenizer = train_tokenizer(["a b c d"] * 8, 64)
    import safetensors.torch  # noqa: F401  # what the table's reader imports, which is not the data's

    before, began = memory(), time.process_time()
    store, order, config = make_order(folder, cluster.nodes)
    opened = memory()
    reads = dict(traces(store, order, config, tokenizer, cluster, [0], range(step, step + 1)))
    seconds = time.process_time() - began
    assert len(reads[0, 0].samples) == cluster.batch_size // cluster.world_size
    after = memory()
    private = opened[0] - before[0] + cluster.workers * (after[0] - opened[0])
    return {"cpu_s": seconds, "rss_mib": private + after[1] - before[1]}


def node_ratio(order: GlobalOrder, sizes_S: np.ndarray, group: int, by_range: float) -> float:
    """Bytes that a node downloads in an epoch, over those of its draws."""
    windows = order.visits(0, group)
    downloaded = by_range
    for number, window in enumerate(windows):
        held = {visit.shard for one in windows[max(0, number - 2) : number] for visit in one}
        new = {visit for visit in window if visit.shard not in held}
        downloaded += sizes_S[[visit.shard for visit in new if not visit.by_range]].sum()
        downloaded += SAMPLE_BYTES * sum(visit.draws for visit in window if visit.by_range)
        # An index is downloaded as a whole.
        rows = (
            sizes_S[visit.shard] / (SAMPLE_BYTES / ROW_BYTES + 1) for visit in new if visit.by_range
        )
        downloaded += sum(rows)
    draws = len(order) // order.groups
    return float(downloaded / (draws * (SAMPLE_BYTES + ROW_BYTES)))


def range_bytes(order: GlobalOrder, sizes_S: np.ndarray, cluster: Cluster, clock: Any) -> float:
    """Bytes that the first node reads by range until the shards of its first window are local."""
    first = [visit.shard for visit in order.visits(0, 0)[0]]
    arrival = dict(zip(first, np.cumsum(sizes_S[first]) / clock.bytes_per_s, strict=True))
    total, rows = 0.0, cluster.batch_size // order.groups
    for step in range(int(max(arrival.values()) / clock.step_s) + 1):
        for position in order.positions(step, cluster.batch_size, range(rows)):
            number, sample = order.locate(order.sample_at(position))
            shard, _ = order.sets[number].locate(sample)
            total += SAMPLE_BYTES * (arrival[shard] > step * clock.step_s)
    return total


def order_with_repeats(folder: Path, groups: int) -> tuple[Store, GlobalOrder, str]:
    """An order that draws one language, which it names, about 50 times as often as without weights."""
    languages = Store(folder).manifest.languages
    total = sum(languages.values())
    rare = min(languages, key=lambda lang: abs(languages[lang] / total - RARE / 50))
    store, order, _ = make_order(folder, groups, language_floor={rare: RARE})
    return store, order, rare


def repeat_spread(store: Store, order: GlobalOrder, rare: str) -> float:
    """The median part of an epoch that lies between the first and the last draw of a repeated sample."""
    windows, shards = order.visits(0, 0), store.manifest.shards
    shard = next(v.shard for v in windows[0] if rare in shards[v.shard].languages)
    at: dict[int, list[int]] = {}
    ends_W = order._group_epoch(0, 0).ends_W
    for number, window in enumerate(windows):
        if any(visit.shard == shard for visit in window):
            start = int(ends_W[number - 1]) if number else 0
            found = order._window(0, 0, number)
            for draw in np.flatnonzero(
                (found >= store.first[shard]) & (found < store.first[shard + 1])
            ):
                at.setdefault(int(found[draw]), []).append(start + int(draw))
    draws = len(order) // order.groups
    return float(np.median([(max(d) - min(d)) / draws for d in at.values() if len(d) >= 20]))


def in_process(folder: Path, options: argparse.Namespace, step: int) -> dict[str, float]:
    names = ("shards", "nodes", "ranks", "workers", "batch")
    given = [word for n in names for word in (f"--{n}", str(getattr(options, n)))]
    command = [sys.executable, __file__, *given, "--start", str(folder), str(step)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, options: argparse.Namespace, cluster: Cluster) -> dict[str, float]:
    write_set(folder, options.shards)
    tokenizer = train_tokenizer(["a b c d"] * 8, 64)
    started = in_process(folder, options, 0)
    store, order, config = make_order(folder, cluster.nodes)
    resumed = in_process(folder, options, len(order) // cluster.batch_size // 2)
    sizes_S = store.manifest.shard_bytes
    # One rank of one: the complete first batch, which begins with the part of the first node.
    BatchLoader(order, config, tokenizer, 16, None, cluster.batch_size, 0, 1).make(0)
    batch = store.trace.samples
    node = batch[: cluster.batch_size // cluster.nodes]
    of_node = {store.locate(sample)[0] for sample in node}
    index_bytes = sum(store.manifest.files[store.manifest.shards[n].index]["size"] for n in of_node)
    first_batch = index_bytes + SAMPLE_BYTES * len(node)
    by_range = range_bytes(order, sizes_S, cluster, options)
    ratios = [node_ratio(order, sizes_S, group, by_range) for group in range(order.groups)]
    repeating_store, repeating, rare = order_with_repeats(folder, cluster.nodes)
    table = (folder / MANIFEST).stat().st_size + (folder / TABLE).stat().st_size
    return {
        "startup_cpu_s": started["cpu_s"],
        "rss_mib_per_rank": started["rss_mib"],
        "manifest_mib": table / MIB,
        "node_read_ratio": max(ratios),
        "first_batch_mib_per_node": first_batch / MIB,
        "resume_s": resumed["cpu_s"] + first_batch / options.bytes_per_s,
        "repeat_spread": repeat_spread(repeating_store, repeating, rare),
        "distinct_shards_per_batch": len({store.locate(sample)[0] for sample in batch}),
        "(first_batch_ratio)": first_batch / (SAMPLE_BYTES * len(node)),
        "(read_ratio_with_repeats)": node_ratio(repeating, sizes_S, 0, 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="reads of a large run, simulated")
    parser.add_argument("--shards", type=int, default=200_000, help="more than 1,000")
    parser.add_argument("--nodes", type=int, default=64, help="and groups")
    parser.add_argument("--ranks", type=int, default=8, help="of a node")
    parser.add_argument("--workers", type=int, default=8, help="of a rank")
    parser.add_argument("--batch", type=int, default=65_536, help="images of a step")
    parser.add_argument("--step-s", type=float, default=1.0, help="seconds of a step")
    parser.add_argument("--bytes-per-s", type=float, default=1.25e9, help="of a node's network")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cluster = Cluster(options.nodes, options.ranks, options.workers, options.batch)
    if options.start:
        figures = start(Path(options.start[0]), cluster, int(options.start[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(Path(folder), options, cluster)
        for name, figure in figures.items():
            sys.stdout.write(f"{name:<28}{figure:>12,.3f}\n")
    named = {name: round(figure, 3) for name, figure in figures.items() if "(" not in name}
    sys.stdout.write(json.dumps(named) + "\n")


if __name__ == "__main__":
    main()
