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

from mmalign import distributed
from mmalign.config import validate
from mmalign.data.reader import ShardSet
from mmalign.errors import UserError
from mmalign.evaluation import embed
from mmalign.evaluation.encoder import Encoder, load_encoder
from mmalign.evaluation.suite import SuiteConfig, measure, run_suite

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


def make_suite(sets: dict[str, Path]) -> SuiteConfig:
    """Retrieval and alignment on all sets, with a gallery from the first."""
    entries = [{"name": name, "shards": str(path)} for name, path in sets.items()]
    tree = {"name": "small", "sets": entries, "recall_at": [1, 3], "gallery": ["en", "ja"]}
    return validate(SuiteConfig, tree, "x.yaml")


@patch.object(embed, "BATCH_SIZE", BATCH_SIZE)  # small sets make many batches
def everything(run: Path, sets: dict[str, Path], other: Path, out: Path) -> dict[str, Any]:
    """Results, embeddings and refusals on this rank.

    Args:
        other: a data set that the last rank takes for the first of `sets`.
    """
    encoder, untrained = make_encoder(run), make_encoder(run, untrained=True)
    results = run_suite(make_suite(sets), encoder, out, {"untrained": untrained})
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
        "differing_weights": refusal(untrained if is_last else encoder, sets),
        "differing_data": refusal(encoder, {**sets, name: other} if is_last else sets),
    }


def refusal(encoder: Encoder, sets: dict[str, Path]) -> str:
    """What the suite says against it; nothing if it measures."""
    try:
        measure(make_suite(sets), encoder)
    except UserError as error:
        return str(error)
    return ""
