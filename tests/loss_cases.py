"""The losses by definition, pair by pair, and a global batch that can be split over ranks."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Embeddings
from mmalign.training.exchange import Exchange
from mmalign.training.loss import (
    GatheredBatch,
    contrastive_loss,
    gather,
    sigmoid_loss,
    text_text_loss,
)

WIDTH = 6
# Eight images. Some are equal, on the same rank or on different ranks. Each has up to three captions.
PICTURES = (3, 1, 2, 1, 4, 4, 5, 3)
CAPTIONS = (1, 3, 2, 1, 2, 1, 1, 2)

Found = dict[str, Tensor]


def gathered(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    weight_N: Tensor | None = None,
) -> tuple[Embeddings, GatheredBatch]:
    """What a loss takes, from this rank's part."""
    return embeddings, gather(embeddings, Exchange()(picture_id_B, picture_id_N, weight_N))


def random_embeddings(images: int, texts: int, seed: int = 0, width: int = WIDTH) -> Embeddings:
    """float64 leaves that require gradients, with rows of length 1."""
    generator = torch.Generator().manual_seed(seed)

    def rows(n: int) -> Tensor:
        drawn = torch.randn(n, width, generator=generator, dtype=torch.float64)
        return F.normalize(drawn, dim=-1).requires_grad_()

    def number(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, requires_grad=True)

    return Embeddings(rows(images), rows(texts), number(5.0), number(-1.5))


def leaves(embeddings: Embeddings) -> Found:
    assert embeddings.logit_bias is not None
    return {
        "image": embeddings.image_BD,
        "text": embeddings.text_ND,
        "scale": embeddings.logit_scale,
        "bias": embeddings.logit_bias,
    }


def with_gradients(loss: Tensor, embeddings: Embeddings) -> Found:
    """The loss, and its gradient with respect to each leaf."""
    given = leaves(embeddings)
    gradients = torch.autograd.grad(loss, tuple(given.values()), allow_unused=True)
    named = {n: g for n, g in zip(given, gradients, strict=True) if g is not None}
    return {"loss": loss.detach(), **named}


def dense_contrastive(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    weight_N: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    logits = embeddings.logit_scale * embeddings.image_BD @ embeddings.text_ND.T
    weight_N = logits.new_ones(logits.shape[1]) if weight_N is None else weight_N
    positive = picture_id_B[:, None] == picture_id_N
    image_to_text = _pair_losses(logits, positive, label_smoothing)
    text_to_image = _pair_losses(logits.T, positive.T, label_smoothing)
    rows = [_mean(losses, weight_N[positive[i]]) for i, losses in enumerate(image_to_text)]
    columns = torch.stack([losses.mean() for losses in text_to_image])
    return (torch.stack(rows).mean() + _mean(columns, weight_N)) / 2


def dense_text_text(embeddings: Embeddings, picture_id_N: Tensor) -> Tensor:
    logits = embeddings.logit_scale * embeddings.text_ND @ embeddings.text_ND.T
    means = []
    for n, row in enumerate(logits):
        others = torch.arange(len(row)) != n
        positive = (picture_id_N == picture_id_N[n])[others]
        if positive.any():
            means.append(_pair_losses(row[others][None], positive[None], 0.0)[0].mean())
    return torch.stack(means).mean() if means else 0 * logits.sum()


def dense_sigmoid(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    weight_N: Tensor | None = None,
) -> Tensor:
    logits = embeddings.logit_scale * embeddings.image_BD @ embeddings.text_ND.T
    sign = torch.where(picture_id_B[:, None] == picture_id_N, 1.0, -1.0).double()
    assert embeddings.logit_bias is not None
    losses = -F.logsigmoid(sign * (logits + embeddings.logit_bias))
    weight_N = logits.new_ones(logits.shape[1]) if weight_N is None else weight_N
    return (losses * weight_N / weight_N.mean()).sum() / len(logits)


DIMS = (2, 4)


def dense_prefixes(loss: Callable[[Embeddings], Tensor], embeddings: Embeddings) -> Tensor:
    """The mean of a loss over the prefixes of DIMS, re-normalised, and over all dimensions."""

    def prefix(width: int) -> Embeddings:
        rows = (embeddings.image_BD[:, :width], embeddings.text_ND[:, :width])
        image_Bd, text_Nd = (one / one.norm(dim=1, keepdim=True) for one in rows)
        return replace(embeddings, image_BD=image_Bd, text_ND=text_Nd)

    return torch.stack([loss(embeddings), *(loss(prefix(width)) for width in DIMS)]).mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()


def _pair_losses(logits: Tensor, positive: Tensor, label_smoothing: float) -> list[Tensor]:
    """For each row the losses of its positives, each a classification against the row's negatives."""
    first = torch.tensor(0)
    return [
        torch.stack(
            [
                F.cross_entropy(
                    torch.cat([score[None], row[~wanted]]), first, label_smoothing=label_smoothing
                )
                for score in row[wanted]
            ]
        )
        for row, wanted in zip(logits, positive, strict=True)
    ]


Loss = Callable[[Embeddings, Tensor, Tensor, Tensor], Tensor]
# name -> (ours, in tiles of 3; the definition); both take embeddings, ids of images and captions, weights
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "softmax": (
        lambda e, b, n, w: contrastive_loss(*gathered(e, b, n), tile=3),
        lambda e, b, n, w: dense_contrastive(e, b, n),
    ),
    "softmax, weights": (
        lambda e, b, n, w: contrastive_loss(*gathered(e, b, n, w), tile=3),
        lambda e, b, n, w: dense_contrastive(e, b, n, w),
    ),
    "softmax, weights, smoothing": (
        lambda e, b, n, w: contrastive_loss(*gathered(e, b, n, w), label_smoothing=0.2, tile=3),
        lambda e, b, n, w: dense_contrastive(e, b, n, w, 0.2),
    ),
    "sigmoid": (
        lambda e, b, n, w: sigmoid_loss(*gathered(e, b, n), tile=3),
        lambda e, b, n, w: dense_sigmoid(e, b, n),
    ),
    "sigmoid, weights": (
        lambda e, b, n, w: sigmoid_loss(*gathered(e, b, n, w), tile=3),
        lambda e, b, n, w: dense_sigmoid(e, b, n, w),
    ),
    "text-text": (
        lambda e, b, n, w: text_text_loss(*gathered(e, b, n), tile=3),
        lambda e, b, n, w: dense_text_text(e, n),
    ),
    "softmax, weights, smoothing, prefixes": (
        lambda e, b, n, w: contrastive_loss(
            *gathered(e, b, n, w), label_smoothing=0.2, dims=DIMS, tile=3
        ),
        lambda e, b, n, w: dense_prefixes(lambda p: dense_contrastive(p, b, n, w, 0.2), e),
    ),
    "sigmoid, weights, prefixes": (
        lambda e, b, n, w: sigmoid_loss(*gathered(e, b, n, w), dims=DIMS, tile=3),
        lambda e, b, n, w: dense_prefixes(lambda p: dense_sigmoid(p, b, n, w), e),
    ),
    "text-text, prefixes": (
        lambda e, b, n, w: text_text_loss(*gathered(e, b, n), dims=DIMS, tile=3),
        lambda e, b, n, w: dense_prefixes(lambda p: dense_text_text(p, n), e),
    ),
}


def global_batch() -> tuple[Embeddings, Tensor, Tensor, Tensor]:
    """Embeddings, ids of images and captions, weights of captions."""
    picture_id_B = torch.tensor(PICTURES)
    picture_id_N = picture_id_B.repeat_interleave(torch.tensor(CAPTIONS))
    generator = torch.Generator().manual_seed(3)
    weight_N = 0.5 + torch.rand(len(picture_id_N), generator=generator, dtype=torch.float64)
    embeddings = random_embeddings(len(PICTURES), len(picture_id_N))
    return embeddings, picture_id_B, picture_id_N, weight_N


def on_this_rank() -> dict[str, Found]:
    """Each loss of the global batch and its gradients: summed over ranks; for embeddings the own rows."""
    everything, picture_id_B, picture_id_N, weight_N = global_batch()
    images = len(PICTURES) // distributed.world_size()
    first = distributed.rank() * images
    mine_B = slice(first, first + images)
    mine_N = slice(sum(CAPTIONS[:first]), sum(CAPTIONS[: first + images]))
    embeddings = replace(
        everything,
        image_BD=everything.image_BD[mine_B].detach().requires_grad_(),
        text_ND=everything.text_ND[mine_N].detach().requires_grad_(),
    )
    arguments = embeddings, picture_id_B[mine_B], picture_id_N[mine_N], weight_N[mine_N]
    found = {n: with_gradients(ours(*arguments), embeddings) for n, (ours, _) in LOSSES.items()}
    for values in found.values():
        for name in ("loss", "scale", "bias"):
            if name in values:
                values[name] = distributed.sum_over_ranks(values[name])
    return found
