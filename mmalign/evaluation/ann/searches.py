"""What a FAISS benchmark searches, and how the lists that an index returns are judged.

    text_to_image: sampled captions of the test set -> images of the set and of the pool
    image_to_text: sampled images of the test set   -> captions of the set and of the pool

Images are never searched with images: those are closer to each other than to texts, and an index finds them
more easily.

Recall is safe against ties, as in ann-benchmarks (erikbern/ann-benchmarks, `plotting/metrics.py`): an item
counts if it is as near as the k-th nearest, whichever of several equal ones was returned. Nearness is the
inner product of the float32 vectors, computed again from the ids, so that the rounding of a compressed index
does not count as truth.

Shapes: Q queries, M items, D width, K length of a list, S queries that numpy checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core.errors import UserError
from mmalign.evaluation.embed import check_languages
from mmalign.evaluation.embedding_cache import CachedSet
from mmalign.evaluation.nearest import TIE, chance_at, search, wrong_before

TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"
Lists = dict[int, tuple[np.ndarray, np.ndarray]]  # k -> scores and ids, (Q, k) each
ALL = slice(None)
_QUERIES_AT_ONCE = 256
_UNIT = 1e-3  # how far a length may be from 1: room for models that compute in 16 bits
_DISAGREE = 1e-5  # two exact searches of one space are never this far apart


@dataclass(frozen=True)
class Search:
    """Q queries and the M vectors that they search; float32, unit length."""

    direction: str
    query_QD: np.ndarray
    pool_MD: np.ndarray
    query_label_Q: np.ndarray  # int64, the image that a query is or describes
    pool_label_M: np.ndarray  # alike; -1 in the pool's part, which is never right
    query_language_Q: np.ndarray  # of captions; empty of images
    pool_language_M: np.ndarray

    @property
    def languages(self) -> list[str]:
        """The languages of the captions that search, or of the right answers."""
        if self.direction == TEXT_TO_IMAGE:
            return sorted(set(self.query_language_Q.tolist()))
        return sorted(set(self.pool_language_M[self.pool_label_M >= 0].tolist()))

    def queries_of(self, lang: str) -> np.ndarray:
        """Numbers of the queries of a language: captions in it, or images that have such captions."""
        if self.direction == TEXT_TO_IMAGE:
            return np.flatnonzero(self.query_language_Q == lang)
        described = self.pool_label_M[self.pool_language_M == lang]
        return np.flatnonzero(np.isin(self.query_label_Q, described))

    def chance(self, lang: str, ks: Sequence[int]) -> dict[int, float]:
        """For each k the task recall of a random order."""
        counted_M = self.pool_label_M
        if self.direction == IMAGE_TO_TEXT:
            counted_M = counted_M[self.pool_language_M == lang]
        labels, counts = np.unique(counted_M[counted_M >= 0], return_counts=True)
        asked = self.query_label_Q[self.queries_of(lang)]
        relevant_Q = counts[np.searchsorted(labels, asked)]
        return {k: chance_at(relevant_Q, len(counted_M), k) for k in ks}

    def task_hits(
        self, scores_QK: np.ndarray, ids_QK: np.ndarray, lang: str, ks: Sequence[int]
    ) -> dict[int, np.ndarray]:
        """For each k, 0 or 1 for each query of a language: the right item is among the first k found.

        Of captions that are found only those in `lang` are counted, right or wrong, as far down as the list
        goes.
        """
        chosen = self.queries_of(lang)
        scores, ids = scores_QK[chosen], ids_QK[chosen]
        counted = ids >= 0
        if self.direction == IMAGE_TO_TEXT:
            counted &= self.pool_language_M[ids] == lang
        right = counted & (self.pool_label_M[ids] == self.query_label_Q[chosen][:, None])
        wrong, _ = wrong_before(np.where(counted, scores, -np.inf), right)
        return {k: (wrong < k).astype(np.float64) for k in ks}


def make_searches(
    test: CachedSet,
    pool: Sequence[CachedSet],
    languages: Sequence[str] | None,
    queries: int,
    seed: int,
) -> list[Search]:
    """Both directions, with at most `queries` each; captions are drawn evenly from the languages.

    Raises:
        UserError: a language that the test set lacks.
    """
    check_languages(languages, set(test.embedded.languages), test.embedded.name)
    langs = list(languages or test.embedded.languages)
    own = test.embedded.with_captions(np.flatnonzero(np.isin(test.embedded.language_M, langs)))
    images, texts, text_langs = [own.image_PD], [own.text_MD], [own.language_M]
    known = test.picture_id_P
    for other in pool:
        one = other.embedded
        # Images that the test set holds as well would answer a query without being counted as right; those
        # of another folder of the pool would only make the search look larger.
        new_P = ~np.isin(other.picture_id_P, known)
        known = np.concatenate([known, other.picture_id_P])
        kept = new_P[one.picture_M] & np.isin(one.language_M, langs)
        images.append(one.image_PD[new_P])
        texts.append(one.text_MD[kept])
        text_langs.append(one.language_M[kept])
    image_MD, text_MD = np.concatenate(images), np.concatenate(texts)
    rng = np.random.default_rng(seed)
    # Captions before images: the order of the draws is part of the seed.
    asking = _draw_evenly(own.language_M, queries, rng)
    shown = np.sort(rng.permutation(np.unique(own.picture_M))[:queries])
    # Labels of the test set, and -1 up to the size of the pool.
    label_P, label_M = np.full(len(image_MD), -1), np.full(len(text_MD), -1)
    label_P[: len(own.image_PD)] = np.arange(len(own.image_PD))
    label_M[: len(own.picture_M)] = own.picture_M
    text_query = own.text_MD[asking], image_MD, own.picture_M[asking], label_P
    image_query = own.image_PD[shown], text_MD, shown, label_M
    return [
        Search(TEXT_TO_IMAGE, *text_query, own.language_M[asking], np.full(len(image_MD), "")),
        Search(IMAGE_TO_TEXT, *image_query, np.full(len(shown), ""), np.concatenate(text_langs)),
    ]


def _draw_evenly(language_M: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of at most `most` captions, equally many per language as far as it has them; sorted."""
    shuffled = rng.permutation(len(language_M))
    turn = np.empty(len(shuffled), np.int64)
    for lang in set(language_M.tolist()):
        mine = np.flatnonzero(language_M[shuffled] == lang)
        turn[mine] = np.arange(len(mine))
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:most]])


@dataclass(frozen=True)
class Truth:
    """What FAISS's exact search finds, and numpy's of some of the queries."""

    lists: Lists  # of the k nearest, nearest first
    threshold: dict[int, np.ndarray]  # k -> score (Q,) of the k-th nearest
    sample: np.ndarray  # numbers (S,) of the queries that numpy searched as well
    brute: dict[int, np.ndarray]  # k -> score (S,) of their k-th nearest by product and sort alone
    difference: float  # how far FAISS's thresholds and numpy's are apart at most


def find_truth(one: Search, ks: Sequence[int], checked: int, seed: int) -> Truth:
    """The exact search, and numpy's of `checked` queries drawn at random.

    Raises:
        UserError: vectors are not numbers, or not of unit length.
    """
    for vectors in (one.query_QD, one.pool_MD):
        if not (abs(np.linalg.norm(vectors, axis=1) - 1) < _UNIT).all():
            raise UserError(
                f"{one.direction}: vectors of the model are not numbers or not of unit length; check how "
                "it was trained"
            )
    scores_QK, ids_QK = search(one.query_QD, one.pool_MD, max(ks))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(one.query_QD))[:checked])
    brute_SM = -np.sort(-(one.query_QD[sample] @ one.pool_MD.T), axis=1)
    lists = {k: (scores_QK[:, :k], ids_QK[:, :k]) for k in ks}
    exact, brute = thresholds(scores_QK, ks), thresholds(brute_SM, ks)
    difference = float(max(abs(exact[k][sample] - brute[k]).max() for k in ks))
    assert difference <= _DISAGREE, f"FAISS and numpy differ by {difference}"
    return Truth(lists, exact, sample, brute, difference)


def thresholds(scores_QK: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """For each k the score (Q,) of the k-th nearest; of the last one where the pool is smaller."""
    return {k: scores_QK[:, min(k, scores_QK.shape[1]) - 1] for k in ks}


def near_share(
    one: Search, ids_QK: np.ndarray, threshold_Q: np.ndarray, chosen: np.ndarray | slice = ALL
) -> np.ndarray:
    """recall@K: the share (Q,) float64 of the K nearest that an index returned.

    Args:
        ids_QK: int64, what it returned at depth K to all queries; -1 where it found nothing.
        threshold_Q: score of the K-th nearest, of the chosen queries.
    """
    query_QD, pool_MD = one.query_QD[chosen], one.pool_MD
    once_QK = np.sort(ids_QK[chosen], axis=1)
    once_QK[:, 1:][once_QK[:, 1:] == once_QK[:, :-1]] = -1  # none is found twice
    score_QK = np.empty(once_QK.shape, np.float32)
    for start in range(0, len(once_QK), _QUERIES_AT_ONCE):  # of each query K vectors in full
        part = slice(start, start + _QUERIES_AT_ONCE)
        score_QK[part] = np.einsum("qd,qkd->qk", query_QD[part], pool_MD[once_QK[part]])
    near_QK = (once_QK >= 0) & (score_QK >= threshold_Q[:, None] - TIE)
    return near_QK.mean(1)
