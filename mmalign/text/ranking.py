"""Retrieval among texts: the nearest candidates of every query, for any tower.

    queries    -> tower -> query_QD     -+
                                         +-> cosines (FAISS, exact) -> ids, the nearest first
    candidates -> tower -> candidate_MD -+

For towers without training (Tatoeba in XTREME, arXiv 2003.11080) and for those that were trained to retrieve
(LAReQA and Mewsli-X in XTREME-R, arXiv 2104.07412).

Ties are counted against the model, as in `mmalign.evaluation.nearest`: a wrong candidate that scores as high
as a correct one, to the rounding of float32, is ranked before it. So a tower that maps every text to one
point finds nothing, in any order of the pool.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np

from mmalign.evaluation.nearest import TIE, search
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.tasks.example import Example

DEPTH = 20


def rank(
    tower: TextEncoder,
    queries: Sequence[Example],
    candidates: Sequence[Example],
    depth: int = DEPTH,
    candidate_MD: np.ndarray | None = None,
) -> list[tuple[str, ...]]:
    """The ids of the `depth` nearest candidates of each query by cosine, the nearest first.

    Args:
        queries: one text each; `target` holds the ids of the correct candidates, which decides ties only.
        candidates: one text each, with ids of their own.
        candidate_MD: features of the candidates, where they are known already.

    Returns:
        One tuple per query; a shorter one if there are fewer candidates, or if features are not numbers.
    """
    if candidate_MD is None:
        candidate_MD = tower.encode([one.texts[0] for one in candidates])
    query_QD = tower.encode([one.texts[0] for one in queries])
    correct = [frozenset(map(str, cast("tuple[str, ...]", one.target))) for one in queries]
    return rank_features(query_QD, candidate_MD, correct, [one.id for one in candidates], depth)


def rank_features(
    query_QD: np.ndarray,
    candidate_MD: np.ndarray,
    correct_ids: Sequence[frozenset[str]],
    candidate_ids: Sequence[str],
    depth: int = DEPTH,
) -> list[tuple[str, ...]]:
    """As `rank`, of features: float32, of any length but zero."""
    if not candidate_ids:
        return [()] * len(correct_ids)
    # Deep enough that `depth` wrong candidates are found even if all correct ones are before them.
    most_correct = max(map(len, correct_ids), default=0)
    scores, indices = search(_unit(query_QD), _unit(candidate_MD), depth + most_correct)
    ranked = []
    for score_K, index_K, correct in zip(scores, indices, correct_ids, strict=True):
        is_found = index_K >= 0
        names = [candidate_ids[i] for i in index_K[is_found]]
        # A correct candidate is ranked behind all wrong ones of its score.
        behind = TIE * np.array([name in correct for name in names], np.float64)
        order = np.argsort(behind - score_K[is_found], kind="stable")
        ranked.append(tuple(names[i] for i in order[:depth]))
    return ranked


def _unit(feature_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return (feature_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)
