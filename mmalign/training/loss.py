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
column (one caption) is summed over ranks, which exchange one number per caption. So only captions are
gathered, and no score is computed on two ranks. A rank's local_loss covers the pairs of its images.

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
from mmalign.core.batch import Embeddings
from mmalign.training.loss_tiles import Tiling, log_sums, make_tiling, sigmoid_sums


def contrastive_loss(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    *,
    weight_N: Tensor | None = None,
    label_smoothing: float = 0.0,
    dims: Sequence[int] = (),
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
        picture_id_B, picture_id_N: int64, the picture of each image and of each caption.
        weight_N: positive, one weight per caption. Captions, and the positives of an image, are averaged by
            weight; all images count equally. None: equal weights.
        label_smoothing: at least 0 and less than 1.
        dims: lengths of prefixes, each below D.
        tile: rows and columns of scores that are held at a time; None: the default of the device.

    Returns:
        A tensor without dimensions, in the embeddings' dtype.
    """
    gathered = _gather(embeddings, picture_id_B, picture_id_N, weight_N)
    image_BD, text_MD = embeddings.image_BD, gathered.text_MD
    scale = embeddings.logit_scale.to(image_BD.dtype)
    tiling = make_tiling(picture_id_B, gathered.picture_id_M, tile)
    # Under autocast the products and sums of scores below would run in 16 bits.
    with torch.autocast(image_BD.device.type, enabled=False):
        prefixes = _prefixes(image_BD, text_MD, dims)
        sums = [log_sums(image_Bd, text_Md, scale, tiling) for image_Bd, text_Md in prefixes]
        # From each rank's log sum over its own images, the log sum over the images of all ranks; one message
        # for all prefixes.
        own_KM = torch.stack([own_M for _, own_M, _ in sums])
        text_KM = distributed.gather_rows(own_KM[None]).logsumexp(0)
        image = _image_to_text_term(tiling, gathered)
        text = _text_to_image_term(tiling, gathered)
        losses = []
        for prefix, (image_B, _, score_P), text_M in zip(prefixes, sums, text_KM, strict=True):
            loss = image.contrast(image_B, score_P) + text.contrast(text_M, score_P)
            if label_smoothing:
                image_Bd, text_Md = prefix
                # Sums of scores are linear in the embeddings, so they need no tiles.
                sum_B = scale * (image_Bd @ text_Md.sum(0))
                sum_M = scale * (text_Md @ image_Bd.sum(0))
                smooth = image.smoothing(sum_B, score_P) + text.smoothing(sum_M, score_P)
                loss = loss + label_smoothing * smooth
            losses.append(loss)
        return torch.stack(losses).mean()


def sigmoid_loss(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    *,
    weight_N: Tensor | None = None,
    dims: Sequence[int] = (),
    tile: int | None = None,
) -> Tensor:
    """local_loss of the sigmoid loss over the global batch (SigLIP, arXiv 2303.15343).

    The sum of -log sigmoid(z (s + logit_bias)) over all images and captions, z being 1 where they share a
    picture and -1 elsewhere, divided by the number of images.

    Args: as in `contrastive_loss`; the weight of a caption multiplies the loss of all its pairs, and only
    ratios of weights matter.
    """
    assert embeddings.logit_bias is not None, "the sigmoid loss needs a logit_bias"
    gathered = _gather(embeddings, picture_id_B, picture_id_N, weight_N)
    dtype = embeddings.image_BD.dtype
    scale, bias = embeddings.logit_scale.to(dtype), embeddings.logit_bias.to(dtype)
    tiling = make_tiling(picture_id_B, gathered.picture_id_M, tile)
    prefixes = _prefixes(embeddings.image_BD, gathered.text_MD, dims)
    sum_KM = torch.stack([sigmoid_sums(*prefix, scale, bias, tiling) for prefix in prefixes])
    weight_M = gathered.weight_M / gathered.weight_M.mean()
    # Divided by the images of all ranks, as in SigLIP's pseudocode.
    return (weight_M * sum_KM.mean(0)).sum() / len(gathered.picture_id_R)


LossName = Literal["softmax", "sigmoid"]
LOSSES: dict[LossName, Callable[..., Tensor]] = {
    "softmax": contrastive_loss,
    "sigmoid": sigmoid_loss,
}
"""What `objective.loss` names; each takes at least the embeddings, both ids and `weight_N`."""


def text_text_loss(
    embeddings: Embeddings,
    picture_id_N: Tensor,
    *,
    dims: Sequence[int] = (),
    tile: int | None = None,
) -> Tensor:
    """local_loss of the loss between captions of one picture, over the global batch.

    The mean is over the captions that have a partner: another caption of the same picture, on whatever
    rank. It is 0 where no caption has one. Args: as in `contrastive_loss`.
    """
    text_ND = embeddings.text_ND
    text_MD = distributed.gather_rows(text_ND)
    picture_id_M = distributed.gather_rows(picture_id_N)
    tiling = make_tiling(picture_id_N, picture_id_M, tile)
    # A number that is unique over all ranks, so that a caption is recognised among the gathered columns.
    number_N = torch.arange(len(text_ND), device=text_ND.device) * distributed.world_size()
    number_N += distributed.rank()
    number_M = distributed.gather_rows(number_N)
    row_P = tiling.row_P
    others_P = number_N[row_P] != number_M[tiling.column_P]
    count_N = _count(picture_id_N, picture_id_M)
    # At least 1, here and below: without partners all terms are 0, and the loss is 0, not 0 / 0.
    partnered = distributed.sum_over_ranks((count_N > 1).sum()).clamp(min=1)
    scale = embeddings.logit_scale.to(text_ND.dtype)
    prefixes = _prefixes(text_ND, text_MD, dims)
    sums = [log_sums(*prefix, scale, tiling) for prefix in prefixes]
    losses = [F.softplus(log_sum_N[row_P] - score_P) for log_sum_N, _, score_P in sums]
    loss_P = torch.stack(losses).mean(0) / (count_N[row_P] - 1).clamp(min=1)
    return (loss_P * others_P).sum() / partnered


def _prefixes(
    row_RD: Tensor, column_CD: Tensor, dims: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    # Rows and columns as they are, and their first dimensions at unit length.
    both = (row_RD, column_CD)
    short = [tuple(F.normalize(one[:, :width], dim=-1) for one in both) for width in dims]
    return [both, *((row_Rd, column_Cd) for row_Rd, column_Cd in short)]


@dataclass(frozen=True)
class _GatheredBatch:
    """What is gathered from all ranks: M captions, and the pictures of R images."""

    text_MD: Tensor
    picture_id_R: Tensor
    picture_id_M: Tensor
    weight_M: Tensor  # of the embeddings' dtype


def _gather(
    embeddings: Embeddings, picture_id_B: Tensor, picture_id_N: Tensor, weight_N: Tensor | None
) -> _GatheredBatch:
    text_ND = embeddings.text_ND
    weight_N = text_ND.new_ones(len(text_ND)) if weight_N is None else weight_N.to(text_ND.dtype)
    return _GatheredBatch(
        distributed.gather_rows(text_ND),
        distributed.gather_rows(picture_id_B),
        distributed.gather_rows(picture_id_N),
        distributed.gather_rows(weight_N),
    )


@dataclass(frozen=True)
class _DirectionTerm:
    """The loss of one direction, image to text or text to image, for the P positive pairs of this rank."""

    query_index_P: Tensor  # int64, the query (image or caption) of each pair
    weight_P: Tensor  # of each pair in the global loss
    weight_Q: Tensor  # of each query in it, over all pairs on all ranks
    negatives_Q: Tensor  # number of negatives of each query, on all ranks

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


def _image_to_text_term(tiling: Tiling, gathered: _GatheredBatch) -> _DirectionTerm:
    # The mean over images of the weighted mean over their captions.
    row_P, dtype = tiling.row_P, gathered.weight_M.dtype
    weight_P = gathered.weight_M[tiling.column_P]
    sum_B = weight_P.new_zeros(tiling.rows).index_add(0, row_P, weight_P)
    weight_B = torch.full_like(sum_B, 1 / (2 * len(gathered.picture_id_R)))
    negatives_B = tiling.columns - row_P.bincount(minlength=tiling.rows)
    return _DirectionTerm(
        row_P, weight_P / sum_B[row_P] * weight_B[row_P], weight_B, negatives_B.to(dtype)
    )


def _text_to_image_term(tiling: Tiling, gathered: _GatheredBatch) -> _DirectionTerm:
    # The weighted mean over captions of the mean over their images.
    column_P, dtype = tiling.column_P, gathered.weight_M.dtype
    weight_M = gathered.weight_M / (2 * gathered.weight_M.sum())
    images_M = _count(gathered.picture_id_M, gathered.picture_id_R).to(dtype)
    negatives_M = len(gathered.picture_id_R) - images_M
    return _DirectionTerm(column_P, (weight_M / images_M)[column_P], weight_M, negatives_M)


def _count(of: Tensor, among: Tensor) -> Tensor:
    # How often each value of `of` occurs in `among`; both int64. By binary search: comparing each with each
    # would need a matrix of batch x batch.
    among = among.sort()[0]
    return torch.searchsorted(among, of, right=True) - torch.searchsorted(among, of)
