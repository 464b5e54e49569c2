"""RS-RP: randomised smoothing by random perturbation of the states.

    tokens -> encoder, once -> state_NLF -+-> + noise 1 -> head -> loss -+
                                          +-> + noise 2 -> head -> loss -+-> mean -> gradients
                                          +-> + noise S -> head -> loss -+

Named in Huang et al. 2021 (arXiv 2104.08645), whose code has no RS-RP and whose values we do not know. This
is the form that LimJing7/ml-stance-detection@c5d53a4 re-implemented: S draws, uniform in a box, on the last
hidden states. It tried a half-width of 0.01 and 0.1 with 3 draws. Ours: no noise on padding, other layers,
the same dropout in all draws of a batch.
"""

from typing import Literal

import torch
from pydantic import Field

from mmalign.core.config import Section
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import noise
from mmalign.text.robust.noise import Layer


class RsRpConfig(Section):
    kind: Literal["rs_rp"]
    layer: Layer = "last"
    """Where the noise is added: `last` runs the encoder once per batch, `embedding` or a block once per
    draw."""
    epsilon: float = Field(ge=0)
    """Half the width of the box: each entry's noise is uniform in [-epsilon, epsilon]."""
    draws: int = Field(default=3, ge=1)
    """Noises of a batch, whose losses are averaged."""

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        """The mean loss of the batch over the draws; see `method.py`."""
        position = (model.tower, batch.tokens, self.layer)
        if self.layer == "last":  # the noise comes after the encoder, which therefore runs once
            state_NLF = model.tower.states(batch.tokens)
            noisy = [
                model.logits(state_NLF + noise.uniform(*position, self.epsilon, generator), batch)
                for _ in range(self.draws)
            ]
            loss = torch.stack([model.losses(logits, batch).mean() for logits in noisy]).mean()
            loss.backward()
            return loss.item()
        total = 0.0
        for _ in noise.passes(model.tower, self.draws):
            delta_NLF = noise.uniform(*position, self.epsilon, generator)
            # One backward pass per draw: only one graph at a time is in memory.
            loss = noise.losses(model, batch, self.layer, delta_NLF).mean() / self.draws
            loss.backward()
            total += loss.item()
        return total
