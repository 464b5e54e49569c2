"""The losses as functions of the embeddings: exact over all ranks, no matrix of all scores is ever held.

    local images x gathered captions -> tiles (loss_tiles.py) -> log sums, scores of pairs -> the rank's share

A caption and an image are a positive pair if they belong to the same picture; that covers several
captions of one image and equal pictures that occur as two samples. Each positive pair is contrasted with
the negatives of its row alone, so positives never compete with each other:

    l(i, n) = -log( exp(s_in) / (exp(s_in) + sum over negatives m of exp(s_im)) )

averaged over the positives of a row, then over the rows, then over the two directions. With one caption
per picture this is CLIP's loss (arXiv 2103.00020, figure 3). With several, it is SupCon's L_out
(arXiv 2004.11362) with the other positives taken out of the denominator.

Each rank scores its own images against all captions, once: its rows are whole, and the captions' sums over
images are put together from all ranks, a number a caption and rank. So only captions are gathered, and no
score is computed on two ranks. A rank's share of the loss are the pairs of its images.

The text-text loss is the same between captions alone: rows and columns are captions, a caption's
positives are the other captions of its picture, and it is no column of its own row.

The sigmoid loss (arXiv 2303.15343) asks of every image and caption, one by one, whether they are a pair.

The sum of the shares over ranks is the loss of the global batch, and the sum of their gradients is its
gradient: whoever averages gradients over ranks multiplies the share by their number first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Embeddings
from mmalign.training.loss_tiles import Tiling, cut, log_sums, sigmoid_sums


def contrastive_loss(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    *,
    weight_N: Tensor | None = None,
    label_smoothing: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """This rank's share of the softmax loss over the global batch, both directions.

    Label smoothing e makes of a positive pair's loss, with the K - 1 negatives of its row,

        -(1 - e) log p_n - e/K * sum of log p_m over n and the negatives,

    the p being the softmax over these K. With one caption per picture that is the label smoothing of
    `torch.nn.functional.cross_entropy` (arXiv 1512.00567).

    Args:
        embeddings: image_BD, text_ND and logit_scale of this rank. Scores are in the dtype of image_BD and
            text_ND, autocast or not.
        picture_id_B, picture_id_N: int64, the picture of each image and of each caption.
        weight_N: positive, a weight for each caption: captions are averaged with their weights, and so are
            the positives of an image; images count alike. None: all alike.
        label_smoothing: at least 0 and less than 1.
        tile: rows and columns of scores that are held at a time; None: what suits the device.

    Returns:
        A tensor without dimensions, in the embeddings' dtype.
    """
    everyone = _gather(embeddings, picture_id_B, picture_id_N, weight_N)
    image_BD, text_MD = embeddings.image_BD, everyone.text_MD
    scale = embeddings.logit_scale.to(image_BD.dtype)
    tiling = cut(picture_id_B, everyone.picture_id_M, tile)
    with torch.autocast(image_BD.device.type, enabled=False):
        image_B, text_M, score_P = log_sums(image_BD, text_MD, scale, tiling)
        text_M = distributed.gather_rows(text_M[None]).logsumexp(0)
        of_images, of_texts = _image_share(tiling, everyone), _text_share(tiling, everyone)
        share = of_images.contrast(image_B, score_P) + of_texts.contrast(text_M, score_P)
        if label_smoothing:
            sum_B = scale * (image_BD @ text_MD.sum(0))
            sum_M = scale * (text_MD @ image_BD.sum(0))
            smooth = of_images.smoothing(sum_B, score_P) + of_texts.smoothing(sum_M, score_P)
            share = share + label_smoothing * smooth
        return share


def sigmoid_loss(
    embeddings: Embeddings,
    picture_id_B: Tensor,
    picture_id_N: Tensor,
    *,
    weight_N: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """This rank's share of the sigmoid loss over the global batch (SigLIP, arXiv 2303.15343).

    The sum of -log sigmoid(z (s + logit_bias)) over all images and captions, z being 1 where they share a
    picture and -1 elsewhere, divided by the number of images.

    Args:
        embeddings: image_BD, text_ND, logit_scale and logit_bias of this rank.
        picture_id_B, picture_id_N, tile: as in `contrastive_loss`.
        weight_N: positive, a weight for each caption, by which all its pairs count; only ratios of weights
            matter. None: all alike.

    Returns:
        A tensor without dimensions, in the embeddings' dtype.
    """
    assert embeddings.logit_bias is not None, "the sigmoid loss needs a logit_bias"
    everyone = _gather(embeddings, picture_id_B, picture_id_N, weight_N)
    dtype = embeddings.image_BD.dtype
    sum_M = sigmoid_sums(
        embeddings.image_BD,
        everyone.text_MD,
        embeddings.logit_scale.to(dtype),
        embeddings.logit_bias.to(dtype),
        cut(picture_id_B, everyone.picture_id_M, tile),
    )
    weight_M = everyone.weight_M / everyone.weight_M.mean()
    return (weight_M * sum_M).sum() / len(everyone.picture_id_R)


def text_text_loss(
    embeddings: Embeddings, picture_id_N: Tensor, *, tile: int | None = None
) -> Tensor:
    """This rank's share of the loss between captions of one picture, over the global batch.

    The mean is over the captions that have a partner: another caption of the same picture, on whatever
    rank. Shares and gradients add up over ranks as in `contrastive_loss`.

    Args:
        embeddings: text_ND and logit_scale of this rank.
        picture_id_N: int64, the picture of each caption.
        tile: as in `contrastive_loss`.

    Returns:
        A tensor without dimensions, in the embeddings' dtype; 0 where no caption has a partner.
    """
    text_ND = embeddings.text_ND
    text_MD = distributed.gather_rows(text_ND)
    picture_id_M = distributed.gather_rows(picture_id_N)
    tiling = cut(picture_id_N, picture_id_M, tile)
    # A number for each caption that no other one has: a caption must know itself among the columns.
    number_N = torch.arange(len(text_ND), device=text_ND.device) * distributed.world_size()
    number_N += distributed.rank()
    number_M = distributed.gather_rows(number_N)
    others_P = number_N[tiling.row_P] != number_M[tiling.column_P]
    count_N = _count(picture_id_N, picture_id_M)
    partnered = distributed.sum_over_ranks((count_N > 1).sum()).clamp(min=1)
    scale = embeddings.logit_scale.to(text_ND.dtype)
    log_sum_N, _, score_P = log_sums(text_ND, text_MD, scale, tiling)
    loss_P = F.softplus(log_sum_N[tiling.row_P] - score_P) / (count_N[tiling.row_P] - 1).clamp(
        min=1
    )
    return (loss_P * others_P).sum() / partnered


@dataclass(frozen=True)
class _Everyone:
    """What all ranks bring: M captions and R pictures of images; weight_M in the embeddings' dtype."""

    text_MD: Tensor
    picture_id_R: Tensor
    picture_id_M: Tensor
    weight_M: Tensor


def _gather(
    embeddings: Embeddings, picture_id_B: Tensor, picture_id_N: Tensor, weight_N: Tensor | None
) -> _Everyone:
    text_MD = distributed.gather_rows(embeddings.text_ND)
    return _Everyone(
        text_MD,
        distributed.gather_rows(picture_id_B),
        distributed.gather_rows(picture_id_N),
        text_MD.new_ones(len(text_MD))
        if weight_N is None
        else distributed.gather_rows(weight_N.to(text_MD.dtype)),
    )


@dataclass(frozen=True)
class _Share:
    """One direction's part of the loss of the pairs of one picture.

    Attributes:
        place_P: which query (image or caption) of this direction a pair belongs to.
        weight_P: weight of a pair in the global loss.
        weight_Q: weight of a query in it, over all pairs on all ranks.
        negatives_Q: how many negatives a query has on all ranks.
    """

    place_P: Tensor
    weight_P: Tensor
    weight_Q: Tensor
    negatives_Q: Tensor

    def contrast(self, log_sum_Q: Tensor, score_P: Tensor) -> Tensor:
        """The pairs' loss without smoothing. `log_sum_Q`: log of the sum of exp over negatives."""
        # -log(e^s / (e^s + e^n)) = softplus(n - s); its gradient is well behaved at every magnitude.
        return (self.weight_P * F.softplus(log_sum_Q[self.place_P] - score_P)).sum()

    def smoothing(self, sum_Q: Tensor, score_P: Tensor) -> Tensor:
        """What label smoothing of 1 would add. `sum_Q`: sum of a query's scores that are on this rank.

        The log of the denominator stands in every log p, so it stays as it is, and the added part is
        linear in the scores: s_n - (s_n + sum over the negatives of s_m) / K.
        """
        chance_Q = 1 / (1 + self.negatives_Q)
        own = (self.weight_P * score_P * (1 - chance_Q[self.place_P])).sum()
        negative_Q = sum_Q.index_add(0, self.place_P, -score_P)
        return own - (self.weight_Q * chance_Q * negative_Q).sum()


def _image_share(tiling: Tiling, everyone: _Everyone) -> _Share:
    """Images as queries: the mean over images of the weighted mean over their captions."""
    row_P, dtype = tiling.row_P, everyone.weight_M.dtype
    weight_P = everyone.weight_M[tiling.column_P]
    sum_B = weight_P.new_zeros(tiling.rows).index_add(0, row_P, weight_P)
    weight_B = torch.full_like(sum_B, 1 / (2 * len(everyone.picture_id_R)))
    negatives_B = tiling.columns - row_P.bincount(minlength=tiling.rows)
    return _Share(row_P, weight_P / sum_B[row_P] * weight_B[row_P], weight_B, negatives_B.to(dtype))


def _text_share(tiling: Tiling, everyone: _Everyone) -> _Share:
    """Captions as queries: the weighted mean over captions of the mean over their images."""
    column_P, dtype = tiling.column_P, everyone.weight_M.dtype
    weight_M = everyone.weight_M / (2 * everyone.weight_M.sum())
    images_M = _count(everyone.picture_id_M, everyone.picture_id_R).to(dtype)
    negatives_M = len(everyone.picture_id_R) - images_M
    return _Share(column_P, (weight_M / images_M)[column_P], weight_M, negatives_M)


def _count(of: Tensor, among: Tensor) -> Tensor:
    """How often each value of `of` occurs in `among`; int64 both."""
    among = among.sort()[0]
    return torch.searchsorted(among, of, right=True) - torch.searchsorted(among, of)
