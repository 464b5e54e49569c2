"""What a FAISS benchmark searches: real texts among pictures, real pictures among texts.

    CachedSet of the test set -+-> text_to_image: sampled captions -> pictures of the set and of the pool
    CachedSets of the pool    -+-> image_to_text: sampled pictures -> captions of the set and of the pool

Pictures are never asked with pictures: those lie near their own kind, and an index finds them more easily
than it finds what a text asks for. The pool makes the search as large as a real one; its pictures that the
set holds as well are left out, because they would answer a query without being counted as right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core.errors import UserError
from mmalign.evaluation.embedding_cache import CachedSet

TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"


@dataclass(frozen=True)
class Search:
    """Q queries and the M vectors that they search.

    Attributes:
        query_QD, pool_MD: float32, unit length.
        query_label_Q: int64, the picture that a query is or describes.
        pool_label_M: int64, alike; -1 in the pool's part, which is never right.
        query_language_Q: of captions that ask; `` where pictures do.
        pool_language_M: of captions that are searched; `` where pictures are.
    """

    direction: str
    query_QD: np.ndarray
    pool_MD: np.ndarray
    query_label_Q: np.ndarray
    pool_label_M: np.ndarray
    query_language_Q: np.ndarray
    pool_language_M: np.ndarray

    @property
    def languages(self) -> list[str]:
        """Those that ask, or those of the right answers."""
        if self.direction == TEXT_TO_IMAGE:
            return sorted(set(self.query_language_Q.tolist()))
        return sorted(set(self.pool_language_M[self.pool_label_M >= 0].tolist()))


def make_searches(
    test: CachedSet,
    pool: Sequence[CachedSet],
    languages: Sequence[str] | None,
    queries: int,
    seed: int,
) -> list[Search]:
    """Both directions.

    Args:
        languages: captions in these only; none: all of the test set.
        queries: at most so many in each direction; captions are drawn evenly from the languages.

    Raises:
        UserError: a language that the test set lacks.
    """
    embedded = test.embedded
    lacking = sorted(set(languages or ()) - set(embedded.languages))
    if lacking:
        raise UserError(
            f"set `{embedded.name}`: language `{lacking[0]}` is not in it; it has "
            f"{', '.join(embedded.languages)}"
        )
    chosen = np.isin(embedded.language_M, list(languages or embedded.languages))
    text_N = np.flatnonzero(chosen)
    others = [_beside(test, one, languages or embedded.languages) for one in pool]
    rng = np.random.default_rng(seed)
    asking = _draw_evenly(embedded.language_M, text_N, queries, rng)
    described = np.unique(embedded.picture_M[text_N])
    shown = np.sort(rng.permutation(described)[:queries])
    images = [embedded.image_PD, *(image for image, _, _ in others)]
    texts = [embedded.text_MD[text_N], *(text for _, text, _ in others)]
    text_languages = [embedded.language_M[text_N], *(language for _, _, language in others)]
    image_MD, text_MD = np.concatenate(images), np.concatenate(texts)
    return [
        Search(
            TEXT_TO_IMAGE,
            embedded.text_MD[asking],
            image_MD,
            embedded.picture_M[asking],
            _labels(np.arange(len(images[0])), len(image_MD)),
            embedded.language_M[asking],
            np.full(len(image_MD), ""),
        ),
        Search(
            IMAGE_TO_TEXT,
            embedded.image_PD[shown],
            text_MD,
            shown,
            _labels(embedded.picture_M[text_N], len(text_MD)),
            np.full(len(shown), ""),
            np.concatenate(text_languages),
        ),
    ]


def _beside(
    test: CachedSet, one: CachedSet, languages: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures that the test set lacks, their captions in the languages, and the captions' languages."""
    new_P = ~np.isin(one.picture_id_P, test.picture_id_P)
    embedded = one.embedded
    kept = new_P[embedded.picture_M] & np.isin(embedded.language_M, list(languages))
    return embedded.image_PD[new_P], embedded.text_MD[kept], embedded.language_M[kept]


def _draw_evenly(
    language_M: np.ndarray, candidates: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """At most `most` of the candidates, equally many a language as far as it has them; sorted."""
    shuffled = rng.permutation(candidates)
    turn = np.empty(len(shuffled), np.int64)
    for lang in set(language_M[shuffled].tolist()):
        mine = np.flatnonzero(language_M[shuffled] == lang)
        turn[mine] = np.arange(len(mine))
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:most]])


def _labels(of_set: np.ndarray, length: int) -> np.ndarray:
    labels = np.full(length, -1, np.int64)
    labels[: len(of_set)] = of_set
    return labels
