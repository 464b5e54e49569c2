"""Cached gradients: a global batch of any size on a memory of any size, with one loss over all of it.

    1. embed    part by part, without a graph      -> image_BD, text_ND of this rank's whole batch
    2. loss     over all ranks, once               -> gradient of each embedding
    3. embed    part by part, with a graph         -> backward from the gradients of its rows

The result is the gradient of the whole batch, not a mean over small batches: every caption is compared
with every picture (GradCache, arXiv 2101.06983). The towers run forward twice, and a part's activations
are the most that stands in memory. Both passes of a part draw the same random numbers, so dropout masks
agree; without that, the gradient would belong to other embeddings than the loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmalign.core.batch import Batch, Embeddings
from mmalign.training.objective import ContrastiveConfig, Outcome, contrast, embed


def cached_backward(
    config: ContrastiveConfig,
    forward: Callable[..., Embeddings],
    backward: Callable[[Tensor, bool], Any],
    seed_part: Callable[[int], None],
    batch: Batch,
    images: int,
) -> Outcome:
    """Gradients of the global loss, as `outcome_of` and one backward pass would give them.

    Args:
        backward: takes a tensor without dimensions, whose gradients add up over the calls, and whether it
            is the last one of the step.
        seed_part: sets the random state that a part draws from; called before each forward pass.
        images: of a part, over both passes.

    Returns:
        Its share has no graph any more.
    """
    parts = list(_parts(batch, images))
    embedded = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed_part(number)
            embedded.append(embed(forward, part))
    whole = _as_leaf(embedded)
    outcome = contrast(config, whole, batch)
    outcome.to_minimise.backward()

    first_image, first_caption = 0, 0
    for number, part in enumerate(parts):
        seed_part(number)
        rows = embed(forward, part)
        next_image, next_caption = (
            first_image + len(rows.image_BD),
            first_caption + len(rows.text_ND),
        )
        surrogate = _dot(rows.image_BD, whole.image_BD.grad, first_image, next_image)
        surrogate = surrogate + _dot(rows.text_ND, whole.text_ND.grad, first_caption, next_caption)
        # Scale and bias belong to the batch, not to a part; later parts add nothing to them.
        share = 1.0 if number == 0 else 0.0
        surrogate = surrogate + share * _dot(rows.logit_scale, whole.logit_scale.grad, 0, 1)
        if rows.logit_bias is not None and whole.logit_bias is not None:
            surrogate = surrogate + share * _dot(rows.logit_bias, whole.logit_bias.grad, 0, 1)
        backward(surrogate, number == len(parts) - 1)
        first_image, first_caption = next_image, next_caption
    return replace(outcome, share=outcome.share.detach())


def _parts(batch: Batch, images: int) -> Iterator[Batch]:
    total = len(batch.key_B)
    for first in range(0, total, images):
        yield batch.part(first, min(first + images, total))


def _as_leaf(parts: list[Embeddings]) -> Embeddings:
    """All parts' rows as one, and the last part's scale and bias; each a leaf that collects a gradient."""
    last = parts[-1]
    return Embeddings(
        image_BD=torch.cat([part.image_BD for part in parts]).requires_grad_(),
        text_ND=torch.cat([part.text_ND for part in parts]).requires_grad_(),
        logit_scale=last.logit_scale.detach().clone().requires_grad_(),
        logit_bias=None
        if last.logit_bias is None
        else last.logit_bias.detach().clone().requires_grad_(),
    )


def _dot(rows: Tensor, gradient: Tensor | None, first: int, last: int) -> Tensor:
    """A number whose gradient with respect to `rows` is `gradient[first:last]`."""
    assert gradient is not None
    return (rows * gradient[first:last].to(rows.dtype)).sum()
