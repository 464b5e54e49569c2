"""RS-RP: randomised smoothing by random perturbation of the states.

Named in Huang et al. 2021 (arXiv 2104.08645), whose code has no RS-RP and whose values we do not know. This
is the form that LimJing7/ml-stance-detection@c5d53a4 re-implemented: S draws, uniform in a box, on the last
hidden states. It tried a half-width of 0.01 and 0.1 with 3 draws. Ours: no noise on padding, other layers,
the same dropout in all draws of a batch, `pooled_norm`.

The strength of a half-width depends on the texts' length and on the pooling. Measured with 384 entries per
state, 0.3 moves the pooled state by 1.70, 0.85 and 0.42 at 4, 16 and 64 tokens under mean pooling, and by 3.4
under cls pooling at any length. `pooled_norm` sets this change itself.
"""

from typing import Literal

import torch
from pydantic import Field

from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import noise
from mmalign.text.robust.noise import UniformConfig


class RsRpConfig(UniformConfig):
    kind: Literal["rs_rp"]
    draws: int = Field(default=3, ge=1)
    """Noises of a batch, whose losses are averaged."""

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        """The mean loss of the batch over the draws; see `method.py`."""
        if self.layer == "last":  # the noise comes after the encoder, which therefore runs once
            state_NLF = model.tower.states(batch.tokens)
            noisy = [state_NLF + self.draw(model, batch, generator) for _ in range(self.draws)]
            logits = [model.logits(one, batch) for one in noisy]
            loss = torch.stack([model.losses(one, batch).mean() for one in logits]).mean()
            loss.backward()
            return loss.item()
        total = 0.0
        for _ in noise.passes(model.tower, self.draws):
            delta_NLF = self.draw(model, batch, generator)
            # One backward pass per draw: only one graph at a time is in memory.
            loss = noise.losses(model, batch, self.layer, delta_NLF).mean() / self.draws
            loss.backward()
            total += loss.item()
        return total
