"""The losses as functions of the embeddings: exact over all ranks, without a matrix of all scores.

    local images x gathered captions -> tiles (loss_tiles.py) -> log sums, positive scores -> local_loss

A caption and an image are a positive pair if they belong to the same picture; that covers several
captions of one image and equal pictures that occur as two samples. Each positive pair is contrasted with
the negatives of its row alone, so positives never compete with each other:

    l(i, n) = -log( exp(s_in) / (exp(s_in) + sum over negatives m of exp(s_im)) )

averaged over the positives of a row, then over the rows, then over the two directions. With one caption
per picture this is CLIP's loss (arXiv 2103.00020, figure 3). With several, it is SupCon's L_out
(arXiv 2004.11362) with the other positives taken out of the denominator.

Each rank scores its own images against all captions, once. A row (one image) is complete on its rank; a
column (one caption) is summed over ranks, which exchange one number per caption, and the score of each
positive pair. So only captions are gathered, and no score is computed on two ranks. A rank's local_loss
covers the rows of its images and an equal part of the columns' term. Every rank computes that term from what
was exchanged, so its gradient needs no exchange.

The text-text loss is the same loss between captions: rows and columns are captions, the positives of a
caption are the other captions of its picture, and its own column is left out of its row.

The sigmoid loss (arXiv 2303.15343) classifies every combination of image and caption as a pair or not.

With `dims`, each loss is the mean of the losses of these prefixes of the embeddings, re-normalised, and of
the complete embeddings, with equal weights (Matryoshka, arXiv 2205.13147). Embeddings are gathered once;
their prefixes are taken from what was gathered.

Every function here returns local_loss. Its sum over ranks is the loss of the global batch, and the sum of its
gradients is the gradient of that loss. An engine that averages gradients over ranks must multiply local_loss
by the number of ranks first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Embeddings, send
from mmalign.training.exchange import GlobalIds
from mmalign.training.loss_tiles import Tiling, log_sums, make_tiling, sigmoid_sums


@dataclass(frozen=True)
class GatheredBatch:
    """What a loss knows of all ranks: M captions with their gradient, and the ids on the host."""

    text_MD: Tensor
    ids: GlobalIds

    def image_text(self, tile: int | None) -> Tiling:
        """Tiles of this rank's images x all captions."""
        ids, device = self.ids, self.text_MD.device
        rank = distributed.rank()
        return make_tiling(ids.picture_id_R, ids.images, rank, ids.picture_id_M, device, tile)


def gather(embeddings: Embeddings, ids: GlobalIds) -> GatheredBatch:
    """The captions of all ranks; a collective, also of its backward pass."""
    text_MD = distributed.gather_rows(embeddings.text_ND, ids.captions, "embeddings")
    return GatheredBatch(text_MD, ids)


def contrastive_loss(
    embeddings: Embeddings,
    gathered: GatheredBatch,
    *,
    label_smoothing: float = 0.0,
    dims: Sequence[int] = (),
    bf16_scores: bool = False,
    tile: int | None = None,
) -> Tensor:
    """local_loss of the softmax loss over the global batch, both directions.

    With label smoothing e, the loss of a positive pair with the K - 1 negatives of its row becomes

        -(1 - e) log p_n - e/K * sum of log p_m over n and the negatives,

    where p is the softmax over these K. With one caption per picture that is the label smoothing of
    `torch.nn.functional.cross_entropy` (arXiv 1512.00567).

    Args:
        embeddings: image_BD, text_ND and logit_scale of this rank. Scores are in the dtype of image_BD and
            text_ND, autocast or not.
        gathered: of the same embeddings. Captions, and the positives of an image, are averaged by the weights
            in it; all images count equally.
        label_smoothing: at least 0 and less than 1.
        dims: lengths of prefixes, each below D.
        bf16_scores: round the embeddings and the gradients of scores to bfloat16 in the matrix products.
        tile: rows and columns of scores that are held at a time; None: the default of the device.

    Returns:
        A tensor without dimensions, in the embeddings' dtype.
    """
    image_BD, text_MD = embeddings.image_BD, gathered.text_MD
    scale = embeddings.logit_scale.to(image_BD.dtype)
    tiling = gathered.image_text(tile)
    # Under autocast the products and sums of scores below would run in 16 bits.
    with torch.autocast(image_BD.device.type, enabled=False):
        prefixes = _prefixes(image_BD, text_MD, dims)
        sums = [log_sums(*prefix, scale, tiling, bf16_scores) for prefix in prefixes]
        text_KM, score_KA = _exchange(sums, tiling)
        image, text, text_here = _directions(tiling, gathered, image_BD)
        losses = []
        for prefix, (image_B, _, score_P), text_M, score_A in zip(
            prefixes, sums, text_KM, score_KA, strict=True
        ):
            loss = image.contrast(image_B, score_P) + text.contrast(text_M, score_A)
            if label_smoothing:
                image_Bd, text_Md = prefix
                # Sums of scores are linear in the embeddings, so they need no tiles.
                sum_B = scale * (image_Bd @ text_Md.sum(0))
                sum_M = scale * (text_Md @ image_Bd.sum(0))
                smooth = image.smoothing(sum_B, score_P) + text_here.smoothing(sum_M, score_P)
                loss = loss + label_smoothing * smooth
            losses.append(loss)
        return torch.stack(losses).mean()


def sigmoid_loss(
    embeddings: Embeddings,
    gathered: GatheredBatch,
    *,
    dims: Sequence[int] = (),
    bf16_scores: bool = False,
    tile: int | None = None,
) -> Tensor:
    """local_loss of the sigmoid loss over the global batch (SigLIP, arXiv 2303.15343).

    The sum of -log sigmoid(z (s + logit_bias)) over all images and captions, z being 1 where they share a
    picture and -1 elsewhere, divided by the number of images.

    Args: as in `contrastive_loss`; the weight of a caption multiplies the loss of all its pairs, and only
    ratios of weights matter.
    """
    assert embeddings.logit_bias is not None, "the sigmoid loss needs a logit_bias"
    dtype = embeddings.image_BD.dtype
    scale, bias = embeddings.logit_scale.to(dtype), embeddings.logit_bias.to(dtype)
    tiling = gathered.image_text(tile)
    prefixes = _prefixes(embeddings.image_BD, gathered.text_MD, dims)
    sums = [sigmoid_sums(*prefix, scale, bias, tiling, bf16_scores) for prefix in prefixes]
    sum_KM = torch.stack(sums)
    sum_M, weight_M = sum_KM.mean(0), gathered.ids.weight_M
    if weight_M is not None:
        sum_M = sum_M * _like(weight_M / weight_M.mean(), sum_M)
    # Divided by the images of all ranks, as in SigLIP's pseudocode.
    return sum_M.sum() / len(gathered.ids.picture_id_R)


LossName = Literal["softmax", "sigmoid"]
LOSSES: dict[LossName, Callable[..., Tensor]] = {
    "softmax": contrastive_loss,
    "sigmoid": sigmoid_loss,
}
"""What `objective.loss` names; each takes at least the embeddings and what was gathered of all ranks."""


def text_text_loss(
    embeddings: Embeddings,
    gathered: GatheredBatch,
    *,
    dims: Sequence[int] = (),
    bf16_scores: bool = False,
    tile: int | None = None,
) -> Tensor:
    """local_loss of the loss between captions of one picture, over the global batch.

    The mean is over the captions that have a partner: another caption of the same picture, on whatever
    rank. It is 0 where no caption has one. Args: as in `contrastive_loss`.
    """
    text_ND, ids = embeddings.text_ND, gathered.ids
    first, count = ids.first_caption, len(text_ND)
    picture_id_N = ids.picture_id_M[first : first + count]
    tiling = make_tiling(picture_id_N, [count], 0, ids.picture_id_M, text_ND.device, tile)
    row_P = tiling.row_P
    # A caption is recognised among the columns by its place there.
    others_P = row_P + first != tiling.column_P
    count_M = _count(ids.picture_id_M, ids.picture_id_M)
    # At least 1, here and below: without partners all terms are 0, and the loss is 0, not 0 / 0.
    partnered = max(1, int((count_M > 1).sum()))
    partners_N = _like((count_M[first : first + count] - 1).clamp(min=1), text_ND)
    scale = embeddings.logit_scale.to(text_ND.dtype)
    prefixes = _prefixes(text_ND, gathered.text_MD, dims)
    sums = [log_sums(*prefix, scale, tiling, bf16_scores) for prefix in prefixes]
    losses = [F.softplus(log_sum_N[row_P] - score_P) for log_sum_N, _, score_P in sums]
    loss_P = torch.stack(losses).mean(0) / partners_N[row_P]
    return (loss_P * others_P).sum() / partnered


def _prefixes(
    row_RD: Tensor, column_CD: Tensor, dims: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    # Rows and columns as they are, and their first dimensions at unit length.
    both = (row_RD, column_CD)
    short = [tuple(F.normalize(one[:, :width], dim=-1) for one in both) for width in dims]
    return [both, *((row_Rd, column_Cd) for row_Rd, column_Cd in short)]


def _exchange(
    sums: Sequence[tuple[Tensor, Tensor, Tensor]], tiling: Tiling
) -> tuple[Tensor, Tensor]:
    # (K, M) the log sums of the captions over the images of all ranks, from those over each rank's own, and
    # (K, A) the scores of all positive pairs; one message for all K prefixes.
    rows = torch.stack([torch.cat([own_M, score_P]) for _, own_M, score_P in sums], dim=1)
    counts = [tiling.columns + pairs for pairs in tiling.pairs]
    parts = distributed.gather_rows(rows, counts, "log sums", used_alike=True).split(counts)
    own_RMK = torch.stack([part[: tiling.columns] for part in parts])
    score_AK = torch.cat([part[tiling.columns :] for part in parts])
    return own_RMK.logsumexp(0).T, score_AK.T


@dataclass(frozen=True)
class _DirectionTerm:
    """The loss of one direction, image to text or text to image, for P positive pairs."""

    query_index_P: Tensor  # int64, the query (image or caption) of each pair
    weight_P: Tensor  # of each pair in the global loss
    weight_Q: Tensor  # of each query in it, over all pairs on all ranks
    negatives_Q: Tensor  # number of negatives of each query, on all ranks; of the embeddings' dtype

    def contrast(self, log_sum_Q: Tensor, score_P: Tensor) -> Tensor:
        # `log_sum_Q`: log of the sum of exp(score) over the negatives.
        # -log(e^s / (e^s + e^n)) = softplus(n - s), which neither overflows nor loses its gradient.
        return (self.weight_P * F.softplus(log_sum_Q[self.query_index_P] - score_P)).sum()

    def smoothing(self, sum_Q: Tensor, score_P: Tensor) -> Tensor:
        # What label smoothing of 1 adds. `sum_Q`: sum of the scores of each query on this rank.
        # Every log p contains the same log of the denominator, which therefore cancels. What is left is
        # linear in the scores: s_n - (s_n + sum over the negatives of s_m) / K.
        chance_Q = 1 / (1 + self.negatives_Q)
        own = (self.weight_P * score_P * (1 - chance_Q[self.query_index_P])).sum()
        negative_Q = sum_Q.index_add(0, self.query_index_P, -score_P)
        return own - (self.weight_Q * chance_Q * negative_Q).sum()


def _directions(
    tiling: Tiling, gathered: GatheredBatch, like: Tensor
) -> tuple[_DirectionTerm, _DirectionTerm, _DirectionTerm]:
    # Image to text for the pairs of this rank; text to image for the pairs of all ranks, divided by the
    # number of ranks that compute it; text to image for the pairs of this rank.
    # All of it is counting, for which the host would wait for a GPU: it is done on the host, in float64.
    ids = gathered.ids
    images, captions = len(ids.picture_id_R), len(ids.picture_id_M)
    weight_M = torch.ones(captions).double() if ids.weight_M is None else ids.weight_M
    ranks = distributed.world_size()
    first_pair = sum(tiling.pairs[: distributed.rank()])
    column_P = tiling.column_A[first_pair : first_pair + tiling.pairs[distributed.rank()]]
    row_P = tiling.row_A[first_pair : first_pair + len(column_P)]
    # The mean over images of the weighted mean over their captions.
    weight_P = weight_M[column_P]
    sum_B = weight_P.new_zeros(tiling.rows).index_add(0, row_P, weight_P)
    weight_B = torch.full_like(sum_B, 1 / (2 * images))
    negatives_B = captions - row_P.bincount(minlength=tiling.rows)
    of_image = (weight_P / sum_B[row_P] * weight_B[row_P], weight_B, negatives_B)
    # The weighted mean over captions of the mean over their images.
    weight_M = weight_M / (2 * weight_M.sum())
    images_M = _count(ids.picture_id_M, ids.picture_id_R)
    of_pair_M, negatives_M = weight_M / images_M, images - images_M
    column_A = send(tiling.column_A, like.device)
    of_text = (of_pair_M[tiling.column_A] / ranks, weight_M, negatives_M)
    here = (of_pair_M[column_P], weight_M, negatives_M)
    return (
        _DirectionTerm(tiling.row_P, *(_like(one, like) for one in of_image)),
        _DirectionTerm(column_A, *(_like(one, like) for one in of_text)),
        _DirectionTerm(tiling.column_P, *(_like(one, like) for one in here)),
    )


def _like(values: Tensor, like: Tensor) -> Tensor:
    return send(values.to(like.dtype), like.device)


def _count(of: Tensor, among: Tensor) -> Tensor:
    # How often each value of `of` occurs in `among`; both int64. By binary search: comparing each with each
    # would need a matrix of batch x batch.
    among = among.sort()[0]
    return torch.searchsorted(among, of, right=True) - torch.searchsorted(among, of)
