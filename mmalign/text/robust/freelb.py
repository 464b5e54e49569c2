"""FreeLB: adversarial training whose ascent steps train the weights too.

    delta, at first random -> loss / K -> backward -> gradients of the weights, added up over K passes
      ^                                      |
      +---------- step, project <- gradient by delta

Zhu et al. 2020 (arXiv 1909.11764), algorithm 1: K passes, each both an ascent step of the noise and a K-th of
the weights' gradient; the noise lives on the word embedding, in a ball of the whole sequence, and dropout is
the same in all passes of a batch. Other layers and norms are ours.
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


class FreeLbConfig(Section):
    kind: Literal["freelb"]
    layer: Layer = "embedding"
    """Where the noise goes: `embedding`, `last`, or the number of a block from 1."""
    norm: Norm = "l2_sequence"
    """linf: per entry; l2: per token; l2_sequence: all tokens of a sequence together, as published."""
    radius: float = Field(ge=0)
    """Of the ball, in the norm; the noise starts at random inside it."""
    step_size: float = Field(gt=0)
    """Length of an ascent step, in the norm."""
    steps: int = Field(default=3, ge=1)
    """K; a batch costs K plain steps."""


def backward(
    model: TaskModel, batch: TaskBatch, config: FreeLbConfig, generator: torch.Generator
) -> float:
    """The mean loss of the batch over the K noises; its gradients are added to the parameters' `.grad`."""
    mask_NL = batch.tokens.mask_NL
    zero_NLF = noise.zeros(model.tower, batch.tokens, config.layer)
    delta_NLF = ball.draw(zero_NLF, mask_NL, config.norm, config.radius, generator)
    total = 0.0
    for _ in noise.passes(model.tower, config.steps):
        delta_NLF.requires_grad_()
        loss = noise.losses(model, batch, config.layer, delta_NLF).mean() / config.steps
        loss.backward()
        total += loss.item()
        delta_NLF = _moved(delta_NLF, mask_NL, config)
    return total


def _moved(delta_NLF: Tensor, mask_NL: Tensor, config: FreeLbConfig) -> Tensor:
    """One ascent step along the gradient that the last pass left; none where layer drop took the block."""
    if delta_NLF.grad is None:
        return delta_NLF.detach()
    step_NLF = config.step_size * ball.direction(delta_NLF.grad, mask_NL, config.norm)
    return ball.project(delta_NLF.detach() + step_NLF, config.norm, config.radius)
