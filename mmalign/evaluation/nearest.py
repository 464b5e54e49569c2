"""Exact nearest neighbours with FAISS, and what counts as a hit.

Ties are counted against the model: an item that scores as high as the right one, to the rounding of
float32, ranks before it. So a model that maps everything to one point scores zero, whatever the
order of the pool, and so does one whose vectors are not numbers.

Memory above the vectors is below 0.2 GB at D = 512, for a pool of any size, and 16 bytes for each query.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch

from mmalign.core import distributed

TIE = 1e-6  # two equal vectors of unit length may score 1e-7 apart, by their place in the pool
_CHUNK = 16_384  # queries that are searched at a time: four of FAISS's blocks
_ENTRIES = 2_000_000  # of the lists of one chunk, 26 bytes each; 30 more per rank of a sharded pool
_NEVER = np.iinfo(np.int64).max


def search(query_QD: np.ndarray, pool_MD: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` items of the pool with the largest inner product for each query.

    Args:
        query_QD, pool_MD: float32; contiguous ones are not copied, so they may be memory maps.

    Returns:
        Scores (Q, K) float32, descending, and indices (Q, K) int64, with K = min(depth, M); -1 where
        scores are not numbers.
    """
    import faiss

    depth = min(depth, len(pool_MD))
    scores, indices = faiss.knn(query_QD, pool_MD, depth, faiss.METRIC_INNER_PRODUCT)
    return scores, indices


def search_shards(
    query_QD: np.ndarray, shard_SD: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, where each rank holds a slice of the pool, which may be empty. A collective.

    Indices count through the slices in rank order.
    """
    sizes = distributed.gather_objects(len(shard_SD))
    depth = min(depth, sum(sizes))
    scores_QS, indices_QS = search(query_QD, shard_SD, depth)
    indices_QS[indices_QS >= 0] += sum(sizes[: distributed.rank()])
    missing = ((0, 0), (0, depth - scores_QS.shape[1]))  # ranks gather lists of one length
    scores_QW = _beside(np.pad(scores_QS, missing, constant_values=-np.inf))
    indices_QW = _beside(np.pad(indices_QS, missing, constant_values=-1))
    order_QK = np.argsort(-scores_QW, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores_QW, order_QK, 1), np.take_along_axis(indices_QW, order_QK, 1)


def hits_at(
    query_QD: np.ndarray,
    pool_MD: np.ndarray,
    query_label_Q: np.ndarray,
    pool_label_M: np.ndarray,
    ks: Sequence[int],
    sharded: bool = False,
) -> dict[int, np.ndarray]:
    """k -> (Q,) float64 of 0 and 1, whether an item with the query's label is among the first k.

    Args:
        sharded: `pool_MD` is this rank's slice of a pool that lies on all ranks (`search_shards`), and
            `pool_label_M` has the labels of the complete pool. Then this is a collective.
    """
    pool_MD = np.ascontiguousarray(pool_MD, np.float32)
    find = search_shards if sharded else search
    wrong_Q = np.full(len(query_QD), _NEVER)
    # A list one longer than the largest k decides nearly every query. Where several right items tie at the
    # end of a list, that query alone is searched again, twice as deep.
    unclear, depth = np.arange(len(query_QD)), max(ks) + 1
    while len(unclear):
        still = []
        chunks = ceil(len(unclear) / max(1, min(_CHUNK, _ENTRIES // depth)))
        for chunk in np.array_split(unclear, chunks):
            query = np.ascontiguousarray(query_QD[chunk], np.float32)
            scores, indices = find(query, pool_MD, depth)
            right_QK = (pool_label_M[indices] == query_label_Q[chunk, None]) & (indices >= 0)
            wrong_Q[chunk], last_tied = wrong_before(scores, right_QK)
            seen_all = depth >= len(pool_label_M)
            still.append(chunk[last_tied & (wrong_Q[chunk] < max(ks)) & (not seen_all)])
        unclear, depth = np.concatenate(still), 2 * depth
    return {k: (wrong_Q < k).astype(np.float64) for k in ks}


def wrong_before(scores_QK: np.ndarray, right_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong items of a list rank before its best right one, ties included; if it has no right one,
    more than any list holds. And whether the last of the list ties with that one, so that more may follow."""
    best_Q1 = np.where(right_QK, scores_QK, -np.inf).max(1, keepdims=True)
    before_QK = scores_QK >= best_Q1 - TIE
    wrong_Q = np.where(right_QK.any(1), (~right_QK & before_QK).sum(1), _NEVER)
    return wrong_Q, before_QK[:, -1]


def _beside(rows_QK: np.ndarray) -> np.ndarray:
    gathered = distributed.gather_rows(torch.from_numpy(np.ascontiguousarray(rows_QK))).numpy()
    parts = gathered.reshape(distributed.world_size(), *rows_QK.shape)
    return np.concatenate(list(parts), axis=1)


def chance_at(relevant_Q: np.ndarray, pool: int, k: int) -> float:
    """Mean over queries of the probability that k random items of the pool hold one of the relevant ones."""
    miss_Q = np.ones(len(relevant_Q))
    for drawn in range(min(k, pool)):
        miss_Q *= np.clip(pool - relevant_Q - drawn, 0, None) / (pool - drawn)
    return float(1 - miss_Q.mean())
