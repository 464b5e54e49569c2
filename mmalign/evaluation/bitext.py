"""Captions or words of two languages search each other: does a translation come first?

    vectors of a and b, which items answer each other -> `both_directions` -> hits at 1, by cosine or by CSLS

Ties are counted against the model, as in `nearest.py`.
Shapes: Q queries, M items of the pool, R pairs of a query and an answer, D width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.evaluation.nearest import TIE, chance_at

NEIGHBOURS = 10  # of CSLS, as in its paper
_KEPT = 2**25  # scores of a pair that are kept at a time: 128 MiB
_BLOCK = 2**21  # scores that are looked at in one go: 8 MiB


@dataclass(frozen=True)
class Relevance:
    """Which items of a pool answer each of Q queries; all int64."""

    # For query q, `count_Q[q]` entries of `item_R` from `start_Q[q]` on; queries may share entries.
    item_R: np.ndarray
    start_Q: np.ndarray
    count_Q: np.ndarray

    @classmethod
    def of_pairs(cls, query_R: np.ndarray, item_R: np.ndarray) -> "Relevance":
        """From all pairs of a query and a right item; every query has one."""
        count_Q = np.bincount(query_R)
        order_R = np.argsort(query_R, kind="stable")
        return cls(item_R[order_R], np.cumsum(count_Q) - count_Q, count_Q)

    @classmethod
    def of_labels(cls, label_N: np.ndarray) -> "Relevance":
        """Item j answers query i if their labels are equal."""
        _, group_N, copies = np.unique(label_N, return_inverse=True, return_counts=True)
        start = np.cumsum(copies) - copies
        return cls(np.argsort(label_N, kind="stable"), start[group_N], copies[group_N])

    def of(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Query (counted from `first`) and item of every right answer to queries `first` ... `last - 1`."""
        count = self.count_Q[first:last]
        before = np.cumsum(count) - count
        entry = np.arange(count.sum()) + np.repeat(self.start_Q[first:last] - before, count)
        return np.repeat(np.arange(len(count)), count), self.item_R[entry]


@dataclass(frozen=True)
class Direction:
    """Q queries that search a pool of M items by inner product, in blocks of rows."""

    query_QD: Tensor
    pool_MD: Tensor
    right: Relevance
    # The scores are needed twice in each direction, and for CSLS. Where they are many, each pass computes
    # them again, so that memory stays bounded.
    kept_QM: Tensor | None

    @property
    def chance(self) -> float:
        """How often a random item is right."""
        return chance_at(self.right.count_Q, len(self.pool_MD), 1)

    def hits(self, less_M: Tensor | None = None) -> np.ndarray:
        """(Q,) float64 of 0 and 1: whether a right item scores higher than all wrong ones.

        `less_M` is subtracted from the score of each item of the pool.
        """
        hits = []
        for start, block in self._blocks():
            block = block.clone() if less_M is None else block - less_M
            found = [torch.from_numpy(one) for one in self.right.of(start, start + len(block))]
            query, item = (one.to(block.device) for one in found)
            nothing = block.new_full((len(block),), -torch.inf)
            best_right = nothing.scatter_reduce(0, query, block[query, item], "amax")
            block[query, item] = -torch.inf  # only wrong items are left
            hits.append(best_right - block.amax(1) > TIE)
        return torch.cat(hits).cpu().numpy().astype(np.float64)

    def csls_hits(self, back: "Direction") -> np.ndarray:
        """The same by cross-domain similarity local scaling (CSLS; Conneau et al. 2018, arXiv 1710.04087)."""
        # CSLS is 2 cos(x, y) - r(x) - r(y), where r is the mean cosine with the nearest items of the other
        # language. r(x) is the same for all items of a query and decides nothing.
        k = min(NEIGHBOURS, len(back.pool_MD))
        nearest = [block.topk(k, dim=1).values.mean(1) for _, block in back._blocks()]
        return self.hits(torch.cat(nearest) / 2)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The first query of each block and the block, (queries, M); not to be changed."""
        rows = max(1, _BLOCK // len(self.pool_MD))
        for start in range(0, len(self.query_QD), rows):
            if self.kept_QM is None:
                yield start, self.query_QD[start : start + rows] @ self.pool_MD.T
            else:
                yield start, self.kept_QM[start : start + rows]


def number(items: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """The distinct items in the order of their first appearance, and the number (int64) of each item."""
    numbers: dict[str, int] = {}
    number_N = np.array([numbers.setdefault(one, len(numbers)) for one in items], np.int64)
    return list(numbers), number_N


def directions_of_entries(
    a_ND: Tensor, b_MD: Tensor, a_R: np.ndarray, b_R: np.ndarray
) -> tuple[Direction, Direction]:
    """As `both_directions`, where entry r of a dictionary says that `a_R[r]` and `b_R[r]` are right."""
    right_in_b, right_in_a = Relevance.of_pairs(a_R, b_R), Relevance.of_pairs(b_R, a_R)
    return both_directions(a_ND, b_MD, right_in_b, right_in_a)


def both_directions(
    a_ND: Tensor, b_MD: Tensor, right_in_b: Relevance, right_in_a: Relevance
) -> tuple[Direction, Direction]:
    """a searches b, and b searches a."""
    kept_NM = a_ND @ b_MD.T if len(a_ND) * len(b_MD) <= _KEPT else None
    kept_MN = None if kept_NM is None else kept_NM.T.contiguous()
    return Direction(a_ND, b_MD, right_in_b, kept_NM), Direction(b_MD, a_ND, right_in_a, kept_MN)


def on_device(rows_ND: np.ndarray) -> Tensor:
    """The rows on this rank's device."""
    # Vectors that are not numbers become zero, which ties with everything.
    return torch.from_numpy(rows_ND).to(distributed.device()).nan_to_num(0.0, 0.0, 0.0)
