"""Adversarial training: the worst noise in a ball around the states, found by projected gradient ascent.

Madry et al. 2018 (arXiv 1706.06083). Huang et al. 2021 (arXiv 2104.08645) train so for cross-lingual transfer
(ADV), but norm, radius, steps and step size of theirs are unknown: those here are our own, and a result must
report them. Also ours: of all iterates, no noise included, each example keeps the one with its highest loss,
and all passes of a batch have the same dropout, so that the loss trained on is never below the plain one.
"""

from typing import Literal

import torch
from torch import Tensor

from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import noise
from mmalign.text.robust.noise import AscentConfig, Norm


class PgdConfig(AscentConfig):
    """A batch costs at most K + 1 plain steps."""

    kind: Literal["pgd"]
    norm: Norm = "l2"
    random_start: bool = False
    """Begin at random noise in the ball, not at none."""

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        """The mean loss of the batch under its worst noise; see `method.py`."""
        delta_NLF = self.perturb(model, batch, generator)
        loss = noise.losses(model, batch, self.layer, delta_NLF).mean()
        loss.backward()
        return loss.item()

    def perturb(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> Tensor:
        """(N, L, F), the noise found to be worst for each example; no gradient reaches the weights.

        A pass over the batch right after it has the dropout that the noise was chosen under.
        """
        mask_NL = batch.tokens.mask_NL
        worst_NLF = noise.zeros(model.tower, batch.tokens, self.layer)
        delta_NLF = worst_NLF.detach()  # a tensor of its own, whose gradient is asked for below
        worst_B = torch.full((len(batch.examples),), -torch.inf, device=model.tower.device)
        if self.random_start:
            with torch.no_grad():
                worst_B = self._losses(model, batch, worst_NLF)
            delta_NLF = noise.draw(worst_NLF, mask_NL, self.norm, self.radius, generator)
        for step in range(self.steps + 1):  # K steps make K + 1 iterates
            moves = step < self.steps  # the last iterate is only looked at
            with torch.set_grad_enabled(moves):
                losses_B = self._losses(model, batch, delta_NLF.requires_grad_(moves))
            # Approximately the worst in retrieval: there a loss depends on the noise of the others too.
            is_worse_B = losses_B.detach() > worst_B
            worst_B = torch.where(is_worse_B, losses_B.detach(), worst_B)
            # All sequences of an example take the noise of the same iterate.
            is_worse_N11 = is_worse_B[batch.example_N][:, None, None]
            worst_NLF = torch.where(is_worse_N11, delta_NLF.detach(), worst_NLF)
            if moves:
                # By the noise alone: the gradients of the weights would cost time and are not needed.
                # Where layer drop skipped the block the gradient is zero.
                (gradient_NLF,) = torch.autograd.grad(
                    losses_B.sum(), delta_NLF, materialize_grads=True
                )
                delta_NLF = self.moved(delta_NLF.detach(), gradient_NLF, mask_NL)
        return worst_NLF

    def _losses(self, model: TaskModel, batch: TaskBatch, delta_NLF: Tensor) -> Tensor:
        with noise.replayed(model.tower):
            return noise.losses(model, batch, self.layer, delta_NLF)
