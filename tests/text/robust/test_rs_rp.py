"""RS-RP is the mean over its draws, and pays for the encoder once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmalign.text.heads.features import ClassificationModel, Pairs
from mmalign.text.robust.noise import Layer
from mmalign.text.robust.rs_rp import RsRpConfig, backward
from mmalign.text.tasks.example import Example

Build = Callable[[Pairs], ClassificationModel]


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_noise_on_the_last_states_is_averaged_over_the_draws(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs
) -> None:
    model = model_of(pairs).double()
    batch = model.collate(examples)
    config = RsRpConfig(kind="rs_rp", epsilon=0.2, draws=4)
    loss, found = gradients(
        model, lambda: backward(model, batch, config, torch.Generator().manual_seed(2))
    )

    def naive() -> float:
        generator = torch.Generator().manual_seed(2)
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


@pytest.mark.parametrize(("layer", "runs"), [("last", 1), ("embedding", 5), (1, 5)])
def test_the_encoder_runs_once_where_it_can(
    model_of: Build, examples: list[Example], layer: Layer, runs: int
) -> None:
    model = model_of("joint")
    seen: list[int] = []
    model.tower.trunk.register_forward_hook(lambda *_: seen.append(1))
    config = RsRpConfig(kind="rs_rp", layer=layer, epsilon=0.1, draws=5)
    backward(model, model.collate(examples), config, torch.Generator().manual_seed(0))
    assert len(seen) == runs
