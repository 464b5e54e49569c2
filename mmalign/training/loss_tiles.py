"""Sums over the scores of all pairs, a tile at a time: no matrix of rows x columns is ever held.

    rows x columns -> tile of scores -> running sums                    (forward; the tile is thrown away)
    rows x columns -> the same tile again -> its gradient -> added to the rows' and the columns' gradients

A score is scale * row . column. Memory beyond the rows and columns: their gradients, two tiles, and a few
numbers for each row, column and pair of one picture; a pair has one row and one column that share a picture.
The backward pass computes each tile a second time, which costs one matrix product in four. One tile serves
both directions: sums over its columns (for the rows) and over its rows (for the columns).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_SIDE = 1024
"""Two tiles of this side in float32 are 8 MiB. Sides of 512 to 2048 differed by few per cent."""
GPU_SIDE = 4096
"""Large, so that a GPU is busy with each tile; two tiles in float32 are 128 MiB."""


@dataclass(frozen=True)
class Tiling:
    """How rows x columns are cut into tiles, and where the pairs of one picture lie.

    Attributes:
        rows, columns: how many there are.
        side: rows and columns of a tile; the last ones are smaller.
        row_P, column_P: int64, the pairs whose row and column share a picture, tile after tile.
        first: pairs of tile k are first[k] to first[k + 1].
    """

    rows: int
    columns: int
    side: int
    row_P: Tensor
    column_P: Tensor
    first: list[int]

    def tiles(self) -> Iterator[tuple[slice, slice, slice]]:
        """Rows, columns and pairs of each tile, row of tiles after row of tiles."""
        pairs = map(slice, self.first, self.first[1:])
        for row in range(0, self.rows, self.side):
            rows = slice(row, min(row + self.side, self.rows))
            for column in range(0, self.columns, self.side):
                yield rows, slice(column, min(column + self.side, self.columns)), next(pairs)

    def inside(self, rows: slice, columns: slice, pairs: slice) -> tuple[Tensor, Tensor]:
        """Where in its tile each of `pairs` lies."""
        return self.row_P[pairs] - rows.start, self.column_P[pairs] - columns.start

    def buffer(self, like: Tensor) -> Tensor:
        """Room for one tile."""
        return like.new_empty(min(self.side, self.rows) * min(self.side, self.columns))


def cut(picture_id_R: Tensor, picture_id_C: Tensor, side: int | None = None) -> Tiling:
    """Tiles for rows and columns with these pictures, int64; `side` None: what suits the device."""
    side = side or (CPU_SIDE if picture_id_R.device.type == "cpu" else GPU_SIDE)
    row_P, column_P = _equal_pairs(picture_id_R, picture_id_C)
    down, across = -(-len(picture_id_R) // side), -(-len(picture_id_C) // side)
    tile_P, order_P = torch.sort(row_P // side * across + column_P // side, stable=True)
    first = torch.searchsorted(tile_P, torch.arange(down * across + 1, device=tile_P.device))
    pairs = row_P[order_P], column_P[order_P]
    return Tiling(len(picture_id_R), len(picture_id_C), side, *pairs, first.tolist())


def _equal_pairs(row_R: Tensor, column_C: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rows and columns with equal values, without comparing each with each."""
    sorted_C, order_C = column_C.sort(stable=True)
    start_R = torch.searchsorted(sorted_C, row_R)
    count_R = torch.searchsorted(sorted_C, row_R, right=True) - start_R
    row_P = torch.arange(len(row_R), device=row_R.device).repeat_interleave(count_R)
    before_R = count_R.cumsum(0) - count_R
    place_P = torch.arange(len(row_P), device=row_R.device) - before_R[row_P]
    return row_P, order_C[start_R[row_P] + place_P]


def log_sums(
    row_RD: Tensor, column_CD: Tensor, scale: Tensor, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor]:
    """What the softmax loss needs to know of all scores; differentiable once.

    Args:
        row_RD, column_CD: of one floating dtype, which everything is computed in, autocast or not.
        scale: (1,), of that dtype.

    Returns:
        For each row, the log of the sum of exp(score) over the columns of other pictures (R,); for each
        column the same over the rows (C,); and the score of each pair of one picture (P,). A row or column
        without others has a finite number so low that it counts for nothing.
    """
    found: tuple[Tensor, Tensor, Tensor] = _LogSums.apply(row_RD, column_CD, scale, tiling)
    return found


def sigmoid_sums(
    row_RD: Tensor, column_CD: Tensor, scale: Tensor, bias: Tensor, tiling: Tiling
) -> Tensor:
    """(C,) For each column, the sum over all rows of -log sigmoid(z (score + bias)); differentiable once.

    z is 1 where row and column share a picture and -1 elsewhere. Arguments as in `log_sums`; bias: (1,).
    """
    found: Tensor = _SigmoidSums.apply(row_RD, column_CD, scale, bias, tiling)
    return found


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, row_RD: Tensor, column_CD: Tensor, scale: Tensor, tiling: Tiling
    ) -> tuple[Tensor, Tensor, Tensor]:
        over_columns, over_rows = _RunningLogSum(row_RD, 1), _RunningLogSum(column_CD, 0)
        score_P = row_RD.new_empty(len(tiling.row_P))
        spare = tiling.buffer(row_RD)
        with _own_precision(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, tiling):
                inside = tiling.inside(rows, columns, pairs)
                score_P[pairs] = tile[inside]
                tile[inside] = _lowest(tile.dtype)
                over_columns.add(tile, rows, spare)
                over_rows.add(tile, columns, spare)
        row_R, column_C = over_columns.value(), over_rows.value()
        ctx.set_materialize_grads(False)
        ctx.tiling = tiling
        ctx.save_for_backward(row_RD, column_CD, scale, row_R, column_C)
        return row_R, column_C, score_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        row_RD, column_CD, scale, row_R, column_C = ctx.saved_tensors
        grad_R, grad_C, grad_P = gradients
        row_R, column_C = _without_empty(row_R), _without_empty(column_C)
        spare = ctx.tiling.buffer(row_RD)
        collect = _Gradients(row_RD, column_CD, scale)
        with _own_precision(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, ctx.tiling):
                inside = ctx.tiling.inside(rows, columns, pairs)
                slope = spare[: tile.numel()].view_as(tile).zero_()
                if grad_R is not None:
                    torch.sub(tile, row_R[rows, None], out=slope).exp_().mul_(grad_R[rows, None])
                if grad_C is not None:
                    slope.addcmul_(tile.sub_(column_C[columns]).exp_(), grad_C[columns])
                slope[inside] = 0 if grad_P is None else grad_P[pairs]
                collect.add(slope, rows, columns)
            return *collect.value(), None


class _SigmoidSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, row_RD: Tensor, column_CD: Tensor, scale: Tensor, bias: Tensor, tiling: Tiling
    ) -> Tensor:
        sum_C = column_CD.new_zeros(len(column_CD))
        with _own_precision(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, tiling):
                _negate(tile.add_(bias), tiling.inside(rows, columns, pairs))
                sum_C[columns] += torch.nn.functional.softplus(tile).sum(0)
        ctx.tiling = tiling
        ctx.save_for_backward(row_RD, column_CD, scale, bias)
        return sum_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        row_RD, column_CD, scale, bias = ctx.saved_tensors
        collect = _Gradients(row_RD, column_CD, scale)
        grad_bias = torch.zeros_like(bias)
        with _own_precision(row_RD):
            for rows, columns, pairs, tile in _score_tiles(row_RD, column_CD, scale, ctx.tiling):
                inside = ctx.tiling.inside(rows, columns, pairs)
                _negate(tile.add_(bias), inside)
                # Where the score was negated, so is its slope.
                _negate(tile.sigmoid_(), inside)
                tile.mul_(gradients[0][columns])
                grad_bias += tile.sum()
                collect.add(tile, rows, columns)
            return *collect.value(), grad_bias, None


class _RunningLogSum:
    """log(sum of exp) over one dimension of tiles that come one after another: the largest score so far
    and the sum in its units, so that nothing overflows and the largest terms never vanish."""

    def __init__(self, like: Tensor, dim: int) -> None:
        self._dim = dim
        self._most = like.new_full((len(like),), _lowest(like.dtype))
        self._sum = like.new_zeros(len(like))

    def add(self, tile: Tensor, place: slice, spare: Tensor) -> None:
        """`place`: which sums the tile adds to. `spare`: room for a tile, overwritten."""
        before = self._most[place]
        most = torch.maximum(before, tile.amax(self._dim))
        terms = spare[: tile.numel()].view_as(tile)
        torch.sub(tile, most.unsqueeze(self._dim), out=terms).exp_()
        self._sum[place] = self._sum[place] * (before - most).exp() + terms.sum(self._dim)
        self._most[place] = most

    def value(self) -> Tensor:
        return self._most + self._sum.log()


class _Gradients:
    """Gradients of rows, columns and scale, from the gradient of the scores that comes in tiles."""

    def __init__(self, row_RD: Tensor, column_CD: Tensor, scale: Tensor) -> None:
        self._row_RD, self._column_CD, self._scale = row_RD, column_CD, scale
        # Both as if the scale were 1.
        self._grad_RD, self._grad_CD = torch.zeros_like(row_RD), torch.zeros_like(column_CD)

    def add(self, slope: Tensor, rows: slice, columns: slice) -> None:
        """`slope`: the gradient of one tile of scores."""
        self._grad_RD[rows].addmm_(slope, self._column_CD[columns])
        self._grad_CD[columns].addmm_(slope.T, self._row_RD[rows])

    def value(self) -> tuple[Tensor, Tensor, Tensor]:
        grad_scale = torch.linalg.vecdot(self._row_RD, self._grad_RD).sum().view_as(self._scale)
        return self._grad_RD.mul_(self._scale), self._grad_CD.mul_(self._scale), grad_scale


def _score_tiles(
    row_RD: Tensor, column_CD: Tensor, scale: Tensor, tiling: Tiling
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """The scores of each tile with its rows, columns and pairs; every tile overwrites the one before."""
    buffer = tiling.buffer(row_RD)
    for rows, columns, pairs in tiling.tiles():
        height, width = rows.stop - rows.start, columns.stop - columns.start
        tile = buffer[: height * width].view(height, width)
        torch.mm(row_RD[rows] * scale, column_CD[columns].T, out=tile)
        yield rows, columns, pairs, tile


def _own_precision(like: Tensor) -> torch.autocast:
    """Autocast would turn the products of scores into half precision."""
    return torch.autocast(like.device.type, enabled=False)


def _negate(tile: Tensor, inside: tuple[Tensor, Tensor]) -> None:
    tile[inside] = -tile[inside]


def _without_empty(log_sum: Tensor) -> Tensor:
    """Log sums over nothing become infinite, so that exp(score - log sum) is 0 there."""
    return log_sum.masked_fill(log_sum <= _lowest(log_sum.dtype) / 2, torch.inf)


def _lowest(dtype: torch.dtype) -> float:
    """A score that counts for nothing in a softmax.

    Finite instead of -inf: the gradient of a log sum over nothing is not a number.
    """
    return torch.finfo(dtype).min / 4
