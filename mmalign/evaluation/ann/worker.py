"""One FAISS index, built, searched and timed in a process of its own.

    <folder>/job.json, queries.npy, pool.npy -> train -> add -> search and time -> facts.json, found.npz

    python -m mmalign.evaluation.ann.worker <folder>

A process of its own has clean memory and thread counts, and what FAISS does to it (a failed assertion, a
crash) ends one index and not the benchmark. Nothing heavy is imported: memory is the index's.

Throughput is that of one call with many queries, latency that of calls with one query, both at `timed_at`
neighbours, after the same queries were searched once.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.workers import die_with

_WARM_UP = 20  # single queries that are not counted


@dataclass(frozen=True)
class Job:
    """What is to be measured.

    Attributes:
        factory: FAISS's string for `index_factory`; the metric is the inner product.
        settings: search parameters, each `name=value,...` as FAISS's `ParameterSpace` reads it; or ``.
        ks: lengths of the lists that are kept.
        timed_at: length of the lists that are timed.
        threads: counts of threads to time with; the largest builds the index.
        repeats: of the timed batch.
        batch: at most so many queries, spread over all of them, are timed as one batch.
        singles: how many single queries are timed.
        train_rows: at most so many vectors of the pool, drawn at random, train the index.
    """

    factory: str
    settings: tuple[str, ...]
    ks: tuple[int, ...]
    timed_at: int
    threads: tuple[int, ...]
    repeats: int
    batch: int
    singles: int
    train_rows: int
    seed: int

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


def run(folder: Path) -> None:
    """Do the job in `folder`; what FAISS refuses becomes `{"refused": one line}`."""
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    pool_MD, query_QD = np.load(folder / "pool.npy"), np.load(folder / "queries.npy")
    try:
        facts, found = _measure(job, pool_MD, query_QD)
    except (RuntimeError, AssertionError, MemoryError) as error:
        facts, found = {"refused": reason_of(error)}, {}
    np.savez(folder / "found.npz", **found)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def reason_of(error: Exception) -> str:
    """FAISS's message in one line, without its place in FAISS's source."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", text) or type(error).__name__


def _measure(
    job: Job, pool_MD: np.ndarray, query_QD: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts as JSON knows them, and the lists: `ids_<setting>_<k>` and `scores_<setting>_<k>`."""
    import faiss

    faiss.omp_set_num_threads(max(job.threads))
    index, facts = _build(job, pool_MD)
    space: Any = faiss.ParameterSpace()  # its signatures know only one of the overloads
    facts["bytes"] = len(faiss.serialize_index(index))
    found: dict[str, Any] = {}
    timings = []
    for number, setting in enumerate(job.settings):
        if setting:
            space.set_index_parameters(index, setting)
        faiss.omp_set_num_threads(max(job.threads))
        for k in job.ks:
            scores, ids = index.search(query_QD, min(k, len(pool_MD)))
            found[f"scores_{number}_{k}"], found[f"ids_{number}_{k}"] = scores, ids
        timings.append([_time(index, job, query_QD, threads) for threads in job.threads])
    return {**facts, "timings": timings}, found


def _build(job: Job, pool_MD: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """The index with the whole pool in it, and what that took."""
    import faiss

    index = faiss.index_factory(pool_MD.shape[1], job.factory, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(job.seed)
    chosen = np.sort(rng.permutation(len(pool_MD))[: job.train_rows])
    train_TD = pool_MD if len(chosen) == len(pool_MD) else pool_MD[chosen]
    before = _start_of_peak()
    started = time.perf_counter()
    index.train(train_TD)
    trained = time.perf_counter()
    index.add(pool_MD)
    added = time.perf_counter()
    peak = _status("VmHWM")
    facts = {
        "train_rows": len(train_TD),
        "train_s": trained - started,
        "add_s": added - trained,
        "build_peak_bytes": None if before is None or peak is None else max(0, peak - before),
    }
    return index, facts


def _time(index: Any, job: Job, query_QD: np.ndarray, threads: int) -> dict[str, Any]:
    """Seconds of each repeat of the batch, and percentiles of single queries, on `threads` threads."""
    import faiss

    faiss.omp_set_num_threads(threads)
    k = min(job.timed_at, index.ntotal)
    step = math.ceil(len(query_QD) / job.batch)
    batch_BD = np.ascontiguousarray(query_QD[::step])
    batches = [_seconds(index, batch_BD, k) for _ in range(job.repeats)]
    singles = [query_QD[i % len(query_QD)][None] for i in range(job.singles + _WARM_UP)]
    seconds = [_seconds(index, query_1D, k) for query_1D in singles][_WARM_UP:]
    return {
        "threads": threads,
        "queries": len(batch_BD),
        "batch_s": batches,
        "single_s": _percentiles(seconds),
    }


def _seconds(index: Any, query_QD: np.ndarray, k: int) -> float:
    started = time.perf_counter()
    index.search(query_QD, k)
    return time.perf_counter() - started


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99)}


def _start_of_peak() -> int | None:
    """Bytes in use now; from here on the peak counts anew. None where the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    """A size that Linux states of this process, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")]
    return sizes[0] if sizes else None


if __name__ == "__main__":
    if sys.platform == "linux":
        die_with(os.getppid())  # a benchmark that is ended must not leave an index behind at work
    run(Path(sys.argv[1]))
