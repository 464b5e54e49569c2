"""FreeLB against a naive computation of the same sums."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import ClassificationModel, Pairs
from mmalign.text.robust import ball, noise
from mmalign.text.robust.freelb import FreeLbConfig, backward
from mmalign.text.tasks.example import Example

Build = Callable[[Pairs], ClassificationModel]
Under = Callable[[TaskModel, TaskBatch, Tensor], Tensor]


@pytest.mark.parametrize("pairs", ["joint", "separate"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_gradients_are_the_mean_over_the_ascent(
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
    loss, found = gradients(
        model, lambda: backward(model, batch, config, torch.Generator().manual_seed(4))
    )

    zero = noise.zeros(model.tower, batch.tokens, "embedding")
    delta = ball.draw(zero, mask, "l2_sequence", 0.4, torch.Generator().manual_seed(4))
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
