"""RS-RP and FreeLB against naive computations of the same sums."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.pooling import Pooling, pool
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import ClassificationModel, Pairs
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.robust import noise
from mmalign.text.robust.freelb import FreeLbConfig
from mmalign.text.robust.noise import Layer
from mmalign.text.robust.rs_rp import RsRpConfig
from mmalign.text.tasks.task import Example

Build = Callable[[Pairs], ClassificationModel]
Under = Callable[[TaskModel, TaskBatch, Tensor], Tensor]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_rs_rp_averages_over_the_draws(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs
) -> None:
    model = model_of(pairs).double()
    batch = model.collate(examples)
    config = RsRpConfig(kind="rs_rp", epsilon=0.2, draws=4)
    loss, found = gradients(model, lambda: config.backward(model, batch, seeded()))

    def naive() -> float:
        generator = seeded()
        total = 0.0
        for _ in range(4):
            state = model.tower.states(batch.tokens)
            unit = torch.rand(state.shape, generator=generator).double() * 2 - 1
            state = state + 0.2 * unit * batch.tokens.mask_NL[..., None]
            part = model.losses(model.logits(state, batch), batch).mean() / 4
            part.backward()
            total += part.item()
        return total

    expected_loss, expected = gradients(model, naive)
    assert loss == pytest.approx(expected_loss, abs=1e-9)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pooled_norm_is_that_of_the_change_at_every_length(
    model_of: Build, examples: list[Example], pooling: Pooling
) -> None:
    model = model_of("separate")
    model.tower.pooling = pooling
    batch = model.collate(examples)
    mask_NL = batch.tokens.mask_NL
    assert len(set(mask_NL.sum(1).tolist())) > 2  # several lengths
    noise_NLF = RsRpConfig(kind="rs_rp", pooled_norm=0.7).draw(model, batch, seeded())
    state_NLF = model.tower.states(batch.tokens)
    moved_NF = pool(state_NLF + noise_NLF, mask_NL, pooling) - pool(state_NLF, mask_NL, pooling)
    torch.testing.assert_close(
        moved_NF.norm(dim=1), torch.full((len(mask_NL),), 0.7), rtol=1e-4, atol=0
    )
    assert not noise_NLF[mask_NL == 0].any()


def test_a_pooled_norm_needs_states_that_are_pooled(tower: TextEncoder) -> None:
    for fields in ({}, {"epsilon": 0.1, "pooled_norm": 0.1}, {"pooled_norm": 0.1, "layer": 1}):
        with pytest.raises(UserError, match=r"exactly one of|needs `layer: last`"):
            validate(RsRpConfig, {"kind": "rs_rp", **fields}, "method")
    model = TaggingModel(tower, ("O", "B-X"))
    batch = model.collate([Example("1", "en", ("a", "dog"), ("O", "B-X"))])
    with pytest.raises(UserError, match="heads that read pooled states"):
        RsRpConfig(kind="rs_rp", pooled_norm=0.1).draw(model, batch, seeded())


@pytest.mark.parametrize(("layer", "runs"), [("last", 1), ("embedding", 5), (1, 5)])
def test_rs_rp_runs_the_encoder_once_where_it_can(
    model_of: Build, examples: list[Example], layer: Layer, runs: int
) -> None:
    model = model_of("joint")
    seen: list[int] = []
    model.tower.trunk.register_forward_hook(lambda *_: seen.append(1))
    config = RsRpConfig(kind="rs_rp", layer=layer, epsilon=0.1, draws=5)
    config.backward(model, model.collate(examples), seeded())
    assert len(seen) == runs


@pytest.mark.parametrize(("pairs", "steps"), [("joint", 1), ("joint", 3), ("separate", 2)])
def test_gradients_of_freelb_are_the_mean_over_the_ascent(
    model_of: Build,
    gradients: Any,
    losses_under: Under,
    examples: list[Example],
    pairs: Pairs,
    steps: int,
) -> None:
    model = model_of(pairs).double()
    batch = model.collate(examples)
    mask = batch.tokens.mask_NL
    config = FreeLbConfig(kind="freelb", radius=0.4, step_size=0.15, steps=steps)
    loss, found = gradients(model, lambda: config.backward(model, batch, seeded()))

    zero = noise.zeros(model.tower, batch.tokens, "embedding")
    delta = noise.draw(zero, mask, "l2_sequence", 0.4, seeded())
    parameters = list(model.parameters())
    total = [torch.zeros_like(one) for one in parameters]
    losses = []
    for _ in range(steps):
        mean = losses_under(model, batch, delta.requires_grad_()).mean()
        losses.append(mean.item())
        *by_weight, by_delta = torch.autograd.grad(
            mean, [*parameters, delta], allow_unused=True, materialize_grads=True
        )
        total = [one + part / steps for one, part in zip(total, by_weight, strict=True)]
        by_delta = by_delta * mask[..., None]
        length = by_delta.flatten(1).norm(dim=1)[:, None, None]
        delta = delta.detach() + 0.15 * by_delta / length
        length = delta.flatten(1).norm(dim=1)[:, None, None]
        delta = torch.where(length > 0.4, delta * 0.4 / length, delta)
    assert loss == pytest.approx(sum(losses) / steps, abs=1e-9)
    for one, expected in zip(found, total, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-9)
    if steps > 1:
        assert losses[-1] > losses[0]
