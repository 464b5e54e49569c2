"""The FAISS benchmark: which index finds what exact search finds, how fast, how small, at what cost?

    suite.yaml + model -> cached embeddings -> Search of each direction -> measure_direction -> rows
        -> results.json   task recall by language, of exact search and of every index and setting
        -> faiss.csv      the rows
        -> faiss.json     the rows, what they were measured on and with, throughput at fixed recall, advice

For one process: it times itself.
"""

import os
import platform
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import write_json
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.ann.direction import measure_direction
from mmalign.evaluation.ann.pools import Search, make_searches
from mmalign.evaluation.ann.results import recommendations, throughput_at, write_csv
from mmalign.evaluation.embedding_cache import CachedSet, cached_set
from mmalign.models.encoder import DualModel
from mmalign.results.results import Results, environment

PROTOCOL = (
    "text to image: {queries} captions, equally many a language, search {images} pictures; image to "
    "text: {shown} pictures search {texts} captions of all languages, and of the {depth} found those in "
    "the language are counted; pictures and captions of the pool are never right; recall@k: the right "
    "item is among the first k; items that the index scores as high count against it; inner product of "
    "unit-length float32; the share of the true neighbours that an index finds stands in faiss.csv"
)


def run_faiss(config: FaissConfig, encoder: DualModel, out: Path) -> dict[str, Any]:
    """Measure every index in both directions; write results.json, faiss.csv and faiss.json into `out`.

    Returns:
        What stands in faiss.json; the Pareto plot is made of its `rows`.

    Raises:
        UserError: a set is missing or lacks a language, the cache is damaged, or there are several ranks.
    """
    if distributed.world_size() > 1:
        raise UserError(f"suite {config.name}: it times one process; leave torchrun out")
    sets = _embed(config, encoder)
    searches = make_searches(sets[0], sets[1:], config.set.languages, config.queries, config.seed)
    results = Results(suite=config.name, model=encoder.facts, environment=environment())
    results.protocol[f"faiss/{config.set.name}"] = _protocol(config, searches)
    results.data[config.set.name] = sets[0].data_sha256
    machine = {**environment(), **_machine()}
    measured = {one.direction: measure_direction(config, one, results) for one in searches}
    rows = [row for of_direction, _ in measured.values() for row in of_direction]
    tree = {
        "suite": config.name,
        "model": encoder.facts,
        "environment": machine,
        "config": config.model_dump(mode="json"),
        "embeddings": [_source(one) for one in sets],
        "searches": {one.direction: _facts(one) for one in searches},
        "largest_score_difference_to_numpy": {name: gap for name, (_, gap) in measured.items()},
        "recommendations": recommendations(rows, config.timed_at),
        "throughput_at_recall": throughput_at(rows, config.timed_at),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    results.write(out / "results.json")
    write_csv(out / "faiss.csv", rows)
    write_json(out / "faiss.json", tree)
    for sentence in recommendations(rows, config.timed_at):
        say(sentence)
    return tree


def _embed(config: FaissConfig, encoder: DualModel) -> list[CachedSet]:
    """The test set, then the pool."""
    named = [(config.set.name, config.set.shards), *((shards, shards) for shards in config.pool)]
    return [cached_set(encoder, Path(shards), name, Path(config.cache)) for name, shards in named]


def _protocol(config: FaissConfig, searches: list[Search]) -> str:
    to_image, to_text = searches
    return PROTOCOL.format(
        queries=len(to_image.query_QD),
        images=len(to_image.pool_MD),
        shown=len(to_text.query_QD),
        texts=len(to_text.pool_MD),
        depth=max(config.recall_at),
    )


def _machine() -> dict[str, Any]:
    """What else decides about speed."""
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


def _source(one: CachedSet) -> dict[str, Any]:
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
