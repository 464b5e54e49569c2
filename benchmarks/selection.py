"""Time and memory of `mmalign data select`, and of the search for near duplicates behind it.

    python benchmarks/selection.py                          # 1,000,000 samples, 10,000,000 hashes
    python benchmarks/selection.py --samples 100000 --hashes 0

The set is a real index with a manifest; its tars are empty, because a selection opens none. The two tables,
one in another order than the set, have the columns that `data describe` and `data score` write. Each
measurement runs in a process of its own. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.commit import flush
from mmalign.core.config import validate
from mmalign.data.select.describe import COLUMNS, HASHES, KIND
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import select
from mmalign.data.select.tables import KEY, SHARD, write_table
from mmalign.data.shards.manifest import Shard, load_manifest, write_manifest
from mmalign.data.stats.duplicates import NEAR, near_pairs

PER_SHARD = 5_000
RULES = {
    "languages": ["en", "de"],
    "columns": {"clip_score": {"min": 0.2}, "characters": {"min": 10}, "width": {"min": 200}},
    "duplicates": {"images": "near", "texts": True},
}


def make_set(folder: Path, samples: int) -> None:
    """A set without pictures: indexes of the usual size and a manifest."""
    files: dict[str, Any] = {}
    shards = []
    for number in range(samples // PER_SHARD):
        shard = Shard(f"{number:05d}.tar", PER_SHARD, PER_SHARD, {}, captioned=PER_SHARD)
        languages = ["en", "de", "sw"] * (PER_SHARD // 3 + 1)
        rows = (
            {
                "key": f"{number:05d}{i:05d}",
                "image": ["jpg", 2048 * i, 1500, 12345678],
                "json": ["json", 2048 * i + 1536, 300, 12345678],
                "picture": f"{number:05d}{i:05d}",
                "langs": [languages[i]],
            }
            for i in range(PER_SHARD)
        )
        (folder / shard.index).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / shard.tar).write_bytes(b"")
        for name in (shard.index, shard.tar):
            files[name] = flush(folder / name)
        counts = {code: languages[:PER_SHARD].count(code) for code in ("en", "de", "sw")}
        shards.append({**shard.to_json(), "languages": counts})
    facts = {"name": "set", "split": "train", "recipe": {}, "recipe_sha256": "", "shards": shards}
    write_manifest(folder, facts, files)


def make_tables(folder: Path, data: Path) -> list[str]:
    rng = np.random.default_rng(0)
    manifest = load_manifest(data)
    samples = manifest.samples
    hashes = some_hashes(samples)
    text = rng.integers(0, samples * 3, samples).astype(np.uint64)

    def described(number: int) -> dict[str, Any]:
        own = slice(number * PER_SHARD, (number + 1) * PER_SHARD)
        columns: dict[str, Any] = {name: [1] * PER_SHARD for name, _, _ in COLUMNS}
        columns |= {name: [[1]] * PER_SHARD for name, _, lists in COLUMNS if lists}
        columns |= {"source": ["web"] * PER_SHARD, "license": ["unknown"] * PER_SHARD}
        columns |= dict.fromkeys(HASHES[:2], hashes[own])
        columns["text_hash"] = text[own].reshape(-1, 1).tolist()
        columns["characters"] = rng.integers(5, 100, (PER_SHARD, 1)).tolist()
        columns["width"] = rng.integers(100, 1000, PER_SHARD)
        columns["language"] = [["en"]] * PER_SHARD
        shard = manifest.shards[number].file
        keys = [f"{number:05d}{i:05d}" for i in range(PER_SHARD)]
        return {SHARD: [shard] * PER_SHARD, KEY: keys, **columns}

    facts = {"kind": KIND, "data_sha256": manifest.sha256, "part": (0, 1), "near": True}
    shards = range(len(manifest.shards))
    write_table(folder / "described.parquet", COLUMNS, facts, map(described, shards))
    order = rng.permutation(samples)
    names = [f"{n // PER_SHARD:05d}{n % PER_SHARD:05d}" for n in order.tolist()]
    scores = {
        SHARD: [f"{n // PER_SHARD:05d}.tar" for n in order.tolist()],
        KEY: names,
        "clip_score": rng.uniform(0, 0.5, (samples, 1)).tolist(),
    }
    write_table(folder / "scores.parquet", [("clip_score", float, True)], {}, [scores])
    return [str(folder / name) for name in ("described.parquet", "scores.parquet")]


def some_hashes(count: int) -> np.ndarray:
    """Random hashes; one in a hundred differs from another one in up to 3 bits."""
    rng = np.random.default_rng(1)
    hashes = rng.integers(1, 2**64 - 1, count, np.uint64)
    near = count // 100
    hashes[-near:] = hashes[:near]
    for _ in range(3):
        hashes[-near:] ^= np.uint64(1) << rng.integers(0, 64, near).astype(np.uint64)
    return hashes


def measure_select(folder: Path, samples: int) -> dict[str, Any]:
    (folder / "data").mkdir()
    make_set(folder / "data", samples)
    tables = make_tables(folder, folder / "data")
    return in_process(_select, folder, tables)


def _select(folder: Path, tables: list[str]) -> dict[str, Any]:
    rules = validate(SelectConfig, {**RULES, "tables": tables}, "rules")
    found = select(str(folder / "data"), folder / "out", rules)
    return {"samples": found.samples, "chosen": found.manifest.samples, "removed": found.removed}


def _near(count: int) -> dict[str, Any]:
    hashes = np.unique(some_hashes(count))
    return {"hashes": count, "pairs": sum(len(one) for one, _, _ in near_pairs(hashes))}


def _near_by_faiss(count: int) -> dict[str, Any]:
    """The same pairs by a table per block of bits (Norouzi, Punjani and Fleet 2012)."""
    import faiss

    hashes = np.unique(some_hashes(count))
    codes = hashes.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, 3, 21)
    index.nflip = 1  # of 3 blocks, one differs in a bit at most
    index.add(codes)
    pairs = 0
    for start in range(0, count, 10_000):
        limits, _, found = index.range_search(codes[start : start + 10_000], NEAR + 1)
        asked = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64))
        pairs += int((asked < found).sum())
    return {"hashes": count, "pairs": pairs}


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function returns, with its seconds and the largest memory of its process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (function, *arguments))


def _timed(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    start, cpu, before = time.perf_counter(), time.process_time(), _peak_mib()
    found = function(*arguments)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
    return {**found, **times, "mib": round(_peak_mib() - before), "mib_before": round(before)}


def _peak_mib() -> float:
    # Not getrusage, which counts what the process was before it was replaced by this one.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--hashes", type=int, default=10_000_000)
    parser.add_argument("--faiss", type=int, default=0, help="hashes to compare with FAISS on")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.samples:
        with tempfile.TemporaryDirectory() as folder:
            found["select"] = measure_select(Path(folder), options.samples)
    if options.hashes:
        found["near"] = in_process(_near, options.hashes)
    if options.faiss:
        found["near_as_faiss"] = in_process(_near, options.faiss)
        found["faiss"] = in_process(_near_by_faiss, options.faiss)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
