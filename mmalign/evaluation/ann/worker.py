"""One FAISS index, built, searched and timed in a process of its own.

    <folder>/config.json, queries.npy, pool.npy -> train -> add -> search and time -> facts.json, found.npz

    python -m mmalign.evaluation.ann.worker <folder> <number of the index>

A process of its own has clean memory and thread counts, and what FAISS does to it (a failed assertion, a
crash) ends one index and not the benchmark. Nothing heavy is imported, so that memory is the index's.
"""

import json
import math
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.workers import die_with
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.ann.index import (
    IndexConfig,
    faiss_reason,
    new_index,
    set_parameters,
    training_rows,
)
from mmalign.evaluation.truncate import truncate

_WARM_UP = 20  # single queries that are not counted


def run(folder: Path, number: int) -> None:
    """Measure one of the configuration's indexes; what FAISS refuses becomes `{"refused": one line}`."""
    config = FaissConfig.model_validate_json((folder / "config.json").read_bytes())
    index = config.indexes[number]
    vectors = (np.load(folder / name) for name in ("pool.npy", "queries.npy"))
    pool_MD, query_QD = (truncate(row_ND, index.dims) for row_ND in vectors)
    try:
        facts, found = _measure(config, index, pool_MD, query_QD)
    except (RuntimeError, AssertionError, MemoryError) as error:
        facts, found = {"refused": faiss_reason(error)}, {}
    np.savez(folder / "found.npz", **found)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _measure(
    config: FaissConfig, wanted: IndexConfig, pool_MD: np.ndarray, query_QD: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts as JSON knows them, and the lists: `ids_<setting>_<k>` and `scores_<setting>_<k>`."""
    import faiss

    most_threads = max(config.thread_counts)
    faiss.omp_set_num_threads(most_threads)
    index = new_index(wanted, pool_MD.shape[1])
    facts = _fill(index, wanted.train_rows or config.train_rows, config.seed, pool_MD)
    found: dict[str, Any] = {}
    timings = []
    for number, setting in enumerate(wanted.settings):
        set_parameters(index, setting)
        faiss.omp_set_num_threads(most_threads)
        for k in config.recall_at:
            scores, ids = index.search(query_QD, min(k, len(pool_MD)))
            found[f"scores_{number}_{k}"], found[f"ids_{number}_{k}"] = scores, ids
        # After the long lists, whose search has warmed up the index.
        timings.append([_time(index, config, query_QD, n) for n in config.thread_counts])
    return {**facts, "bytes": len(faiss.serialize_index(index)), "timings": timings}, found


def _fill(index: Any, train_rows: int, seed: int, pool_MD: np.ndarray) -> dict[str, Any]:
    train_TD = training_rows(pool_MD, train_rows, seed)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: the peak counts from here on
        before = _status("VmRSS")
    except OSError:  # not Linux
        before = None
    started = time.perf_counter()
    index.train(train_TD)
    trained = time.perf_counter()
    index.add(pool_MD)
    added = time.perf_counter()
    peak = _status("VmHWM")
    return {
        "train_rows": len(train_TD),
        "train_s": trained - started,
        "add_s": added - trained,
        "build_peak_bytes": None if before is None or peak is None else max(0, peak - before),
    }


def _time(index: Any, config: FaissConfig, query_QD: np.ndarray, threads: int) -> dict[str, Any]:
    """Throughput of one call with many queries, and milliseconds of calls with one (percentiles)."""
    import faiss

    def seconds(query: np.ndarray) -> float:
        started = time.perf_counter()
        index.search(query, min(config.timed_at, index.ntotal))
        return time.perf_counter() - started

    faiss.omp_set_num_threads(threads)
    # Spread over all queries: neighbours in the set may be alike.
    step = math.ceil(len(query_QD) / config.timed_queries)
    batch_BD = np.ascontiguousarray(query_QD[::step])
    batches = [seconds(batch_BD) for _ in range(config.repeats)]
    numbers = [i % len(query_QD) for i in range(config.single_queries + _WARM_UP)]
    singles = [seconds(query_QD[i : i + 1]) for i in numbers][_WARM_UP:]
    p50, p95, p99 = (1000 * np.percentile(singles, (50, 95, 99))).tolist()
    return {
        "threads": threads,
        "queries_per_second": len(batch_BD) / min(batches),
        "queries_per_second_median": len(batch_BD) / statistics.median(batches),
        "single_queries": len(singles),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def _status(field: str) -> int | None:
    path = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", path.read_text()) if path.is_file() else None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    if sys.platform == "linux":
        die_with(os.getppid())  # a benchmark that is ended must not leave an index behind at work
    run(Path(sys.argv[1]), int(sys.argv[2]))
