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
from mmalign.text.robust import ball, noise
from mmalign.text.robust.noise import Layer


class RsRpConfig(Section):
    kind: Literal["rs_rp"]
    layer: Layer = "last"
    """Where the noise goes: `last` runs the encoder once a batch, `embedding` or a block once a draw."""
    epsilon: float = Field(ge=0)
    """Half the width of the box: each entry's noise is uniform in [-epsilon, epsilon]."""
    draws: int = Field(default=3, ge=1)
    """Noises of a batch, whose losses are averaged."""


def backward(
    model: TaskModel, batch: TaskBatch, config: RsRpConfig, generator: torch.Generator
) -> float:
    """The mean loss of the batch over the draws; its gradients are added to the parameters' `.grad`."""
    if config.layer == "last":
        return _on_last_states(model, batch, config, generator)
    zero_NLF = noise.zeros(model.tower, batch.tokens, config.layer)
    total = 0.0
    for _ in noise.passes(model.tower, config.draws):
        delta_NLF = ball.draw(zero_NLF, batch.tokens.mask_NL, "linf", config.epsilon, generator)
        loss = noise.losses(model, batch, config.layer, delta_NLF).mean() / config.draws
        loss.backward()
        total += loss.item()
    return total


def _on_last_states(
    model: TaskModel, batch: TaskBatch, config: RsRpConfig, generator: torch.Generator
) -> float:
    state_NLF = model.tower.states(batch.tokens)
    parts = []
    for _ in range(config.draws):
        delta_NLF = ball.draw(state_NLF, batch.tokens.mask_NL, "linf", config.epsilon, generator)
        logits = model.logits(state_NLF + delta_NLF, batch)
        parts.append(model.losses(logits, batch).mean())
    loss = torch.stack(parts).mean()
    loss.backward()
    return loss.item()
