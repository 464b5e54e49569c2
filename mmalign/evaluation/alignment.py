"""Alignment between languages: does a caption find the caption of the same picture in another language?

alignment/<set>/<a>-<b> or mean/bitext@1                  query in language a, pool of captions in b; cosine
alignment/<set>/<a>-<b> or mean/bitext_csls@1             the same by CSLS, which discounts hubs
alignment/<set>/<a>-<b> or mean/translation_gap           cosine of translations over that of other captions
alignment/<set>/<a>-<b> or mean/translation_gap_centred   the same after each language's mean is taken away
alignment/<set>/<a>-<b> or mean/cka                       linear centred kernel alignment

    EmbeddedSet -> pairs of languages, dealt out over the ranks -> Scores of a pair -> both directions
                                                                -> what has no direction, named both ways

bitext@1 asks for the first place, the gap for a distance, the centred gap whether languages that look far
apart are merely offset, and CKA whether they have the same shape, however turned. `mean` is over all ordered
pairs. The other modules about languages share `for_each_pair`, `Scores` and `first_is_right`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.nearest import TIE, chance_at
from mmalign.evaluation.retrieval import add_mean, for_each_language
from mmalign.results.results import Results

T = TypeVar("T")
METRICS = ("bitext@1", "bitext_csls@1", "translation_gap", "translation_gap_centred", "cka")
NEIGHBOURS = 10  # of CSLS, as in its paper

_AT_THE_MEAN = 1e-4  # vectors that differ from their mean by less differ by rounding
_KEPT = 2**25  # scores of a pair that are kept at a time: 128 MiB
_BLOCK = 2**21  # scores that are looked at in one go: 8 MiB

PROTOCOL = (
    "the pictures with captions in both languages, the first caption of each. bitext@1: a caption in the "
    "first language searches those of the second by inner product; the caption of the same picture, or an "
    "equal text, must come first; equal scores of other captions count against the model. bitext_csls@1: "
    f"the same by CSLS with k = {NEIGHBOURS} (arXiv 1710.04087). translation_gap: mean cosine of captions of "
    "the same picture less that of all captions of different pictures; translation_gap_centred: the same "
    "after taking away each language's mean vector and scaling to length 1. cka: linear centred kernel "
    "alignment (arXiv 1905.00414); its chance level is the exact mean over random pairings of the same "
    "captions, which is high where captions are few. `mean` averages the ordered pairs"
)


@dataclass(frozen=True)
class Pair:
    """The N captions in two languages of the pictures that have both.

    Attributes:
        a, b: the languages.
        picture_N: int64, the pictures.
        a_ND, b_ND: float32, row i of both is of picture i.
        label_a_N, label_b_N: int64, equal where texts are equal.
    """

    a: str
    b: str
    picture_N: np.ndarray
    a_ND: Tensor
    b_ND: Tensor
    label_a_N: np.ndarray
    label_b_N: np.ndarray


@dataclass(frozen=True)
class Relevance:
    """Which items of a pool answer each of Q queries: for query q, `count_Q[q]` entries of `item_R` from
    `start_Q[q]` on. Queries may share entries. All int64."""

    item_R: np.ndarray
    start_Q: np.ndarray
    count_Q: np.ndarray

    def of(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Query (counted from `first`) and item of every right answer to queries `first` ... `last - 1`."""
        count = self.count_Q[first:last]
        before = np.cumsum(count) - count
        place = np.arange(count.sum()) + np.repeat(self.start_Q[first:last] - before, count)
        return np.repeat(np.arange(len(count)), count), self.item_R[place]

    @classmethod
    def of_pairs(cls, query_R: np.ndarray, item_R: np.ndarray) -> "Relevance":
        """From all pairs of a query and a right item; every query has one."""
        count_Q = np.bincount(query_R)
        order_R = np.argsort(query_R, kind="stable")
        return cls(item_R[order_R], np.cumsum(count_Q) - count_Q, count_Q)


@dataclass(frozen=True)
class Scores:
    """Inner products of Q queries and M items in blocks of rows.

    Attributes:
        kept_QM: all of them, where they are few; otherwise each pass computes them again, so that memory
            stays bounded.
    """

    query_QD: Tensor
    pool_MD: Tensor
    kept_QM: Tensor | None

    @classmethod
    def between(cls, query_QD: Tensor, pool_MD: Tensor) -> "Scores":
        few = len(query_QD) * len(pool_MD) <= _KEPT
        return cls(query_QD, pool_MD, query_QD @ pool_MD.T if few else None)

    def transposed(self) -> "Scores":
        """The pool's items as queries."""
        kept_MQ = None if self.kept_QM is None else self.kept_QM.T.contiguous()
        return Scores(self.pool_MD, self.query_QD, kept_MQ)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The first query of each block and the block, (queries, M); not to be changed."""
        rows = max(1, _BLOCK // len(self.pool_MD))
        for start in range(0, len(self.query_QD), rows):
            if self.kept_QM is None:
                yield start, self.query_QD[start : start + rows] @ self.pool_MD.T
            else:
                yield start, self.kept_QM[start : start + rows]


def measure_alignment(embedded: EmbeddedSet, results: Results) -> None:
    """Add the five measures of every ordered pair of languages that share at least two pictures.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    prefix = f"alignment/{embedded.name}"
    results.protocol[prefix] = PROTOCOL
    parts = for_each_pair(embedded, lambda pair: _measure_pair(pair, prefix))
    for part in parts:
        results.merge(part)
    for metric in METRICS if parts else ():
        pairs = [name.split("/")[2] for part in parts for name in part.metrics]
        add_mean(results, prefix, metric, list(dict.fromkeys(pairs)))


def for_each_pair(embedded: EmbeddedSet, measure: Callable[[Pair], T]) -> list[T]:
    """What `measure` says of each two languages that share at least two pictures, on every rank.

    Each two languages are measured once, on one rank. A collective, as `for_each_language`.
    """
    first = {lang: first_captions(embedded, lang) for lang in embedded.languages}
    # Equal texts are one label: whoever finds the same words has found the translation.
    label_of_text = {text: i for i, text in enumerate(dict.fromkeys(embedded.texts))}
    label_M = np.array([label_of_text[text] for text in embedded.texts], np.int64)

    def of_language(a: str) -> list[T]:
        shared = ((b, sorted(first[a].keys() & first[b].keys())) for b in _partners(first, a))
        return [
            measure(_pair(embedded, label_M, first, (a, b), pictures))
            for b, pictures in shared
            if len(pictures) >= 2
        ]

    return [outcome for part in for_each_language(embedded, of_language) for outcome in part]


def _partners(languages: dict[str, dict[int, int]], a: str) -> list[str]:
    """Half of the other languages, so that every two meet once and all languages have equal work."""
    place = list(languages).index(a)
    return [
        b for i, b in enumerate(languages) if i != place and (i > place) == bool((i - place) % 2)
    ]


def _pair(
    embedded: EmbeddedSet,
    label_M: np.ndarray,
    first: dict[str, dict[int, int]],
    languages: tuple[str, str],
    pictures: list[int],
) -> Pair:
    a, b = languages
    place_a, place_b = (np.array([first[lang][one] for one in pictures]) for lang in languages)
    # A vector that is no vector is as good as none: it ties with everything.
    a_ND, b_ND = (
        torch.from_numpy(embedded.text_MD[place]).to(distributed.device()).nan_to_num(0.0, 0.0, 0.0)
        for place in (place_a, place_b)
    )
    return Pair(a, b, np.array(pictures), a_ND, b_ND, label_M[place_a], label_M[place_b])


def first_captions(embedded: EmbeddedSet, lang: str) -> dict[int, int]:
    """Picture -> place of its first caption in the language."""
    places = np.flatnonzero(embedded.language_M == lang).tolist()
    return {int(embedded.picture_M[place]): place for place in reversed(places)}


def _measure_pair(pair: Pair, prefix: str) -> Results:
    """All measures of two languages, under both orders of their names."""
    results = Results(suite="", model={})
    there = Scores.between(pair.a_ND, pair.b_ND)
    back = there.transposed()
    nearest_a_N, nearest_b_N = mean_of_nearest(there), mean_of_nearest(back)
    without_direction = _measure_spaces(pair.a_ND, pair.b_ND)
    for name, scores, label_N, nearest_N in (
        (f"{pair.a}-{pair.b}", there, pair.label_b_N, nearest_b_N),
        (f"{pair.b}-{pair.a}", back, pair.label_a_N, nearest_a_N),
    ):
        right = equal_labels(label_N)
        chance = chance_at(right.count_Q, len(label_N), 1)
        # CSLS is 2 cos(x, y) - r(x) - r(y); what is the same for all items of a query decides nothing.
        for metric, less_N in (("bitext@1", None), ("bitext_csls@1", nearest_N / 2)):
            hits = hits_at_1(scores, right, less_N)
            results.add(f"{prefix}/{name}/{metric}", hits, chance=chance, ids=pair.picture_N)
        for metric, (value, by_chance) in without_direction.items():
            results.add(f"{prefix}/{name}/{metric}", value, count=len(label_N), chance=by_chance)
    return results


def equal_labels(label_N: np.ndarray) -> Relevance:
    """Item j answers query i if their labels are equal."""
    _, group_N, copies = np.unique(label_N, return_inverse=True, return_counts=True)
    start = np.cumsum(copies) - copies
    return Relevance(np.argsort(label_N, kind="stable"), start[group_N], copies[group_N])


def mean_of_nearest(scores: Scores) -> Tensor:
    """(Q,) float32, the mean score of each query with the nearest of the pool, `NEIGHBOURS` of them.

    r(x) of cross-domain similarity local scaling (CSLS; Conneau et al. 2018, arXiv 1710.04087).
    """
    k = min(NEIGHBOURS, len(scores.pool_MD))
    return torch.cat([block.topk(k, dim=1).values.mean(1) for _, block in scores.blocks()])


def hits_at_1(scores: Scores, right: Relevance, less_M: Tensor | None = None) -> np.ndarray:
    """Whether a right item scores higher than all wrong ones; a tie counts against the model.

    Args:
        less_M: what to take away from the score of each item of the pool.

    Returns:
        (Q,) float64 of 0 and 1.
    """
    hits = []
    for start, block in scores.blocks():
        block = block.clone() if less_M is None else block - less_M
        found = [torch.from_numpy(one) for one in right.of(start, start + len(block))]
        query, item = (one.to(block.device) for one in found)
        nothing = block.new_full((len(block),), -torch.inf)
        best_right = nothing.scatter_reduce(0, query, block[query, item], "amax")
        block[query, item] = -torch.inf
        hits.append(best_right - block.amax(1) > TIE)
    return torch.cat(hits).cpu().numpy().astype(np.float64)


def _measure_spaces(a_ND: Tensor, b_ND: Tensor) -> dict[str, tuple[float, float]]:
    """Value and chance level of what is the same in both directions."""
    centred = centre(a_ND), centre(b_ND)
    scaled = (F.normalize(one, eps=_AT_THE_MEAN) for one in centred)
    # Were the captions paired at random, translations would be as near as the others: a gap of 0.
    return {
        "translation_gap": (translation_gap(a_ND, b_ND), 0.0),
        "translation_gap_centred": (translation_gap(*scaled), 0.0),
        "cka": linear_cka(*centred),
    }


def centre(rows_ND: Tensor) -> Tensor:
    """The rows less their mean, which is taken in float64: equal rows become zero."""
    return (rows_ND.double() - rows_ND.mean(0, dtype=torch.float64)).to(rows_ND.dtype)


def translation_gap(a_ND: Tensor, b_ND: Tensor) -> float:
    """Mean of a_i * b_i less the mean of a_i * b_j over all i != j; N > 1.

    Exact, without the N x N products: those of all pairs add up to the product of the two sums.
    """
    n = len(a_ND)
    same = float((a_ND * b_ND).sum(dtype=torch.float64))
    every = float(a_ND.sum(0, dtype=torch.float64) @ b_ND.sum(0, dtype=torch.float64))
    return same / n - (every - same) / (n * (n - 1))


def linear_cka(a_ND: Tensor, b_ND: Tensor) -> tuple[float, float]:
    """Linear CKA of centred rows (Kornblith et al. 2019, arXiv 1905.00414), and its chance level.

    With A and B of N rows, |A'B|^2 / (|A'A| |B'B|) in Frobenius norms. Chance is the mean over all ways to
    pair the rows: a random permutation P of N leaves E[tr(AA' P BB' P')] = tr(AA') tr(BB') / (N - 1), because
    the rows are centred. Both are 0 where one language is a single point.
    """
    spread_a, spread_b = (float(one.square().sum(dtype=torch.float64)) for one in (a_ND, b_ND))
    if min(spread_a, spread_b) <= len(a_ND) * _AT_THE_MEAN**2:
        return 0.0, 0.0
    own = _gram_norm(a_ND) * _gram_norm(b_ND)
    across = float((a_ND.T @ b_ND).square().sum(dtype=torch.float64))
    return across / own, spread_a * spread_b / ((len(a_ND) - 1) * own)


def _gram_norm(rows_ND: Tensor) -> float:
    """|A'A| = |AA'|, from the smaller of the two."""
    n, d = rows_ND.shape
    gram = rows_ND @ rows_ND.T if n < d else rows_ND.T @ rows_ND
    return float(gram.square().sum(dtype=torch.float64).sqrt())
