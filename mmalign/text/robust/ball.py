"""Balls that bound noise, and how to move inside them.

    linf          every entry of the noise, at most `radius`
    l2            the length of a token's noise
    l2_sequence   the length of a sequence's noise, all its tokens together (Frobenius norm)

    draw -> delta_NLF -> + step * direction(gradient) -> project -> delta_NLF, again inside the ball

Noise is added to the tokens of the mask, special tokens included (a head may read one of those), and never to
padding. Shapes: N sequences, L tokens, F entries of a token's vector.
"""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l2_sequence"]

_SUMMED: dict[Norm, tuple[int, ...]] = {"l2": (2,), "l2_sequence": (1, 2)}
"""The dimensions of (N, L, F) that a norm sums over."""


def draw(
    zero_NLF: Tensor, mask_NL: Tensor, norm: Norm, radius: float, generator: torch.Generator
) -> Tensor:
    """Noise with uniform entries, inside the ball.

    The entries of `linf` are uniform in [-radius, radius]. Those of the other norms are that divided by the
    root of the number of entries that the norm sums over, which keeps them inside: FreeLB's start
    (arXiv 1909.11764, algorithm 1).

    Args:
        zero_NLF: gives shape, dtype and device.
        generator: on any device; one on the host draws the same noise for every device.
    """
    unit_NLF = torch.rand(zero_NLF.shape, generator=generator, device=generator.device)
    noise_NLF = (2 * unit_NLF - 1).to(zero_NLF) * mask_NL.unsqueeze(-1) * radius
    if norm == "linf":
        return noise_NLF
    entries_N11 = torch.full_like(mask_NL[:, :1, None], zero_NLF.shape[2])
    if norm == "l2_sequence":
        entries_N11 = entries_N11 * mask_NL.sum(1)[:, None, None].clamp(min=1)
    return noise_NLF / entries_N11.sqrt()


def direction(gradient_NLF: Tensor, mask_NL: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in the norm that raises a linear loss most; zero where the gradient is zero."""
    gradient_NLF = gradient_NLF * mask_NL.unsqueeze(-1)
    if norm == "linf":
        return gradient_NLF.sign()
    # The largest entry first: squares of a well-fitted model's tiny gradients would be zero.
    largest = gradient_NLF.abs().amax(_SUMMED[norm], keepdim=True)
    scaled_NLF = gradient_NLF / largest.clamp(min=torch.finfo(gradient_NLF.dtype).tiny)
    return scaled_NLF / scaled_NLF.norm(dim=_SUMMED[norm], keepdim=True).clamp(min=1e-6)


def project(delta_NLF: Tensor, norm: Norm, radius: float) -> Tensor:
    """The nearest noise inside the ball."""
    if norm == "linf":
        return delta_NLF.clamp(-radius, radius)
    size = delta_NLF.norm(dim=_SUMMED[norm], keepdim=True)
    return delta_NLF * (radius / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
