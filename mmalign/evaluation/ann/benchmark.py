"""The FAISS benchmark: which index finds what exact search finds, how fast, how small, at what cost?

    suite.yaml + model -> cached embeddings -> Search of each direction -> Truth
        -> for each index: worker (a process of its own) -> lists, times -> rows, task recall
        -> results.json   task recall by language, of exact search and of every index and setting
        -> faiss.csv      the rows
        -> faiss.json     the rows, what they were measured on and with, throughput at fixed recall, advice

A row is one index with one setting of its search on one number of threads; `results.py` lists its columns.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core import distributed
from mmalign.core.commit import check_writable, write_json
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.evaluation.ann import searches as ann
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.ann.results import (
    SPEED,
    Row,
    label_of,
    recommendations,
    throughput_at,
    write_csv,
)
from mmalign.evaluation.ann.searches import Lists, Search, Truth, near_share
from mmalign.evaluation.embedding_cache import CachedSet, cached_set
from mmalign.evaluation.truncate import check_dims
from mmalign.models.encoder import DualModel
from mmalign.results.aggregates import add_mean
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results, environment, writing

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "text to image: {queries} captions, equally many a language, search {images} pictures; image to "
    "text: {shown} pictures search {texts} captions of all languages, and of the {depth} found those in "
    "the language are counted; pictures and captions of the pool are never right; recall@k: the right "
    "item is among the first k; items that the index scores as high count against it; inner product of "
    "unit-length float32; the share of the true neighbours that an index finds stands in faiss.csv"
)
TaskRecall = dict[str, dict[int, float]]  # language -> k -> recall


def run_faiss(config: FaissConfig, encoder: DualModel, out: Path) -> dict[str, Any]:
    """Measure every index in both directions; write results.json, faiss.csv and faiss.json into `out`.

    Returns the content of faiss.json.

    Raises:
        UserError: a set is missing or lacks a language, the cache is damaged, or there are several ranks.
    """
    # Other ranks would take the processors that are timed.
    if distributed.world_size() > 1:
        raise UserError(f"suite {config.name}: it times one process; leave torchrun out")
    for file in ("results.json", "faiss.csv", "faiss.json"):
        check_writable(out / file)
    for number, index in enumerate(config.indexes):
        check_dims(index.dims, encoder.width, f"indexes.{number}.dims")
    named = [(config.set.name, config.set.shards), *((shards, shards) for shards in config.pool)]
    sets = [cached_set(encoder, Path(path), name, Path(config.cache)) for name, path in named]
    to_image, to_text = searches = ann.make_searches(
        sets[0], sets[1:], config.set.languages, config.queries, config.seed
    )
    results = Results(suite=config.name, model=encoder.facts, environment=environment())
    results.protocol[f"faiss/{config.set.name}"] = {
        "how": PROTOCOL,
        "queries": len(to_image.query_QD),
        "images": len(to_image.pool_MD),
        "shown": len(to_text.query_QD),
        "texts": len(to_text.pool_MD),
        "depth": max(config.recall_at),
    }
    results.data[config.set.name] = sets[0].data_sha256
    machine = {**environment(), **_machine()}  # before the measurement: it states the load
    measured = {one.direction: _measure_direction(config, one, results) for one in searches}
    rows = [row for of_direction, _ in measured.values() for row in of_direction]
    advice = recommendations(rows, config.timed_at)
    tree = {
        "suite": config.name,
        "model": encoder.facts,
        "environment": machine,
        "config": config.model_dump(mode="json"),
        "embeddings": [_embedding_facts(one) for one in sets],
        "searches": {one.direction: _facts(one) for one in searches},
        "largest_score_difference_to_numpy": {name: gap for name, (_, gap) in measured.items()},
        "recommendations": advice,
        "throughput_at_recall": throughput_at(rows, config.timed_at),
        "rows": rows,
    }
    results.write(out / "results.json")
    with writing(out / "faiss.json"):
        write_csv(out / "faiss.csv", rows)
        write_json(out / "faiss.json", tree)
    for sentence in advice:
        say(sentence)
    return tree


def _machine() -> dict[str, Any]:
    import faiss

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "faiss_options": faiss.get_compile_options().strip(),
        "load_before": os.getloadavg()[0],
    }


def _embedding_facts(one: CachedSet) -> dict[str, Any]:
    return {
        "set": one.embedded.name,
        "data_sha256": one.data_sha256,
        "folder": str(one.folder),
        "pictures": len(one.embedded.image_PD),
        "captions": len(one.embedded.texts),
        "sha256": one.sha256,
    }


def _facts(one: Search) -> dict[str, Any]:
    return {
        "vectors": len(one.pool_MD),
        "dimension": one.pool_MD.shape[1],
        "dtype": "float32",
        "metric": "inner product",
        "normalised": True,
        "queries": len(one.query_QD),
        "query_languages": one.languages,
        "warm_up": "every query is searched once before timing; 20 single queries are not counted",
    }


def _measure_direction(
    config: FaissConfig, search: Search, results: Results
) -> tuple[list[Row], float]:
    """Rows of all indexes, and how far FAISS's exact scores and numpy's are apart at most."""
    truth = ann.find_truth(search, config.recall_at, config.checked, config.seed)
    exact = _add_task_recall(config, search, truth.lists, "exact", results)
    rows: list[Row] = []
    # Files, not pipes: a pool may be gigabytes, and every worker reads the same.
    with tempfile.TemporaryDirectory(prefix="mmalign-faiss-") as name:
        folder = Path(name)
        np.save(folder / "pool.npy", search.pool_MD)
        np.save(folder / "queries.npy", search.query_QD)
        (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
        for number, index in enumerate(config.indexes):
            first: Row = {"direction": search.direction, "index": index.label}
            facts, found = _run_worker(config, number, folder)
            for name, word in (("refused", "refused"), ("warning", "FAISS warns")):
                if facts.get(name):
                    say(f"{search.direction}  {index.label}: {word}: {facts[name]}")
            if "refused" in facts:
                rows.append({**first, **facts})
                continue
            timings = facts.pop("timings")  # what is left describes the index, in every row
            facts["bytes_per_vector"] = facts["bytes"] / len(search.pool_MD)
            for i, setting in enumerate(index.settings):
                lists = {
                    k: (found[f"scores_{i}_{k}"], found[f"ids_{i}_{k}"]) for k in config.recall_at
                }
                label = label_of(index.label, setting)
                task = _add_task_recall(config, search, lists, label, results)
                judged = {**first, "search": setting, **_judge(search, truth, lists, exact, task)}
                for timing in timings[i]:
                    rows.append({**judged, **timing, **facts})
                    say(_line(rows[-1], config.timed_at))
    return rows, truth.difference


def _run_worker(
    config: FaissConfig, number: int, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and lists of one index, or `{"refused": reason}` without lists."""
    command = [sys.executable, "-m", "mmalign.evaluation.ann.worker", str(folder), str(number)]
    limit = config.most_seconds
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"it took longer than {limit} s (`most_seconds`)"}, {}
    if done.returncode < 0:
        return {"refused": f"FAISS ended its process with signal {-done.returncode}"}, {}
    # Anything else is an error of ours, not of the index.
    if done.returncode > 0:
        raise RuntimeError(f"the worker of {config.indexes[number].label} failed:\n{done.stderr}")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    # Of too few training vectors above all: FAISS repeats it for every part of a product quantizer.
    warned = [line for line in done.stderr.splitlines() if line.startswith("WARNING ")]
    facts["warning"] = "; ".join(dict.fromkeys(one.removeprefix("WARNING ") for one in warned))
    with np.load(folder / "found.npz") as found:
        return facts, dict(found)


def _add_task_recall(
    config: FaissConfig, search: Search, lists: Lists, label: str, results: Results
) -> TaskRecall:
    # Captions in one language are picked from lists of all languages, so those lists are long.
    depth = max(config.recall_at) if search.direction == ann.IMAGE_TO_TEXT else config.timed_at
    setting, ks = (label, search.direction), config.task_recall_at
    names = {k: MetricName("faiss", config.set.name, MEAN, setting, f"recall@{k}") for k in ks}
    recall: TaskRecall = {}
    for lang in search.languages:
        hits, chance = search.task_hits(*lists[depth], lang, ks), search.chance(lang, ks)
        asked = search.query_label_Q[search.queries_of(lang)]
        for k, name in names.items():
            results.add(name.of(lang), hits[k], chance=chance[k], ids=asked)
        recall[lang] = {k: float(hits[k].mean()) for k in ks}
    for name in names.values():
        add_mean(results, name, search.languages)
    return recall


def _judge(search: Search, truth: Truth, lists: Lists, exact: TaskRecall, task: TaskRecall) -> Row:
    """recall@k against the exact search; mean task recall of the languages, its loss, and who loses most."""
    row: Row = {}
    gaps = []
    for k, (_, ids_QK) in lists.items():
        near_Q = near_share(search, ids_QK, truth.threshold[k])
        row[f"recall@{k}"] = float(near_Q.mean())
        by_numpy_S = near_share(search, ids_QK, truth.brute[k], truth.sample)
        gaps.append(abs(near_Q[truth.sample].mean() - by_numpy_S.mean()))
    row["difference_to_numpy"] = float(max(gaps))  # on the queries that numpy searched too
    for k in next(iter(exact.values())):
        loss = {lang: exact[lang][k] - task[lang][k] for lang in exact}
        worst = max(loss, key=lambda lang: loss[lang])
        row[f"task_recall@{k}"] = float(np.mean([task[lang][k] for lang in task]))
        row[f"task_loss@{k}"] = float(np.mean(list(loss.values())))
        row[f"task_loss_worst@{k}"], row[f"task_loss_worst_language@{k}"] = loss[worst], worst
    return row


def _line(row: Row, k: int) -> str:
    return (
        f"{row['direction']}  {label_of(row['index'], row['search'])}, threads {row['threads']}: "
        f"recall@{k} {row[f'recall@{k}']:.3f}, {SPEED(row):,.0f} queries/s, "
        f"{row['bytes_per_vector']:,.0f} bytes per vector"
    )
