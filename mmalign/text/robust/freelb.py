"""FreeLB: adversarial training whose ascent steps train the weights too.

Zhu et al. 2020 (arXiv 1909.11764), algorithm 1: K passes, each both an ascent step of the noise and a K-th of
the weights' gradient; the noise is added to the word embedding, in a ball of the entire sequence, and dropout
is the same in all passes of a batch. Other layers and norms are ours.
"""

from typing import Literal

import torch

from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import noise
from mmalign.text.robust.noise import AscentConfig, Norm


class FreeLbConfig(AscentConfig):
    """A batch costs K plain steps; the noise starts at random inside the ball."""

    kind: Literal["freelb"]
    norm: Norm = "l2_sequence"  # as published

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        """The mean loss of the batch over the K noises; see `method.py`."""
        mask_NL = batch.tokens.mask_NL
        zero_NLF = noise.zeros(model.tower, batch.tokens, self.layer)
        delta_NLF = noise.draw(zero_NLF, mask_NL, self.norm, self.radius, generator)
        total = 0.0
        for _ in noise.passes(model.tower, self.steps):
            delta_NLF.requires_grad_()
            loss = noise.losses(model, batch, self.layer, delta_NLF).mean() / self.steps
            loss.backward()
            total += loss.item()
            gradient_NLF, delta_NLF = delta_NLF.grad, delta_NLF.detach()
            if gradient_NLF is not None:  # layer drop may have skipped the block
                delta_NLF = self.moved(delta_NLF, gradient_NLF, mask_NL)
        return total
