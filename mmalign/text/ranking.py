"""Retrieval among texts: every query's nearest candidates, whatever tower makes the features.

    queries    -> tower -> query_QD     -+
                                         +-> cosines (FAISS, exact) -> ids, the nearest first
    candidates -> tower -> candidate_MD -+

For towers as they are (Tatoeba in XTREME, arXiv 2003.11080) and for those that were trained to retrieve
(LAReQA and Mewsli-X in XTREME-R, arXiv 2104.07412).

Ties are counted against the model, as in `mmalign.evaluation.nearest`: a wrong candidate that scores as high
as a right one, to the rounding of float32, stands before it. So a tower that maps every text to one point
finds nothing, whatever the order of the pool.
"""

from collections.abc import Sequence

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
) -> list[tuple[str, ...]]:
    """The ids of the `depth` nearest candidates of each query by cosine, the nearest first.

    Args:
        queries: one text each; `target` holds the ids of the right candidates, which decides ties only.
        candidates: one text each, with ids of their own.

    Returns:
        One tuple a query; a shorter one if there are fewer candidates, or if features are not numbers.
    """
    return rank_features(
        tower.encode([one.texts[0] for one in queries]),
        tower.encode([one.texts[0] for one in candidates]),
        [_right_ids(one) for one in queries],
        [one.id for one in candidates],
        depth,
    )


def rank_features(
    query_QD: np.ndarray,
    candidate_MD: np.ndarray,
    right_ids: Sequence[frozenset[str]],
    candidate_ids: Sequence[str],
    depth: int = DEPTH,
) -> list[tuple[str, ...]]:
    """As `rank`, of features that are there: float32, of any length but zero."""
    if not candidate_ids:
        return [()] * len(right_ids)
    # Deep enough that `depth` wrong candidates are seen even if all right ones stand before them.
    most_right = max(map(len, right_ids), default=0)
    scores, indices = search(_unit(query_QD), _unit(candidate_MD), depth + most_right)
    ranked = []
    for score_K, index_K, right in zip(scores, indices, right_ids, strict=True):
        found = [
            (float(s), candidate_ids[i]) for s, i in zip(score_K, index_K, strict=True) if i >= 0
        ]
        # The sort is stable; a right candidate stands behind all wrong ones of its score.
        found.sort(key=lambda one: -one[0] + (TIE if one[1] in right else 0))
        ranked.append(tuple(name for _, name in found[:depth]))
    return ranked


def _right_ids(query: Example) -> frozenset[str]:
    assert isinstance(query.target, tuple), query.id
    return frozenset(one for one in query.target if isinstance(one, str))


def _unit(feature_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return (feature_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)
