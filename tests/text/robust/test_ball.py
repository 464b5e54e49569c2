"""Noise stays in its ball and off the padding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmalign.text.robust.ball import Norm, direction, draw, project

NORMS: tuple[Norm, ...] = ("linf", "l2", "l2_sequence")
NormOf = Callable[[Tensor, Norm], Tensor]
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def random(seed: int) -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
def test_drawn_noise_is_inside_and_never_on_padding(norm_of: NormOf, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(torch.zeros(2, 5, 8), MASK, norm, 0.7, generator) for _ in range(200)]
    for noise in drawn:
        assert (norm_of(noise, norm) <= 0.7 + 1e-6).all()
        assert (noise[1, 3:] == 0).all() and (noise[1, :3] != 0).all()
    assert torch.stack(drawn).mean().abs() < 0.01
    if norm == "linf":  # uniform: the deviation is the half-width over the root of 3
        assert torch.stack(drawn)[:, 0].std().item() == pytest.approx(0.7 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_projected_noise_is_inside_and_what_was_inside_stays(norm_of: NormOf, norm: Norm) -> None:
    outside = random(1) * 10
    assert (norm_of(project(outside, norm, 0.5), norm) <= 0.5 + 1e-6).all()
    inside = project(outside, norm, 0.25)
    torch.testing.assert_close(project(inside, norm, 0.5), inside, rtol=0, atol=0)
    assert (project(outside, norm, 0.0) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_a_direction_has_size_one_however_small_the_gradient(
    norm_of: NormOf, norm: Norm, scale: float
) -> None:
    step = direction(random(2) * scale, MASK, norm)
    assert norm_of(step, norm).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (step[1, 3:] == 0).all()
    assert (direction(torch.zeros(2, 5, 8), MASK, norm) == 0).all()
