"""Micro-batches: their edges, and that no rank needs to make fewer or more passes than the others."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_cases import ENGINE_TOWER, Way, make_batch, make_engine, plain_autograd, taken
from ranks import run_ranks

from mmalign.core import distributed
from mmalign.training.cached import split

TOKENS = 30


def tokens_of(edges: list[int]) -> list[int]:
    """Of each part of the batch of `parity_cases`."""
    batch = make_batch(0, 0, 1)
    return [sum(batch.part(*pair).length_N) for pair in pairwise(edges)]


def test_without_limits_all_is_one_part() -> None:
    assert split(make_batch(0, 0, 1)) == [0, 8]
    assert split(make_batch(0, 0, 1), images=8, tokens=1000) == [0, 8]
    assert split(make_batch(0, 0, 1), images=3) == [0, 3, 6, 8]


def test_parts_are_as_large_as_the_tokens_allow() -> None:
    batch = make_batch(0, 0, 1)
    per_image = tokens_of(list(range(9)))
    for limit in (1, 10, 20, 30, 60, sum(per_image) - 1):
        edges = split(batch, tokens=limit)
        assert edges[0] == 0 and edges[-1] == 8 and edges == sorted(set(edges))
        found = tokens_of(edges)
        for (first, last), tokens in zip(pairwise(edges), found, strict=True):
            assert tokens <= limit or last - first == 1  # one image alone may have more
            assert last == 8 or tokens + per_image[last] > limit  # and the next one would not fit
    # Without lengths they are counted in the mask.
    assert split(replace(batch, length_N=()), tokens=30) == split(batch, tokens=30)


@pytest.mark.parametrize("parts", range(1, 10))
def test_more_parts_are_made_of_those_with_the_most_tokens(parts: int) -> None:
    edges = split(make_batch(0, 0, 1), parts=parts)
    assert len(edges) - 1 == min(parts, 8)
    assert edges[0] == 0 and edges[-1] == 8 and edges == sorted(set(edges))
    if parts == 2:
        assert max(tokens_of(edges)) < 0.7 * sum(tokens_of(edges))


def step_with_tokens(stages: tuple[int, ...]) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    batch = make_batch(0, distributed.rank(), distributed.world_size())
    found: dict[str, Any] = {
        "truth": plain_autograd(ENGINE_TOWER),
        "own": len(split(batch, tokens=TOKENS)) - 1,
    }
    for stage in stages:
        engine = make_engine("contrastive", Way(stage, tokens=TOKENS))
        passes = []
        engine.module.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        engine.backward(batch)
        trainable = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
        gradients = {name: safe_get_full_grad(p) for name, p in trainable.items()}
        again = make_engine("contrastive", Way(stage, tokens=TOKENS))
        metrics = taken(again, batch)
        found[str(stage)] = ({n: g.clone() for n, g in gradients.items()}, len(passes), metrics[0])
    return found


def test_ranks_with_unequal_captions_make_equally_many_passes(tmp_path: Path) -> None:
    ranks = run_ranks(2, step_with_tokens, tmp_path / "ranks", (0, 2, 3))
    own = [rank["own"] for rank in ranks]
    assert own[0] != own[1] and min(own) > 1
    truth = ranks[0]["truth"]
    for stage in ("0", "2", "3"):
        for rank in ranks:
            gradients, passes, metrics = rank[stage]
            assert passes == 2 * max(own)
            ours = torch.cat([g.double().flatten() for g in gradients.values()])
            wanted = torch.cat([truth[name].flatten() for name in gradients])
            assert float((ours - wanted).norm() / wanted.norm()) < 1e-6
            assert metrics["loss"] == pytest.approx(float(truth["loss"]), rel=1e-6)
