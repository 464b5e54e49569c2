"""Adversarial training: the worst noise in a ball around the states, found by projected gradient ascent.

    delta = 0 -> losses_B -> gradient by delta -> step, project -> losses_B -> ...        K times
                    |                                                  |
                    +--------> the worst of K + 1 per example <--------+
                                             |
                               mean loss -> gradients of the weights

Madry et al. 2018 (arXiv 1706.06083). Huang et al. 2021 (arXiv 2104.08645) train so for cross-lingual transfer
(ADV), but norm, radius, steps and step size of theirs are unknown: those here are our own, and a result must
state them. Also ours: of all iterates, no noise included, each example keeps the one with its highest loss,
and all passes of a batch have the same dropout, so that the loss trained on is never below the plain one.

Where examples of a batch are each other's negatives (retrieval), an example's loss depends on its neighbours'
noise too: there the choice per example is only approximately the worst.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmalign.core.config import Section
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import ball, noise
from mmalign.text.robust.ball import Norm
from mmalign.text.robust.noise import Layer


class PgdConfig(Section):
    kind: Literal["pgd"]
    layer: Layer = "embedding"
    """Where the noise goes: `embedding`, `last`, or the number of a block from 1."""
    norm: Norm = "l2"
    """linf: per entry; l2: per token; l2_sequence: all tokens of a sequence together."""
    radius: float = Field(ge=0)
    """Of the ball, in the norm."""
    step_size: float = Field(gt=0)
    """Length of an ascent step, in the norm."""
    steps: int = Field(default=3, ge=1)
    """K; a batch costs at most K + 1 plain steps."""
    random_start: bool = False
    """Begin at random noise in the ball, not at none."""


def backward(
    model: TaskModel, batch: TaskBatch, config: PgdConfig, generator: torch.Generator
) -> float:
    """The mean loss of the batch under its worst noise; gradients are added to the parameters' `.grad`."""
    delta_NLF = perturb(model, batch, config, generator)
    loss = noise.losses(model, batch, config.layer, delta_NLF).mean()
    loss.backward()
    return loss.item()


def perturb(
    model: TaskModel, batch: TaskBatch, config: PgdConfig, generator: torch.Generator
) -> Tensor:
    """(N, L, F), the noise found to be worst for each example; no gradient reaches the weights.

    A pass over the batch right after it has the dropout that the noise was chosen under.
    """
    mask_NL = batch.tokens.mask_NL
    delta_NLF = worst_NLF = noise.zeros(model.tower, batch.tokens, config.layer)
    worst_B = torch.full((len(batch.examples),), -torch.inf, device=model.tower.device)
    if config.random_start:
        worst_B = _losses(model, batch, config, worst_NLF)
        delta_NLF = ball.draw(worst_NLF, mask_NL, config.norm, config.radius, generator)
    for _ in range(config.steps):
        losses_B, gradient_NLF = _losses_and_gradient(model, batch, config, delta_NLF)
        worst_NLF, worst_B = _worse(batch, worst_NLF, worst_B, delta_NLF, losses_B)
        moved_NLF = delta_NLF + config.step_size * ball.direction(
            gradient_NLF, mask_NL, config.norm
        )
        delta_NLF = ball.project(moved_NLF, config.norm, config.radius)
    losses_B = _losses(model, batch, config, delta_NLF)
    return _worse(batch, worst_NLF, worst_B, delta_NLF, losses_B)[0]


@torch.no_grad()
def _losses(model: TaskModel, batch: TaskBatch, config: PgdConfig, delta_NLF: Tensor) -> Tensor:
    with noise.replayed(model.tower):
        return noise.losses(model, batch, config.layer, delta_NLF)


def _losses_and_gradient(
    model: TaskModel, batch: TaskBatch, config: PgdConfig, delta_NLF: Tensor
) -> tuple[Tensor, Tensor]:
    """(B,) and the gradient of their sum by the noise; zero where layer drop took the block."""
    delta_NLF = delta_NLF.detach().requires_grad_()
    with noise.replayed(model.tower):
        losses_B = noise.losses(model, batch, config.layer, delta_NLF)
    # By the noise alone: the gradients of the weights are neither wanted here nor paid for.
    (gradient_NLF,) = torch.autograd.grad(losses_B.sum(), delta_NLF, materialize_grads=True)
    return losses_B.detach(), gradient_NLF


def _worse(
    batch: TaskBatch, worst_NLF: Tensor, worst_B: Tensor, delta_NLF: Tensor, losses_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The noise and the losses of each example where they are highest; all its sequences go together."""
    is_worse_B = losses_B > worst_B
    is_worse_N = is_worse_B[batch.example_N]
    kept_NLF = torch.where(is_worse_N[:, None, None], delta_NLF, worst_NLF)
    return kept_NLF, torch.where(is_worse_B, losses_B, worst_B)
