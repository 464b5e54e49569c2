"""Alignment between languages: does a caption find the caption of the same image in another language?

alignment/<set>/<a>-<b> or mean/bitext@1                  query in language a, pool of captions in b; cosine
alignment/<set>/<a>-<b> or mean/bitext_csls@1             the same by CSLS, which discounts hubs
alignment/<set>/<a>-<b> or mean/translation_gap           cosine of translations minus that of other captions
alignment/<set>/<a>-<b> or mean/translation_gap_centred   the same after each language's mean is subtracted
alignment/<set>/<a>-<b> or mean/cka                       linear centred kernel alignment

`mean` is over all ordered pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.evaluation.bitext import (
    NEIGHBOURS,
    Direction,
    Relevance,
    both_directions,
    number,
    on_device,
)
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.results.aggregates import merge_with_means
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results

T = TypeVar("T")
AT_THE_MEAN = 1e-4  # vectors that differ from their mean by less differ by rounding

# Recorded in results and compared between them: another wording makes older results incomparable.
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
    """The N captions in languages a and b of the images that have both; both directions."""

    a: str
    b: str
    image_N: np.ndarray
    directions: tuple[Direction, Direction]


def measure_alignment(embedded: EmbeddedSet, results: Results) -> None:
    """Add the five measures of every ordered pair of languages that share two images. A collective."""
    results.protocol[f"alignment/{embedded.name}"] = {"how": PROTOCOL}
    parts = for_each_pair(embedded, lambda pair: _measure_pair(pair, embedded.name))
    merge_with_means(results, parts)


def for_each_pair(embedded: EmbeddedSet, measure: Callable[[Pair], T]) -> list[T]:
    """What `measure` returns for each two languages that share at least two images. A collective.

    Each two languages are measured once, on one rank.
    """
    first = embedded.first_captions()
    languages = embedded.languages
    caption_of = {lang: first[embedded.language_M[first] == lang] for lang in languages}
    # Equal texts have one label: a query that finds the same words has found the translation.
    _, label_M = number(embedded.texts)

    def of_language(a: str) -> list[T]:
        outcomes = []
        i = languages.index(a)
        # Half of the other languages, so that every two meet once and all languages have equal work.
        for b in (b for j, b in enumerate(languages) if j != i and (j > i) == bool((j - i) % 2)):
            image_a, image_b = (embedded.picture_M[caption_of[lang]] for lang in (a, b))
            both, row_a, row_b = np.intersect1d(image_a, image_b, True, return_indices=True)
            if len(both) >= 2:
                rows = caption_of[a][row_a], caption_of[b][row_b]
                a_ND, b_ND = (on_device(embedded.text_MD[one]) for one in rows)
                right_in_a, right_in_b = (Relevance.of_labels(label_M[one]) for one in rows)
                directions = both_directions(a_ND, b_ND, right_in_b, right_in_a)
                outcomes.append(measure(Pair(a, b, both, directions)))
        return outcomes

    parts = map_over_ranks(embedded.captions, of_language)
    return [outcome for part in parts.values() for outcome in part]


def _measure_pair(pair: Pair, subject: str) -> Results:
    results = Results(suite="", model={})
    there, back = pair.directions
    a_ND, b_ND = there.query_QD, back.query_QD
    centred = centre(a_ND), centre(b_ND)
    # Languages that look far apart may be merely offset, which the centred gap shows, or rotated, which does
    # not change CKA.
    scaled = (F.normalize(one, eps=AT_THE_MEAN) for one in centred)
    # Value and chance level of the measures that are the same in both directions. Were the captions paired
    # at random, translations would be as near as the others: a gap of 0.
    without_direction = {
        "translation_gap": (translation_gap(a_ND, b_ND), 0.0),
        "translation_gap_centred": (translation_gap(*scaled), 0.0),
        "cka": linear_cka(*centred),
    }
    for a, b, direction, other in ((pair.a, pair.b, there, back), (pair.b, pair.a, back, there)):
        named = partial(MetricName, "alignment", subject, f"{a}-{b}", ())
        hits = {"bitext@1": direction.hits(), "bitext_csls@1": direction.csls_hits(other)}
        for metric, hits_N in hits.items():
            results.add(named(metric), hits_N, chance=direction.chance, ids=pair.image_N)
        for metric, (value, chance) in without_direction.items():
            results.add(named(metric), value, len(pair.image_N), chance)
    return results


def centre(rows_ND: Tensor) -> Tensor:
    """The rows less their mean."""
    # A mean in float64: equal rows become exactly zero.
    return (rows_ND.double() - rows_ND.mean(0, dtype=torch.float64)).to(rows_ND.dtype)


def translation_gap(a_ND: Tensor, b_ND: Tensor) -> float:
    """Mean of a_i * b_i less the mean of a_i * b_j over all i != j; N > 1."""
    n = len(a_ND)
    same = float((a_ND * b_ND).sum(dtype=torch.float64))
    # Exact without the N x N products: all pairs add up to the product of the two sums.
    every = float(a_ND.sum(0, dtype=torch.float64) @ b_ND.sum(0, dtype=torch.float64))
    return same / n - (every - same) / (n * (n - 1))


def linear_cka(a_ND: Tensor, b_ND: Tensor) -> tuple[float, float]:
    """Linear CKA of centred rows (Kornblith et al. 2019, arXiv 1905.00414), and its chance level.

    |A'B|^2 / (|A'A| |B'B|) in Frobenius norms. Both are 0 where one language is a single point.
    """
    spread_a, spread_b = (float(one.square().sum(dtype=torch.float64)) for one in (a_ND, b_ND))
    if min(spread_a, spread_b) <= len(a_ND) * AT_THE_MEAN**2:
        return 0.0, 0.0
    n, d = a_ND.shape
    # |A'A| = |AA'|: the smaller of the two is computed.
    grams = (one @ one.T if n < d else one.T @ one for one in (a_ND, b_ND))
    own_a, own_b = (float(gram.square().sum(dtype=torch.float64).sqrt()) for gram in grams)
    # Chance is the mean over all ways to pair the rows: a random permutation P of N centred rows leaves
    # E[tr(AA' P BB' P')] = tr(AA') tr(BB') / (N - 1).
    across = float((a_ND.T @ b_ND).square().sum(dtype=torch.float64))
    return across / (own_a * own_b), spread_a * spread_b / ((n - 1) * (own_a * own_b))
