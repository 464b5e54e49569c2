"""Noise inside a text tower: where it is added, the losses that follow, and how an ascent moves it.

    tokens -> embedding -> block 1 -> ... -> block k -> ... -> last hidden states -> head -> losses_B
                  |                             |                     |
             "embedding"                        k                  "last"       + delta_NLF

`embedding` is the output of the word embedding, before positions and norms. `last` is what the head sees,
so noise there needs no second run of the encoder. The last block and `last` differ where the trunk ends in
a norm. Noise is added to the tokens of the mask, special tokens included (a head may read one of those), and
never to padding.

Shapes: B examples, N sequences (an example has one or several), L tokens, F entries of a token's vector.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.pooling import pool
from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.models.text_tower import find_blocks
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import FeatureModel
from mmalign.text.heads.ranking import RetrievalModel

# The size of noise: its largest entry; the length of a token's noise; that of all tokens of a sequence
# together (Frobenius norm).
Norm = Literal["linf", "l2", "l2_sequence"]

# The dimensions of (N, L, F) that a norm sums over.
_SUMMED: dict[Norm, tuple[int, ...]] = {"l2": (2,), "l2_sequence": (1, 2)}

# Where noise is added; a number counts the trunk's blocks from 1.
Layer = Literal["embedding", "last"] | Annotated[int, Field(ge=1)]


class UniformConfig(Section):
    """Noise that is drawn from a box and not moved.

    How far a box moves what the head reads depends on length and pooling: a mean over L tokens moves by about
    epsilon sqrt(F / (3 L)), a single token that is pooled (cls, last) by epsilon sqrt(F / 3).
    """

    kind: str
    layer: Layer = "last"
    """`embedding`, `last`, or the number of a block from 1; `last` runs the encoder once for all noises."""
    epsilon: float | None = Field(default=None, ge=0)
    """Half the width of the box: each entry's noise is uniform in [-epsilon, epsilon]."""
    pooled_norm: float | None = Field(default=None, gt=0)
    """Instead of `epsilon`, on `last`: the Euclidean norm by which each sequence's pooled states move."""

    @model_validator(mode="after")
    def _has_one_size(self) -> "UniformConfig":
        if (self.epsilon is None) == (self.pooled_norm is None):
            raise ValueError("give exactly one of `epsilon` and `pooled_norm`")
        if self.pooled_norm is not None and self.layer != "last":
            raise ValueError("`pooled_norm` needs `layer: last`, which is what is pooled")
        return self

    def draw(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> Tensor:
        """(N, L, F), one draw.

        Raises:
            UserError: `pooled_norm` where the head does not read pooled states.
        """
        zero_NLF, mask_NL = zeros(model.tower, batch.tokens, self.layer), batch.tokens.mask_NL
        size = 1.0 if self.epsilon is None else self.epsilon
        noise_NLF = draw(zero_NLF, mask_NL, "linf", size, generator)
        if self.pooled_norm is None:
            return noise_NLF
        if not isinstance(model, FeatureModel | RetrievalModel):
            raise UserError(
                "`pooled_norm` is for heads that read pooled states, not single tokens; set `epsilon`"
            )
        # Every pooling is linear in the states, so a factor on the noise is one on the pooled change.
        pooled_NF = pool(noise_NLF, mask_NL, model.tower.pooling)
        return (
            noise_NLF * (self.pooled_norm / pooled_NF.norm(dim=1).clamp(min=1e-12))[:, None, None]
        )


class AscentConfig(Section):
    """Noise that is moved along the gradient of the loss, inside a ball."""

    kind: str
    layer: Layer = "embedding"
    """`embedding`, `last`, or the number of a block from 1."""
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
        step_NLF = self.step_size * direction(gradient_NLF, mask_NL, self.norm)
        return project(delta_NLF + step_NLF, self.norm, self.radius)


def draw(
    zero_NLF: Tensor, mask_NL: Tensor, norm: Norm, radius: float, generator: torch.Generator
) -> Tensor:
    """Noise with uniform entries, inside the ball; `zero_NLF` gives shape, dtype and device."""
    # A generator on the host draws the same noise for every device.
    unit_NLF = torch.rand(zero_NLF.shape, generator=generator, device=generator.device)
    noise_NLF = (2 * unit_NLF - 1).to(zero_NLF) * mask_NL.unsqueeze(-1) * radius
    if norm == "linf":
        return noise_NLF
    # Divided by the root of the number of entries that the norm sums over, it is inside the ball: FreeLB's
    # start (arXiv 1909.11764, algorithm 1).
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


def zeros(tower: TextEncoder, tokens: Tokens, layer: Layer) -> Tensor:
    """(N, L, F), no noise, in the layer's shape."""
    # Only an embedding may be narrower than the states.
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
    found = find_blocks(tower.trunk)
    if found is None:
        kind = tower.trunk.config.model_type
        raise UserError(f"layer {layer}: {kind} has no list of blocks; use embedding or last")
    blocks = found[1]
    if int(layer) > len(blocks):
        raise UserError(f"layer {layer}: the trunk has {len(blocks)} blocks; use one of 1, 2, ...")
    return blocks[int(layer) - 1]
