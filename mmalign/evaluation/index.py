"""Exact nearest neighbours with FAISS, and what counts as a hit.

    query_QD, pool_MD -> inner products -> the first K of the pool for each query -> hits at each k

Ties are counted against the model: an item that scores as high as the right one, to the rounding of
float32, stands before it. So a model that maps everything to one point scores zero, whatever the
order of the pool, and so does one whose vectors are not numbers.
"""

from collections.abc import Sequence

import numpy as np

_TIE = 1e-6  # two equal vectors of unit length may score 1e-7 apart, by their place in the pool


def search(query_QD: np.ndarray, pool_MD: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` items of the pool with the largest inner product for each query.

    Args:
        query_QD, pool_MD: float32.

    Returns:
        Scores (Q, K) float32, descending, and indices (Q, K) int64, with K = min(depth, M). Where
        scores are not numbers, -1 stands for an index.
    """
    import faiss

    index = faiss.IndexFlatIP(pool_MD.shape[1])
    index.add(np.ascontiguousarray(pool_MD, np.float32))
    depth = min(depth, len(pool_MD))
    scores, indices = index.search(np.ascontiguousarray(query_QD, np.float32), depth)
    return scores, indices


def hits_at(
    query_QD: np.ndarray,
    pool_MD: np.ndarray,
    query_label_Q: np.ndarray,
    pool_label_M: np.ndarray,
    ks: Sequence[int],
) -> dict[int, np.ndarray]:
    """For each k, whether an item with the query's label is among the first k: the field's recall@k.

    Args:
        query_label_Q, pool_label_M: int64; an item answers a query if the labels are equal.

    Returns:
        k -> (Q,) float64 of 0 and 1.
    """
    _, copies = np.unique(pool_label_M, return_counts=True)
    # Deep enough that k wrong items are seen even if all right ones stand before them.
    scores, indices = search(query_QD, pool_MD, max(ks) + int(copies.max()))
    right_QK = (pool_label_M[indices] == query_label_Q[:, None]) & (indices >= 0)
    best_right_Q = np.where(right_QK, scores, -np.inf).max(1)
    wrong_before_Q = (~right_QK & (scores >= best_right_Q[:, None] - _TIE)).sum(1)
    found_Q = right_QK.any(1)
    return {k: (found_Q & (wrong_before_Q < k)).astype(np.float64) for k in ks}


def chance_at(relevant_Q: np.ndarray, pool: int, k: int) -> float:
    """Mean over queries of the probability that k random items of the pool hold one of the relevant ones."""
    miss_Q = np.ones(len(relevant_Q))
    for drawn in range(min(k, pool)):
        miss_Q *= np.clip(pool - relevant_Q - drawn, 0, None) / (pool - drawn)
    return float(1 - miss_Q.mean())
