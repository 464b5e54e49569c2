"""Sums over the scores of all pairs, one tile at a time, without a matrix of rows x columns.

    forward:  rows x columns -> tile of scores -> running sums; the tile is discarded
    backward: rows x columns -> the same tile again -> its gradient -> gradients of the rows and columns

A score is scale * row . column. Memory beyond the rows and columns: their gradients, two tiles, and a few
numbers per row, column and positive pair (a row and a column of one picture). The backward pass recomputes
each tile, which adds one matrix product to three. One tile serves both directions: its sums over columns
belong to the rows, its sums over rows to the columns.

The idea is that of memory-efficient attention (arXiv 2112.05682) and of the tiled contrastive loss of
Inf-CL (arXiv 2410.17243).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmalign.core.batch import send

# Two float32 tiles of this side take 8 MiB. Sides of 512 to 2048 differed by a few per cent.
CPU_SIDE = 1024
# Large enough to keep a GPU busy with one tile; two float32 tiles take 128 MiB.
GPU_SIDE = 4096


@dataclass(frozen=True)
class Tiling:
    """How rows x columns are divided into tiles, and where the positive pairs are."""

    rows: int
    columns: int
    side: int  # rows and columns of a tile; the last tiles are smaller
    row_P: Tensor  # int64, row and column of each positive pair of this rank, ordered by tile
    column_P: Tensor
    first: list[int]  # the positive pairs of tile k are first[k] to first[k + 1]
    row_A: Tensor  # the same of all ranks, in rank order, on the host; a row counts from its rank's first
    column_A: Tensor
    pairs: list[int]  # how many of these each rank has

    def tiles(self) -> Iterator[tuple[slice, slice, slice]]:
        """Rows, columns and positive pairs of each tile; the tiles of one row follow each other."""
        pairs = map(slice, self.first, self.first[1:])
        for row in range(0, self.rows, self.side):
            rows = slice(row, min(row + self.side, self.rows))
            for column in range(0, self.columns, self.side):
                yield rows, slice(column, min(column + self.side, self.columns)), next(pairs)

    def positives_in_tile(self, rows: slice, columns: slice, pairs: slice) -> tuple[Tensor, Tensor]:
        """Row and column of each of `pairs`, counted from the tile's corner."""
        return self.row_P[pairs] - rows.start, self.column_P[pairs] - columns.start

    def buffer(self, like: Tensor) -> Tensor:
        """Memory for one tile."""
        return like.new_empty(min(self.side, self.rows) * min(self.side, self.columns))


def make_tiling(
    picture_id_A: Tensor,
    rows: Sequence[int],
    rank: int,
    picture_id_C: Tensor,
    device: torch.device,
    side: int | None = None,
) -> Tiling:
    """Tiles of the rows of one rank x columns.

    Args:
        picture_id_A, picture_id_C: int64, on the host: the pictures of the rows of all ranks, in rank order,
            and of the columns.
        rows: how many rows each rank has.
        side: of a tile; None: the default of the device, or one tile for everything if that is no larger.
    """
    if side is None:
        side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
        # All scores of a rank in one tile, if it is no larger: they are then kept for the backward pass.
        # Not more: on a CPU one tile of 2048 x 2048 was no faster than four, one of 4096 x 4096 slower.
        if max(rows) * len(picture_id_C) <= side**2:
            side = max(*rows, len(picture_id_C))
    row_A, column_A = _matching_pairs(picture_id_A, picture_id_C)
    across = -(-len(picture_id_C) // side)
    ends = torch.tensor(rows).cumsum(0)
    rank_A = torch.searchsorted(ends, row_A, right=True)
    row_A = row_A - (ends - torch.tensor(rows))[rank_A]
    # Ranks are told apart by a multiple of the most tiles that one can have.
    tiles = -(-max(rows) // side) * across
    tile_A, order_A = torch.sort(
        rank_A * tiles + row_A // side * across + column_A // side, stable=True
    )
    row_A, column_A = row_A[order_A], column_A[order_A]
    edges = torch.searchsorted(tile_A, tiles * torch.arange(len(rows) + 1)).tolist()
    own = slice(edges[rank], edges[rank + 1])
    used = -(-rows[rank] // side) * across
    first = torch.searchsorted(tile_A[own], rank * tiles + torch.arange(used + 1))
    return Tiling(
        rows[rank],
        len(picture_id_C),
        side,
        send(row_A[own], device),
        send(column_A[own], device),
        first.tolist(),
        row_A,
        column_A,
        [last - first for first, last in pairwise(edges)],
    )


def _matching_pairs(row_R: Tensor, column_C: Tensor) -> tuple[Tensor, Tensor]:
    # Indices of all rows and columns with equal values.
    # Sort and binary search: comparing each with each would need a matrix of rows x columns.
    sorted_C, order_C = column_C.sort(stable=True)
    start_R = torch.searchsorted(sorted_C, row_R)
    count_R = torch.searchsorted(sorted_C, row_R, right=True) - start_R
    row_P = torch.arange(len(row_R), device=row_R.device).repeat_interleave(count_R)
    # The k-th pair of a row is the k-th of its run of equal values among the sorted columns.
    before_R = count_R.cumsum(0) - count_R
    offset_P = torch.arange(len(row_P), device=row_R.device) - before_R[row_P]
    return row_P, order_C[start_R[row_P] + offset_P]


def log_sums(
    row_RD: Tensor, column_CD: Tensor, scale: Tensor, tiling: Tiling, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over all scores that the softmax loss needs; differentiable once.

    Args:
        row_RD, column_CD: of one floating dtype, which everything is computed in, autocast or not.
        scale: (1,), of that dtype.
        bf16: round what enters the matrix products, forwards and backwards, to bfloat16. Their sums and
            everything else stay in that dtype.

    Returns:
        Per row, the log of the sum of exp(score) over the columns of other pictures (R,); per column, the
        same over the rows (C,); and the score of each positive pair (P,). A row or column without negatives
        has a finite number so low that it adds nothing to a softmax.
    """
    found: tuple[Tensor, Tensor, Tensor] = _LogSums.apply(row_RD, column_CD, scale, tiling, bf16)
    return found


def sigmoid_sums(
    row_RD: Tensor,
    column_CD: Tensor,
    scale: Tensor,
    bias: Tensor,
    tiling: Tiling,
    bf16: bool = False,
) -> Tensor:
    """(C,) Per column, the sum over all rows of -log sigmoid(z (score + bias)); differentiable once.

    z is 1 where row and column share a picture and -1 elsewhere. Arguments as in `log_sums`; bias: (1,).
    """
    found: Tensor = _SigmoidSums.apply(row_RD, column_CD, scale, bias, tiling, bf16)
    return found


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, row_RD: Tensor, column_CD: Tensor, scale: Tensor, tiling: Tiling, bf16: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        over_columns, over_rows = _RunningLogSum(row_RD, 1), _RunningLogSum(column_CD, 0)
        score_P = row_RD.new_empty(len(tiling.row_P))
        workspace = tiling.buffer(row_RD)
        with _without_autocast(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, tiling, bf16):
                positives_in_tile = tiling.positives_in_tile(rows, columns, pairs)
                score_P[pairs] = tile[positives_in_tile]
                # A positive is never a negative of its own row or of another positive.
                tile[positives_in_tile] = _lowest(tile.dtype)
                over_columns.add(tile, rows, workspace)
                over_rows.add(tile, columns, workspace)
        row_R, column_C = over_columns.value(), over_rows.value()
        # Dense where one tile holds all scores: they are kept, not computed again.
        ctx.scores = tile if len(tiling.first) == 2 else None
        # An output that the loss does not use has no gradient: None, instead of a tensor of zeros.
        ctx.set_materialize_grads(False)
        ctx.tiling, ctx.bf16 = tiling, bf16
        ctx.save_for_backward(row_RD, column_CD, scale, row_R, column_C)
        return row_R, column_C, score_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        row_RD, column_CD, scale, row_R, column_C = ctx.saved_tensors
        grad_R, grad_C, grad_P = gradients
        row_R, column_C = _without_empty(row_R), _without_empty(column_C)
        workspace = ctx.tiling.buffer(row_RD)
        collect = _Gradients(row_RD, column_CD, scale, ctx.bf16)
        with _without_autocast(row_RD):
            for rows, columns, pairs, tile in _score_tiles(
                row_RD, column_CD, scale, ctx.tiling, ctx.bf16, ctx.scores
            ):
                positives_in_tile = ctx.tiling.positives_in_tile(rows, columns, pairs)
                grad_logits = workspace[: tile.numel()].view_as(tile).zero_()
                if grad_R is not None:
                    torch.sub(tile, row_R[rows, None], out=grad_logits).exp_().mul_(
                        grad_R[rows, None]
                    )
                if grad_C is not None:
                    grad_logits.addcmul_(tile.sub_(column_C[columns]).exp_(), grad_C[columns])
                grad_logits[positives_in_tile] = 0 if grad_P is None else grad_P[pairs]
                collect.add(grad_logits, rows, columns)
            return *collect.value(), None, None


class _SigmoidSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        row_RD: Tensor,
        column_CD: Tensor,
        scale: Tensor,
        bias: Tensor,
        tiling: Tiling,
        bf16: bool,
    ) -> Tensor:
        sum_C = column_CD.new_zeros(len(column_CD))
        with _without_autocast(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, tiling, bf16):
                _negate(tile.add_(bias), tiling.positives_in_tile(rows, columns, pairs))
                sum_C[columns] += torch.nn.functional.softplus(tile).sum(0)
        ctx.tiling, ctx.bf16 = tiling, bf16
        ctx.save_for_backward(row_RD, column_CD, scale, bias)
        return sum_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        row_RD, column_CD, scale, bias = ctx.saved_tensors
        collect = _Gradients(row_RD, column_CD, scale, ctx.bf16)
        grad_bias = torch.zeros_like(bias)
        with _without_autocast(row_RD):
            for rows, columns, pairs, tile in _score_tiles(
                row_RD, column_CD, scale, ctx.tiling, ctx.bf16
            ):
                positives_in_tile = ctx.tiling.positives_in_tile(rows, columns, pairs)
                _negate(tile.add_(bias), positives_in_tile)
                # d softplus(-s) / ds = -sigmoid(-s): where the score was negated, so is its gradient.
                _negate(tile.sigmoid_(), positives_in_tile)
                tile.mul_(gradients[0][columns])
                grad_bias += tile.sum()
                collect.add(tile, rows, columns)
            return *collect.value(), grad_bias, None, None


class _RunningLogSum:
    """log(sum of exp) over one dimension of tiles that arrive one after another (arXiv 1805.02867)."""

    def __init__(self, like: Tensor, dim: int) -> None:
        self._dim = dim
        # The largest score so far, and the sum relative to it, so that exp never overflows.
        self._most = like.new_full((len(like),), _lowest(like.dtype))
        self._sum = like.new_zeros(len(like))

    def add(self, tile: Tensor, place: slice, workspace: Tensor) -> None:
        # To the sums `place`. `workspace`: memory for one tile, overwritten.
        before = self._most[place]
        most = torch.maximum(before, tile.amax(self._dim))
        terms = workspace[: tile.numel()].view_as(tile)
        torch.sub(tile, most.unsqueeze(self._dim), out=terms).exp_()
        self._sum[place] = self._sum[place] * (before - most).exp() + terms.sum(self._dim)
        self._most[place] = most

    def value(self) -> Tensor:
        return self._most + self._sum.log()


class _Gradients:
    """Gradients of rows, columns and scale, from the gradients of the scores, tile by tile."""

    def __init__(self, row_RD: Tensor, column_CD: Tensor, scale: Tensor, bf16: bool) -> None:
        self._row_RD, self._column_CD, self._scale, self._bf16 = row_RD, column_CD, scale, bf16
        # Without the factor `scale`, which is applied once at the end.
        self._grad_RD, self._grad_CD = torch.zeros_like(row_RD), torch.zeros_like(column_CD)

    def add(self, grad_logits: Tensor, rows: slice, columns: slice) -> None:
        # `grad_logits`: the gradient of one tile of scores.
        if not self._bf16:  # without a tensor for the product
            self._grad_RD[rows].addmm_(grad_logits, self._column_CD[columns])
            self._grad_CD[columns].addmm_(grad_logits.T, self._row_RD[rows])
            return
        self._grad_RD[rows] += _product_of_rounded(grad_logits, self._column_CD[columns])
        self._grad_CD[columns] += _product_of_rounded(grad_logits.T, self._row_RD[rows])

    def value(self) -> tuple[Tensor, Tensor, Tensor]:
        # A score is linear in the scale, so its gradient is the sum of unscaled score times its gradient.
        grad_scale = torch.linalg.vecdot(self._row_RD, self._grad_RD).sum().view_as(self._scale)
        return self._grad_RD.mul_(self._scale), self._grad_CD.mul_(self._scale), grad_scale


def _score_tiles(
    row_RD: Tensor,
    column_CD: Tensor,
    scale: Tensor,
    tiling: Tiling,
    bf16: bool,
    scores_RC: Tensor | None = None,
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    # Rows, columns, positive pairs and scores of each tile; a tile overwrites the one before. `scores_RC`: of
    # the only tile, where they were kept.
    if scores_RC is not None:
        yield (*next(tiling.tiles()), scores_RC.clone())
        return
    buffer = tiling.buffer(row_RD)
    for rows, columns, pairs in tiling.tiles():
        height, width = rows.stop - rows.start, columns.stop - columns.start
        tile = buffer[: height * width].view(height, width)
        if bf16:
            _product_of_rounded(row_RD[rows] * scale, column_CD[columns].T, out=tile)
        else:
            torch.mm(row_RD[rows] * scale, column_CD[columns].T, out=tile)
        yield rows, columns, pairs, tile


def _product_of_rounded(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    # Of both rounded to bfloat16; the products of two such numbers are exact in float32, in which they are
    # added.
    left_16, right_16 = left.bfloat16(), right.bfloat16()
    if left.is_cuda:
        return torch.mm(left_16, right_16, out_dtype=torch.float32, out=out)
    # On CPUs torch has no product of 16-bit matrices in float32: the same numbers, not faster.
    return torch.mm(left_16.to(left.dtype), right_16.to(left.dtype), out=out)


def _without_autocast(like: Tensor) -> torch.autocast:
    # Scores are computed in the dtype of the embeddings; autocast would make them 16-bit.
    return torch.autocast(like.device.type, enabled=False)


def _negate(tile: Tensor, positives_in_tile: tuple[Tensor, Tensor]) -> None:
    tile[positives_in_tile] = -tile[positives_in_tile]


def _without_empty(log_sum: Tensor) -> Tensor:
    # Infinity in place of log sums without terms, so that exp(score - log sum) is 0 there.
    return log_sum.masked_fill(log_sum <= _lowest(log_sum.dtype) / 2, torch.inf)


def _lowest(dtype: torch.dtype) -> float:
    # A score that adds nothing to a softmax. Not -inf: the gradient of a log sum without terms would be NaN.
    # A quarter leaves room for differences.
    return torch.finfo(dtype).min / 4
