"""Noise inside a text tower: where it is added, the losses that follow, and how an ascent moves it.

    tokens -> embedding -> block 1 -> ... -> block k -> ... -> last hidden states -> head -> losses_B
                  |                             |                     |
             "embedding"                        k                  "last"       + delta_NLF

`embedding` is the output of the word embedding, before positions and norms. `last` is what the head sees,
so noise there needs no second run of the encoder. The last block and `last` differ where the trunk ends in
a norm.

Shapes: B examples, N sequences (an example has one or several), L tokens, F entries of a token's vector.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.models.text_tower import find_blocks
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import ball
from mmalign.text.robust.ball import Norm

Layer = Literal["embedding", "last"] | Annotated[int, Field(ge=1)]
"""Where noise is added; a number counts the trunk's blocks from 1."""


class UniformConfig(Section):
    """Noise that is drawn from a box and not moved."""

    kind: str
    layer: Layer = "last"
    """Where the noise is added: `embedding`, `last`, or the number of a block from 1. `last` runs the encoder
    once per batch, the others once per noise."""
    epsilon: float = Field(ge=0)
    """Half the width of the box: each entry's noise is uniform in [-epsilon, epsilon]."""

    def draw(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> Tensor:
        """(N, L, F), one draw."""
        zero_NLF = zeros(model.tower, batch.tokens, self.layer)
        return ball.draw(zero_NLF, batch.tokens.mask_NL, "linf", self.epsilon, generator)


class AscentConfig(Section):
    """Noise that is moved along the gradient of the loss, inside a ball."""

    kind: str
    layer: Layer = "embedding"
    """Where the noise is added: `embedding`, `last`, or the number of a block from 1."""
    norm: Norm
    """linf: per entry; l2: per token; l2_sequence: all tokens of a sequence together."""
    radius: float = Field(ge=0)
    """Of the ball, in the norm."""
    step_size: float = Field(gt=0)
    """Length of an ascent step, in the norm."""
    steps: int = Field(default=3, ge=1)
    """K, the ascent steps."""

    def moved(self, delta_NLF: Tensor, gradient_NLF: Tensor, mask_NL: Tensor) -> Tensor:
        """The noise after one step along the gradient, projected to the ball."""
        step_NLF = self.step_size * ball.direction(gradient_NLF, mask_NL, self.norm)
        return ball.project(delta_NLF + step_NLF, self.norm, self.radius)


def zeros(tower: TextEncoder, tokens: Tokens, layer: Layer) -> Tensor:
    """(N, L, F), no noise, in the layer's shape. Only an embedding may be narrower than the states."""
    weight = tower.trunk.get_input_embeddings().weight
    width = weight.shape[1] if layer == "embedding" else tower.state_width
    return weight.new_zeros((*tokens.token_NL.shape, width), requires_grad=False)


@contextmanager
def added(tower: TextEncoder, layer: Layer, delta_NLF: Tensor) -> Iterator[None]:
    """While inside, the layer's output is its own plus `delta_NLF`.

    Args:
        layer: not `last`, which is no module (see `states`).

    Raises:
        UserError: the trunk has no such block.
    """

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # T5's blocks return attention biases beside the states
            return (output[0] + delta_NLF, *output[1:])
        return output + delta_NLF

    if layer == "embedding":
        # T5 has two modules with one weight, of which only the inner one runs.
        weight = tower.trunk.get_input_embeddings().weight
        tables = (one for one in tower.trunk.modules() if isinstance(one, nn.Embedding))
        modules: list[nn.Module] = [one for one in tables if one.weight is weight]
    else:
        modules = [_block(tower, layer)]
    handles = [module.register_forward_hook(add) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def states(tower: TextEncoder, tokens: Tokens, layer: Layer, delta_NLF: Tensor) -> Tensor:
    """(N, L, F), the last hidden states with noise in a layer."""
    if layer == "last":
        return tower.states(tokens) + delta_NLF
    with added(tower, layer, delta_NLF):
        return tower.states(tokens)


def losses(model: TaskModel, batch: TaskBatch, layer: Layer, delta_NLF: Tensor) -> Tensor:
    """(B,), the loss of each example with noise in a layer."""
    state_NLF = states(model.tower, batch.tokens, layer, delta_NLF)
    return model.losses(model.logits(state_NLF, batch), batch)


def replayed(tower: TextEncoder) -> AbstractContextManager[None]:
    """Random numbers drawn inside are drawn again after it, so that two passes have the same dropout."""
    return torch.random.fork_rng([tower.device] if tower.device.type == "cuda" else [])


def passes(tower: TextEncoder, count: int) -> Iterator[int]:
    """0 to count - 1: passes over one batch that all have the same dropout; the next batch has another."""
    for number in range(count - 1):
        with replayed(tower):
            yield number
    yield count - 1  # not replayed: this pass moves the random numbers on, as plain training does


def _block(tower: TextEncoder, layer: int | str) -> nn.Module:
    """The layer-th block, from 1."""
    found = find_blocks(tower.trunk)
    if found is None:
        kind = tower.trunk.config.model_type
        raise UserError(
            f"layer {layer}: a {kind} trunk has no list of blocks; use embedding or last"
        )
    blocks = found[1]
    if int(layer) > len(blocks):
        raise UserError(
            f"layer {layer}: the trunk has {len(blocks)} blocks, counted from 1; use one of them"
        )
    return blocks[int(layer) - 1]
