"""The ascent finds noise that hurts, example by example, and stays in its ball."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import ChoiceModel, ClassificationModel, Pairs
from mmalign.text.robust import noise
from mmalign.text.robust.noise import Layer, Norm
from mmalign.text.robust.pgd import PgdConfig
from mmalign.text.tasks.task import Example

LAYERS: tuple[Layer, ...] = ("embedding", 1, "last")
RADIUS: dict[Norm, float] = {"linf": 0.02, "l2": 0.1, "l2_sequence": 0.3}

Build = Callable[[Pairs], ClassificationModel]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def config_for(norm: Norm, layer: Layer = "embedding", **fields: Any) -> PgdConfig:
    radius = fields.pop("radius", RADIUS[norm])
    settings = {"radius": radius, "step_size": radius / 2, "norm": norm, "layer": layer, **fields}
    return PgdConfig(kind="pgd", **settings)


def losses(model: TaskModel, batch: TaskBatch, layer: Layer, delta: Tensor) -> Tensor:
    with torch.no_grad():
        return noise.losses(model, batch, layer, delta)


def train(model: TaskModel, batch: TaskBatch, steps: int = 40) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.losses(model(batch), batch).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("pairs", "layer", "norm", "random_start"),
    [
        ("joint", "embedding", "linf", False),
        ("joint", 1, "l2", True),
        ("joint", "last", "l2_sequence", False),
        ("separate", "embedding", "l2_sequence", True),
        ("separate", "last", "linf", True),
    ],
)
def test_no_example_ends_below_where_it_was(
    model_of: Build,
    norm_of: Callable[[Tensor, Norm], Tensor],
    examples: list[Example],
    pairs: Pairs,
    layer: Layer,
    norm: Norm,
    random_start: bool,
) -> None:
    model = model_of(pairs)
    batch = model.collate(examples)
    # The second steps are far too long for the ball: some iterates are worse than no noise.
    for step_size in (RADIUS[norm] / 2, 50 * RADIUS[norm]):
        config = config_for(norm, layer, step_size=step_size, random_start=random_start)
        delta = config.perturb(model, batch, seeded())
        before = losses(model, batch, layer, torch.zeros_like(delta))
        after = losses(model, batch, layer, delta)
        assert (after >= before - 1e-6).all()
        assert after.mean() > before.mean()
        assert (norm_of(delta, norm) <= RADIUS[norm] + 1e-6).all()
        assert (delta[batch.tokens.mask_NL == 0] == 0).all()
        assert not delta.requires_grad
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2_sequence"])
def test_it_hurts_a_trained_classifier_more_than_random_noise(
    model_of: Build, examples: list[Example], norm: Norm
) -> None:
    model = model_of("joint")
    batch = model.collate(examples)
    train(model, batch)
    delta = config_for(norm, steps=5).perturb(model, batch, seeded())
    clean = losses(model, batch, "embedding", torch.zeros_like(delta)).mean()
    zero = torch.zeros_like(delta)
    drawn = noise.draw(zero, batch.tokens.mask_NL, norm, RADIUS[norm], seeded())
    chance = losses(model, batch, "embedding", drawn).mean()
    worst = losses(model, batch, "embedding", delta).mean()
    assert clean < 0.2
    assert worst - clean > 3 * (chance - clean).abs()
    assert worst > 1.05 * clean


@pytest.mark.parametrize("layer", LAYERS)
def test_the_loss_trained_on_is_never_below_the_plain_one_of_the_same_dropout(
    model_of: Build, examples: list[Example], layer: Layer
) -> None:
    model = model_of("joint").train()
    batch = model.collate(examples)
    config = config_for("l2", layer, radius=1e-3, step_size=1e-3, steps=1)
    for seed in range(5):
        torch.manual_seed(seed)
        plain = model.losses(model(batch), batch).mean().item()
        torch.manual_seed(seed)
        assert config.backward(model, batch, seeded()) >= plain - 1e-6


def test_all_sequences_of_an_example_take_the_noise_of_one_iterate(tower: TextEncoder) -> None:
    choices = [
        Example("0", "en", ("a red ball", "a dog", "the cat", "green"), 1),
        Example("1", "en", ("a chair", "a cat sleeps"), 0),  # one choice: its loss is always 0
    ]
    model = ChoiceModel(tower, "joint")
    torch.nn.init.normal_(model.head.output.weight, generator=torch.Generator().manual_seed(1))
    batch = model.eval().collate(choices)
    delta = config_for("l2").perturb(model, batch, seeded())
    assert batch.example_N.tolist() == [0, 0, 0, 1]
    assert (delta.flatten(1).abs().amax(1) > 0).tolist() == [True, True, True, False]


def test_the_iterates_are_those_of_a_plain_loop(
    model_of: Build,
    examples: list[Example],
    losses_under: Callable[[TaskModel, TaskBatch, Tensor], Tensor],
) -> None:
    model = model_of("joint")
    batch = model.collate(examples[:1])
    config = config_for("l2_sequence", steps=3)
    delta = torch.zeros_like(noise.zeros(model.tower, batch.tokens, "embedding"))
    tried = []
    for _ in range(3):
        delta.requires_grad_()
        loss = losses_under(model, batch, delta).sum()
        tried.append((loss.item(), delta.detach()))
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() + config.step_size * gradient / gradient.norm()
        delta = delta * min(1.0, config.radius / delta.norm().item())
    tried.append((losses_under(model, batch, delta).sum().item(), delta))
    expected = max(tried, key=lambda one: one[0])[1]
    torch.testing.assert_close(
        config.perturb(model, batch, seeded()), expected, rtol=1e-4, atol=1e-6
    )
