"""How much of an exact search an index finds, and what that costs the task.

    Search -> find_truth: exact lists, a few of them checked by numpy -> Truth
    Truth + ids, scores that an index returned -> near_share         share of the true neighbours found
                                               -> task_hits          is the right item among the first k?

Recall is safe against ties, as in ann-benchmarks (erikbern/ann-benchmarks, `plotting/metrics.py`): an item
counts if it is as near as the k-th nearest, whichever of several equal ones was returned. Nearness is the
inner product of the float32 vectors, computed again from the ids, so a compressed index cannot pass its own
rounding off as truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core.errors import UserError
from mmalign.evaluation.ann.pools import IMAGE_TO_TEXT, Search
from mmalign.evaluation.nearest import search

Lists = dict[int, tuple[np.ndarray, np.ndarray]]  # k -> scores and ids, (Q, k) each
TIE = 1e-6  # vectors of unit length: float32 rounds their products by about 1e-7
_QUERIES_AT_ONCE = 256
_UNIT = 1e-3  # how far a length may be from 1: room for models that compute in 16 bits
_DISAGREE = 1e-5  # two exact searches of one space are never this far apart


@dataclass(frozen=True)
class Truth:
    """What an exact search finds, twice over.

    Attributes:
        lists: k -> scores (Q, k) float32 and ids (Q, k) int64 of the k nearest, nearest first (FAISS flat).
        threshold: k -> score (Q,) of the k-th nearest.
        sample: numbers (S,) of the queries that numpy searched as well.
        brute: k -> score (S,) of their k-th nearest by numpy's matrix product and sort alone.
    """

    lists: Lists
    threshold: dict[int, np.ndarray]
    sample: np.ndarray
    brute: dict[int, np.ndarray]

    @property
    def difference(self) -> float:
        """How far FAISS's thresholds and numpy's are apart at most."""
        gaps = [abs(self.threshold[k][self.sample] - self.brute[k]).max() for k in self.brute]
        return float(max(gaps))


def find_truth(one: Search, ks: Sequence[int], checked: int, seed: int) -> Truth:
    """The exact search, and numpy's of `checked` queries drawn at random.

    Raises:
        UserError: vectors are no numbers, or not of unit length.
    """
    for vectors in (one.query_QD, one.pool_MD):
        if not (abs(np.linalg.norm(vectors, axis=1) - 1) < _UNIT).all():
            raise UserError(
                f"{one.direction}: vectors of the model are no numbers or not of unit length, so it "
                "cannot be measured; look at how it was trained"
            )
    scores_QK, ids_QK = search(one.query_QD, one.pool_MD, max(ks))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(one.query_QD))[:checked])
    brute_SM = -np.sort(-(one.query_QD[sample] @ one.pool_MD.T), axis=1)
    truth = Truth(
        lists={k: (scores_QK[:, :k], ids_QK[:, :k]) for k in ks},
        threshold=thresholds(scores_QK, ks),
        sample=sample,
        brute=thresholds(brute_SM, ks),
    )
    assert truth.difference <= _DISAGREE, f"FAISS and numpy differ by {truth.difference}"
    return truth


def thresholds(scores_QK: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """For each k the score (Q,) of the k-th nearest; of the last one where the pool is smaller."""
    return {k: scores_QK[:, min(k, scores_QK.shape[1]) - 1] for k in ks}


def near_share(
    query_QD: np.ndarray, pool_MD: np.ndarray, ids_QK: np.ndarray, threshold_Q: np.ndarray
) -> np.ndarray:
    """recall@K: the share (Q,) float64 of the K nearest that an index returned.

    Args:
        ids_QK: int64, what it returned at depth K; -1 where it found nothing.
        threshold_Q: score of the K-th nearest.
    """
    once_QK = _without_repeats(ids_QK)
    near_QK = true_scores(query_QD, pool_MD, once_QK) >= threshold_Q[:, None] - TIE
    return near_QK.mean(1)


def true_scores(query_QD: np.ndarray, pool_MD: np.ndarray, ids_QK: np.ndarray) -> np.ndarray:
    """Inner products (Q, K) float32 of queries with items; minus infinity where the id is -1."""
    score_QK = np.empty(ids_QK.shape, np.float32)
    for start in range(0, len(ids_QK), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        score_QK[part] = np.einsum("qd,qkd->qk", query_QD[part], pool_MD[ids_QK[part]])
    return np.where(ids_QK >= 0, score_QK, -np.inf)


def task_hits(
    one: Search, scores_QK: np.ndarray, ids_QK: np.ndarray, lang: str, ks: Sequence[int]
) -> dict[int, np.ndarray]:
    """For each k, 0 or 1 for each query of a language: the right item is among the first k found.

    text_to_image: the queries are captions in `lang`. image_to_text: the queries are pictures with captions
    in `lang`, and only captions in `lang` are counted, right or wrong, as far down as the list goes. Items
    that the index scored as high as the right one stand before it.

    Args:
        scores_QK, ids_QK: of all queries, as the index returned them.
    """
    chosen = queries_of(one, lang)
    scores, ids = scores_QK[chosen], ids_QK[chosen]
    counted = ids >= 0
    if one.direction == IMAGE_TO_TEXT:
        counted &= one.pool_language_M[ids] == lang
    right = counted & (one.pool_label_M[ids] == one.query_label_Q[chosen][:, None])
    best_right = np.where(right, scores, -np.inf).max(1)
    wrong_before = (counted & ~right & (scores >= best_right[:, None] - TIE)).sum(1)
    return {k: (right.any(1) & (wrong_before < k)).astype(np.float64) for k in ks}


def queries_of(one: Search, lang: str) -> np.ndarray:
    """Numbers of the queries that a language's task recall is measured on."""
    if one.direction == IMAGE_TO_TEXT:
        of_language = one.pool_label_M[one.pool_language_M == lang]
        return np.flatnonzero(np.isin(one.query_label_Q, of_language))
    return np.flatnonzero(one.query_language_Q == lang)


def relevant_of(one: Search, lang: str) -> tuple[np.ndarray, int]:
    """For chance: how many right items each query of a language has (Q,), and among how many."""
    searched = one.pool_label_M
    if one.direction == IMAGE_TO_TEXT:
        searched = searched[one.pool_language_M == lang]
    labels, counts = np.unique(searched[searched >= 0], return_counts=True)
    asked = one.query_label_Q[queries_of(one, lang)]
    return counts[np.searchsorted(labels, asked)], len(searched)


def _without_repeats(ids_QK: np.ndarray) -> np.ndarray:
    """The same ids in another order, -1 for an item that was there already: none is found twice."""
    ordered_QK = np.sort(ids_QK, axis=1)
    ordered_QK[:, 1:][ordered_QK[:, 1:] == ordered_QK[:, :-1]] = -1
    return ordered_QK
