"""Mixing of windows of shards, compared with a full shuffle and with a shuffle buffer.

    synthetic manifest, shards sorted by source -> order of an epoch -> composition of batches

The data are the worst case for every method except a full shuffle: each shard holds samples of one source (a
crawl, a language), and the shards of a source are consecutive. Rows of the table:

    full        one permutation of everything
    windows N   the order of mmalign with data.shuffle_shards = N
    C x N       the same in data.groups = C groups, of which each has windows of its own
    buffer N    shards in random order, samples through a buffer of N, as in streaming loaders; one worker

Columns, with the value of a perfect shuffle in brackets:

    distance    median distance in storage of two consecutive samples, relative to the full shuffle [1]
    one shard   share of the pairs in a batch that are from one shard, relative to the full shuffle [1];
                about (number of shards) / N for windows of N shards
    sources     variance of the composition of batches by source, relative to independent sampling: the mean
                of (count - expected)^2 / expected per degree of freedom [1]
    fewest      smallest number of sources in a batch [all]

It reads no data. Prints a table and, as the last line, one JSON object.

    python benchmarks/mixing.py [--shards 512] [--samples 1000] [--sources 16] [--batch 1024] [--groups 8]
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np

from mmalign.core.config import validate
from mmalign.data.shards.manifest import Manifest, Shard
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.order import GlobalOrder

COLUMNS = ("distance", "one shard", "sources", "fewest")


@dataclass
class SetOnPaper:
    """A data set without files: the order needs only the manifest."""

    manifest: Manifest
    starts: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(most=0))
    files: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(most=0))

    def __len__(self) -> int:
        return self.manifest.samples

    def prefetch(self, numbers: Iterable[int], by_range: bool = False) -> None:
        """Does nothing, because there are no files."""


def set_on_paper(shards: int, samples: int) -> SetOnPaper:
    rows = tuple(
        Shard(f"{number:05d}.tar", samples, samples, {"en": samples}, captioned=samples)
        for number in range(shards)
    )
    return SetOnPaper(Manifest("paper", "train", {}, "", rows, "txt", {}, {}, {}, ""))


def windows(
    shards: int, samples: int, shuffle_shards: int, seed: int, groups: int = 1
) -> np.ndarray:
    """(samples of an epoch,) in mmalign's order."""
    tree = {"train": ["paper"], "shuffle_shards": shuffle_shards, "groups": groups}
    config = validate(DataConfig, tree, "options")
    paper = cast(ShardSet, set_on_paper(shards, samples))
    return GlobalOrder([paper], config, seed).order(0)


def buffered(shards: int, samples: int, size: int, seed: int) -> np.ndarray:
    """The same through a shuffle buffer: each new sample replaces a random one, which is returned."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(shards * samples).reshape(shards, samples)[rng.permutation(shards)].ravel()
    buffer, rest = numbers[:size].copy(), numbers[size:]
    out = np.empty_like(numbers)
    for place, (slot, number) in enumerate(
        zip(rng.integers(size, size=len(rest)), rest, strict=True)
    ):
        out[place], buffer[slot] = buffer[slot], number
    out[len(rest) :] = rng.permutation(buffer)
    return out


def quality(order: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """The columns of one row, not yet compared with the full shuffle."""
    batches = order[: len(order) // options.batch * options.batch].reshape(-1, options.batch)
    shard_BN = batches // options.samples
    source_BN = shard_BN * options.sources // options.shards
    shard_counts, source_counts = (
        np.stack([np.bincount(row, minlength=kinds) for row in numbers_BN])
        for numbers_BN, kinds in ((shard_BN, options.shards), (source_BN, options.sources))
    )
    pairs = (shard_counts * (shard_counts - 1)).sum() / (len(batches) * options.batch**2)
    expected = options.batch * np.bincount(source_BN.ravel()) / source_BN.size
    spread = ((source_counts - expected) ** 2 / expected).sum(1).mean() / (options.sources - 1)
    return {
        "distance": float(np.median(np.abs(np.diff(order)))),
        "one shard": float(pairs),
        "sources": float(spread),
        "fewest": float((source_counts > 0).sum(1).min()),
    }


def orders(options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    size = (options.shards, options.samples)
    yield "full", windows(*size, options.shards, options.seed)
    for number in options.windows:
        if number < options.shards:
            yield f"windows {number}", windows(*size, number, options.seed)
    groups = options.groups
    for number in options.windows:
        if groups > 1 and number % groups == 0 and number < options.shards:
            order = windows(*size, number // groups, options.seed, groups)
            yield f"{groups} x {number // groups}", order
    for number in options.buffers:
        yield f"buffer {number}", buffered(*size, number, options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="mixing of windows of shards")
    parser.add_argument("--shards", type=int, default=512)
    parser.add_argument("--samples", type=int, default=1000, help="samples per shard")
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--windows", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--buffers", type=int, nargs="*", default=[5000, 50_000])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write = sys.stdout.write
    write(f"{'':<14}" + "".join(f"{column:>12}" for column in COLUMNS) + "\n")
    figures: dict[str, dict[str, float]] = {}
    full: dict[str, float] = {}
    for name, order in orders(options):
        found = quality(order, options)
        full = full or dict(found)
        for column in ("distance", "one shard"):
            found[column] /= full[column]
        figures[name] = {column: round(value, 3) for column, value in found.items()}
        write(f"{name:<14}" + "".join(f"{found[column]:>12.2f}" for column in COLUMNS) + "\n")
    write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
