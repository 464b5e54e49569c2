"""Cached gradients: one loss over a global batch whose activations do not fit in memory.

    1. embed    micro-batch by micro-batch, without a graph  -> image_BD, text_ND of this rank's batch
    2. loss     over all ranks, once                         -> gradient of each embedding
    3. embed    micro-batch by micro-batch, with a graph     -> backward from the gradients of its rows

The result is the gradient of the complete batch, not a mean over micro-batches: every caption is compared
with every image (GradCache, arXiv 2101.06983). The towers run forward twice, and memory holds the activations
of one micro-batch.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmalign.core.batch import Batch, Embeddings
from mmalign.training.exchange import GlobalIds
from mmalign.training.objective import ContrastiveConfig, Outcome, contrast, embed


def cached_backward(
    config: ContrastiveConfig,
    forward: Callable[..., Embeddings],
    backward: Callable[[Tensor, bool], Any],
    seed_part: Callable[[int], None],
    batch: Batch,
    ids: GlobalIds,
    images: int,
) -> Outcome:
    """Gradients of the global loss, equal to those of `outcome_of` and one backward pass.

    Args:
        backward: takes a tensor without dimensions, whose gradients accumulate, and whether it is the last
            one of the step.
        seed_part: sets the random state of a micro-batch; called before each of its forward passes.
        ids: what `exchange_ids` returned for the batch.
        images: of a micro-batch.
    """
    total = len(batch.key_B)
    parts = [batch.part(n, min(n + images, total)) for n in range(0, total, images)]
    embedded = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed_part(number)
            embedded.append(embed(forward, part))
    whole = _as_leaf(embedded)
    outcome = contrast(config, whole, batch, ids)
    outcome.to_minimise.backward()

    image, caption = 0, 0
    for number, part in enumerate(parts):
        # The same number as before: the gradient must belong to the embeddings that the loss has seen, also
        # under dropout.
        seed_part(number)
        rows = embed(forward, part)
        surrogate = _dot(rows.image_BD, whole.image_BD.grad, image)
        surrogate = surrogate + _dot(rows.text_ND, whole.text_ND.grad, caption)
        image += len(rows.image_BD)
        caption += len(rows.text_ND)
        # Scale and bias belong to the batch: their gradient is added once. The other parts add 0 times it, so
        # that every backward pass reaches the same parameters, which ZeRO's hooks need.
        once = 1.0 if number == 0 else 0.0
        surrogate = surrogate + once * _dot(rows.logit_scale, whole.logit_scale.grad, 0)
        if rows.logit_bias is not None and whole.logit_bias is not None:
            surrogate = surrogate + once * _dot(rows.logit_bias, whole.logit_bias.grad, 0)
        backward(surrogate, number == len(parts) - 1)
    return replace(outcome, local_loss=outcome.local_loss.detach())


def _as_leaf(parts: list[Embeddings]) -> Embeddings:
    # The rows of all parts, concatenated, and scale and bias; each is a leaf that collects a gradient.
    scale, bias = parts[-1].logit_scale, parts[-1].logit_bias
    return Embeddings(
        image_BD=torch.cat([part.image_BD for part in parts]).requires_grad_(),
        text_ND=torch.cat([part.text_ND for part in parts]).requires_grad_(),
        logit_scale=scale.detach().clone().requires_grad_(),
        logit_bias=None if bias is None else bias.detach().clone().requires_grad_(),
    )


def _dot(rows: Tensor, gradient: Tensor | None, first: int) -> Tensor:
    # A surrogate loss whose gradient with respect to `rows` is that of as many rows from `first` on.
    assert gradient is not None
    return (rows * gradient[first : first + len(rows)].to(rows.dtype)).sum()
