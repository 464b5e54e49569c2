"""Every index of a FAISS benchmark in one direction: started, judged, put into rows.

    Search -> find_truth -> for each index: worker (a process of its own) -> lists, times -> rows, task recall

A row is one index with one setting of its search on one number of threads; `results.py` lists its
columns. What FAISS refuses is one row with the reason.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.console import say
from mmalign.evaluation.ann.config import FaissConfig, IndexConfig
from mmalign.evaluation.ann.pools import IMAGE_TO_TEXT, Search
from mmalign.evaluation.ann.recall import (
    Lists,
    Truth,
    find_truth,
    near_share,
    queries_of,
    relevant_of,
    task_hits,
)
from mmalign.evaluation.ann.results import Row, label_of
from mmalign.evaluation.ann.worker import Job
from mmalign.evaluation.nearest import chance_at
from mmalign.results.results import Results

TaskRecall = dict[str, dict[int, float]]  # language -> k -> recall


@dataclass(frozen=True)
class Direction:
    """What the indexes of one direction are judged by."""

    config: FaissConfig
    search: Search
    truth: Truth
    exact: TaskRecall


def measure_direction(
    config: FaissConfig, search: Search, results: Results
) -> tuple[list[Row], float]:
    """Rows of all indexes; task recall goes into `results` as well.

    Returns:
        The rows, and how far FAISS's exact scores and numpy's are apart at most.

    Raises:
        UserError: the embeddings are no numbers.
    """
    truth = find_truth(search, config.recall_at, config.checked, config.seed)
    exact = _add_task_recall(config, search, truth.lists, "exact", results)
    direction = Direction(config, search, truth, exact)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mmalign-faiss-") as folder:
        np.save(Path(folder) / "pool.npy", search.pool_MD)
        np.save(Path(folder) / "queries.npy", search.query_QD)
        for index in config.indexes:
            facts, found = run_worker(config, index, Path(folder))
            of_index = _judge(direction, index, facts, found, results)
            for row in of_index:
                say(_line(row, config.timed_at))
            rows += of_index
    return rows, truth.difference


def run_worker(
    config: FaissConfig, index: IndexConfig, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and lists of one index, or `{"refused": reason}` without lists.

    Args:
        folder: holds pool.npy and queries.npy.
    """
    Job(
        factory=index.factory,
        settings=index.settings,
        ks=config.recall_at,
        timed_at=config.timed_at,
        threads=config.thread_counts,
        repeats=config.repeats,
        batch=config.timed_queries,
        singles=config.single_queries,
        train_rows=index.train_rows or config.train_rows,
        seed=config.seed,
    ).write(folder)
    command = [sys.executable, "-m", "mmalign.evaluation.ann.worker", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=config.most_seconds
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"it took longer than {config.most_seconds} s (`most_seconds`)"}, {}
    if done.returncode < 0:
        return {"refused": f"FAISS ended its process with signal {-done.returncode}"}, {}
    if done.returncode > 0:
        raise RuntimeError(f"the worker of {index.factory} failed:\n{done.stderr}")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with np.load(folder / "found.npz") as found:
        return facts, dict(found)


def _judge(
    direction: Direction,
    index: IndexConfig,
    facts: dict[str, Any],
    found: dict[str, np.ndarray],
    results: Results,
) -> list[Row]:
    """The rows of one index."""
    config, search = direction.config, direction.search
    first: Row = {"direction": search.direction, "index": index.factory}
    if "refused" in facts:
        return [{**first, "refused": facts["refused"]}]
    rows = []
    for number, setting in enumerate(index.settings):
        lists = {
            k: (found[f"scores_{number}_{k}"], found[f"ids_{number}_{k}"]) for k in config.recall_at
        }
        label = label_of(index.factory, setting)
        task = _add_task_recall(config, search, lists, label, results)
        judged = {
            **first,
            "search": setting,
            **_neighbours(direction, lists),
            **_losses(direction.exact, task),
        }
        rows += [
            {**judged, **_speed(timing), **_size(facts, search)}
            for timing in facts["timings"][number]
        ]
    return rows


def _add_task_recall(
    config: FaissConfig, search: Search, lists: Lists, label: str, results: Results
) -> TaskRecall:
    """Add the task recall of one way of searching, by language and as their mean."""
    # Captions in one language are picked from lists of all languages, so those lists are long.
    depth = max(config.recall_at) if search.direction == IMAGE_TO_TEXT else config.timed_at
    ks = config.task_recall_at
    prefix = f"faiss/{config.set.name}/{label}"
    recall: TaskRecall = {}
    for lang in search.languages:
        hits = task_hits(search, *lists[depth], lang, ks)
        relevant, among = relevant_of(search, lang)
        asked = search.query_label_Q[queries_of(search, lang)]
        for k in ks:
            name = f"{prefix}/{lang}/{search.direction}/recall@{k}"
            results.add(name, hits[k], chance=chance_at(relevant, among, k), ids=asked)
        recall[lang] = {k: float(hits[k].mean()) for k in ks}
    for k in ks:
        names = [f"{prefix}/{lang}/{search.direction}/recall@{k}" for lang in search.languages]
        results.add(
            f"{prefix}/mean/{search.direction}/recall@{k}",
            float(np.mean([results.metrics[name] for name in names])),
            count=sum(results.counts[name] for name in names),
            chance=float(np.mean([results.chance[name] for name in names])),
        )
    return recall


def _neighbours(direction: Direction, lists: Lists) -> Row:
    """recall@k against the exact search, and how far it is from recall by numpy on the same queries."""
    query_QD, pool_MD = direction.search.query_QD, direction.search.pool_MD
    truth = direction.truth
    row, gaps = {}, []
    for k, (_, ids_QK) in lists.items():
        of_query = near_share(query_QD, pool_MD, ids_QK, truth.threshold[k])
        sample = truth.sample
        by_numpy = near_share(query_QD[sample], pool_MD, ids_QK[sample], truth.brute[k])
        row[f"recall@{k}"] = float(of_query.mean())
        gaps.append(abs(float(of_query[sample].mean() - by_numpy.mean())))
    return {**row, "difference_to_numpy": max(gaps)}


def _losses(exact: TaskRecall, task: TaskRecall) -> Row:
    """Mean task recall of the languages, its loss against exact search, and who loses most."""
    row: Row = {}
    for k in next(iter(exact.values())):
        loss = {lang: exact[lang][k] - task[lang][k] for lang in exact}
        worst = max(loss, key=lambda lang: loss[lang])
        row[f"task_recall@{k}"] = float(np.mean([task[lang][k] for lang in task]))
        row[f"task_loss@{k}"] = float(np.mean(list(loss.values())))
        row[f"task_loss_worst@{k}"], row[f"task_loss_worst_language@{k}"] = loss[worst], worst
    return row


def _speed(timing: dict[str, Any]) -> Row:
    queries, seconds = timing["queries"], timing["batch_s"]
    return {
        "threads": timing["threads"],
        "queries_per_second": queries / min(seconds),
        "queries_per_second_median": queries / statistics.median(seconds),
        **{f"{name}_ms": 1000 * value for name, value in timing["single_s"].items()},
    }


def _size(facts: dict[str, Any], search: Search) -> Row:
    names = ("train_rows", "train_s", "add_s", "build_peak_bytes", "bytes")
    return {
        **{name: facts[name] for name in names},
        "bytes_per_vector": facts["bytes"] / len(search.pool_MD),
    }


def _line(row: Row, k: int) -> str:
    """A row as the console shows it while the benchmark runs."""
    if "refused" in row:
        return f"{row['direction']}  {row['index']}: refused: {row['refused']}"
    return (
        f"{row['direction']}  {label_of(row['index'], row['search'])}, threads {row['threads']}: "
        f"recall@{k} {row[f'recall@{k}']:.3f}, {row['queries_per_second']:,.0f} queries/s, "
        f"{row['bytes_per_vector']:,.0f} bytes a vector"
    )
