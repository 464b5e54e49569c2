"""What each rank does in `test_ranks.py`: all cases in one spawn for each number of ranks.

They stand in a file of their own because spawned processes must be able to import them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from mmalign.core import distributed
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation import embed, over_ranks
from mmalign.evaluation.nearest import hits_at, search_shards
from mmalign.evaluation.retrieval import Protocol, measure_retrieval
from mmalign.evaluation.suite import SuiteConfig, measure, run_suite
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.results.results import Results

BATCH_SIZE = 4


class CountingEncoder(Encoder):
    """Counts the batches of texts that this rank encodes."""

    calls = 0

    def encode_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        self.calls += 1
        return super().encode_texts(texts, batch_size)


def make_encoder(run: Path, untrained: bool = False) -> CountingEncoder:
    """As `load_encoder`. The run holds the tokenizer, whose training differs from process to process."""
    encoder = load_encoder(run, untrained)
    return CountingEncoder(encoder.model, encoder.config, encoder.tokenizer, encoder.facts)


def make_suite(sets: dict[str, Path], images: Path | None = None) -> SuiteConfig:
    """Retrieval and alignment on all sets, with a gallery from the first; a probe of labelled images."""
    entries = [{"name": name, "shards": str(path)} for name, path in sets.items()]
    tree = {"name": "small", "sets": entries, "recall_at": [1, 3], "gallery": ["en", "ja"]}
    if images is not None:
        folders = {side: str(images / side) for side in ("train", "test")}
        tree["probe"] = [{"name": kind, "kind": kind, **folders} for kind in ("linear", "knn")]
    return validate(SuiteConfig, tree, "x.yaml")


@patch.object(embed, "BATCH_SIZE", BATCH_SIZE)  # small sets make many batches
@patch.object(over_ranks, "BATCH_SIZE", BATCH_SIZE)
def everything(
    run: Path, sets: dict[str, Path], images: Path, other: Path, out: Path
) -> dict[str, Any]:
    """Results, embeddings and refusals on this rank.

    Args:
        images: folder with `train` and `test`, for a probe.
        other: a data set that the last rank takes for the first of `sets`.
    """
    encoder, untrained = make_encoder(run), make_encoder(run, untrained=True)
    results = run_suite(make_suite(sets, images), encoder, out, {"untrained": untrained})
    calls = encoder.calls
    name, first = next(iter(sets.items()))
    embedded = embed.embed_set(encoder, ShardSet(first), "s")
    is_last = distributed.rank() == distributed.world_size() - 1
    return {
        "results": json.dumps(asdict(results)),
        "image_PD": torch.from_numpy(embedded.image_PD),
        "text_MD": torch.from_numpy(embedded.text_MD),
        "texts": embedded.texts,
        "languages": embedded.language_M.tolist(),
        "calls": calls,
        "sharded": sharded(encoder, sets),
        "ties": ties(),
        "differing_weights": refusal(untrained if is_last else encoder, sets),
        "differing_data": refusal(encoder, {**sets, name: other} if is_last else sets),
    }


def sharded(encoder: Encoder, sets: dict[str, Path]) -> dict[str, Any]:
    """Retrieval on sets of which no rank holds all pictures, and on the same sets as they are."""
    protocols: tuple[Protocol, ...] = ("all-captions", "first-caption")
    found: dict[str, Any] = {"rows": {}}
    for way in (True, False):
        results = Results(suite="s", model={})
        for name, path in sets.items():
            one = embed.embed_set(encoder, ShardSet(path), name, sharded=way)
            measure_retrieval(one, (1, 3), results, protocols)
            if way:
                found["rows"][name] = (one.first_picture, torch.from_numpy(one.image_PD))
        found["sharded" if way else "whole"] = json.dumps([results.metrics, results.ci95])
    return found


def ties() -> dict[str, Any]:
    """Hits and lists of a pool with many equal scores and rows that are not numbers, in uneven slices."""
    rng = np.random.default_rng(0)
    # Small whole numbers: products are exact and often equal.
    query = rng.integers(-2, 3, size=(60, 3)).astype(np.float32)
    pool = rng.integers(-2, 3, size=(45, 3)).astype(np.float32)
    pool[::11] = np.nan
    query_label, pool_label = rng.integers(0, 14, 60), rng.integers(0, 12, 45)
    cuts = [0, *(45 * (r + 1) ** 2 // distributed.world_size() ** 2 for r in range(4))]
    cuts[1] = 0 if distributed.world_size() > 1 else cuts[1]  # the first rank has nothing
    slice_SD = pool[cuts[distributed.rank()] : cuts[distributed.rank() + 1]]
    hits = hits_at(query, slice_SD, query_label, pool_label, (1, 3, 10, 44), sharded=True)
    whole = hits_at(query, pool, query_label, pool_label, (1, 3, 10, 44))
    scores, indices = search_shards(query, slice_SD, 9)
    return {
        "hits": {k: hit.tolist() for k, hit in hits.items()},
        "whole": {k: hit.tolist() for k, hit in whole.items()},
        "scores": scores.tolist(),
        "right_scores": bool(np.all(np.einsum("qd,qkd->qk", query, pool[indices]) == scores)),
    }


def refusal(encoder: Encoder, sets: dict[str, Path]) -> str:
    """What the suite says against it; nothing if it measures."""
    try:
        measure(make_suite(sets), encoder)
    except UserError as error:
        return str(error)
    return ""
