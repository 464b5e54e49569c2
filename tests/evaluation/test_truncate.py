"""Prefixes of embeddings have unit length, as torch makes them, and are retrieved by themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_sets import make_set
from tiny import tiny_run

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.suite import SuiteConfig, run_suite
from mmalign.evaluation.truncate import truncate
from mmalign.models.encoder import load_encoder


def suite(shards: Path, dims: list[int]) -> SuiteConfig:
    sets = [{"name": "s", "shards": str(shards), "measures": ["retrieval"]}]
    return validate(SuiteConfig, {"name": "small", "sets": sets, "dims": dims}, "x.yaml")


def test_a_prefix_is_that_of_torch() -> None:
    row_ND = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    row_ND[3, :4] = 0
    short = torch.nn.functional.normalize(torch.from_numpy(row_ND[:, :4]), dim=1).numpy()
    assert truncate(row_ND, 4) == pytest.approx(short, abs=1e-7)
    assert truncate(row_ND, 4).flags.c_contiguous
    assert truncate(row_ND, None) is row_ND


def test_prefixes_are_retrieved_by_themselves(
    tmp_path: Path,
) -> None:
    shards, encoder = make_set(tmp_path / "test", 9), load_encoder(tiny_run(tmp_path / "run"))
    results = run_suite(suite(shards, [3, 5]), encoder, tmp_path / "out", {})
    embedded = embed_set(encoder, ShardSet(shards), "s")
    for dims in (3, 5):
        image_PD, text_MD = (
            rows[:, :dims] / np.linalg.norm(rows[:, :dims], axis=1, keepdims=True)
            for rows in (embedded.image_PD, embedded.text_MD)
        )
        score_MP = text_MD @ image_PD.T
        own_M = score_MP[np.arange(len(score_MP)), embedded.picture_M]
        rank_M = (score_MP >= own_M[:, None] - 1e-6).sum(1)
        name = f"retrieval/s@{dims}-dims/all/text_to_image/recall@5"
        assert results.metrics[name] == pytest.approx((rank_M <= 5).mean())
        assert results.counts[name] == len(rank_M)
    for dims, reason in (([99], "`dims` is 99, but the model's"), ([3, 3], "`dims` lists")):
        with pytest.raises(UserError, match=reason):
            run_suite(suite(shards, dims), encoder, tmp_path / "out", {})
