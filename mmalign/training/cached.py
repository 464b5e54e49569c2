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
from itertools import pairwise
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
    edges: list[int],
) -> Outcome:
    """Gradients of the global loss, equal to those of `outcome_of` and one backward pass.

    Args:
        backward: takes a tensor without dimensions, whose gradients accumulate, and whether it is the last
            one of the step.
        seed_part: sets the random state of a micro-batch; called before each of its forward passes.
        ids: what `exchange_ids` returned for the batch.
        edges: what `split` returned; as many on all ranks.
    """
    parts = [batch.part(first, last) for first, last in pairwise(edges)]
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


def split(
    batch: Batch, images: int | None = None, tokens: int | None = None, parts: int = 1
) -> list[int]:
    """The edges of micro-batches: part k has the images from the k-th edge to the next, and their captions.

    Args:
        images: the most in a part; None: any number.
        tokens: the most in the captions of a part, but for one image whose captions have more; None: any.
        parts: the fewest; at most as many as there are images.
    """
    total = len(batch.key_B)
    length_N = torch.tensor(batch.length_N) if batch.length_N else batch.mask_NL.cpu().sum(1)
    before_B = torch.zeros(total + 1, dtype=torch.int64)
    before_B[1:].index_add_(0, batch.image_index_N, length_N)
    before_B = before_B.cumsum(0)  # tokens before each image
    edges = [0]
    while edges[-1] < total:
        first = edges[-1]
        last = total if images is None else min(total, first + images)
        if tokens is not None:
            fits = int(torch.searchsorted(before_B, before_B[first] + tokens, right=True)) - 1
            last = min(last, max(first + 1, fits))
        edges.append(last)
    while len(edges) <= min(parts, total):
        # Another rank needs more: the part with the most tokens is divided where half of them are.
        first, last = max(
            (pair for pair in pairwise(edges) if pair[1] - pair[0] > 1),
            key=lambda pair: int(before_B[pair[1]] - before_B[pair[0]]),
        )
        half = int(torch.searchsorted(before_B, (before_B[first] + before_B[last]) // 2))
        edges = sorted([*edges, min(max(half, first + 1), last - 1)])
    return edges


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
