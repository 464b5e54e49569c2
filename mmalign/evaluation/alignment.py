"""Alignment between languages: does a caption find the caption of the same image in another language?

alignment/<set>/<a>-<b> or mean/bitext@1                  query in language a, pool of captions in b; cosine
alignment/<set>/<a>-<b> or mean/bitext_csls@1             the same by CSLS, which discounts hubs
alignment/<set>/<a>-<b> or mean/translation_gap           cosine of translations minus that of other captions
alignment/<set>/<a>-<b> or mean/translation_gap_centred   the same after each language's mean is subtracted
alignment/<set>/<a>-<b> or mean/cka                       linear centred kernel alignment

    EmbeddedSet -> pairs of languages, shared by the ranks -> Pair -> both directions searched
                                                                   -> what has no direction, under both names

bitext@1 asks which caption is first, the gap asks for a distance, the centred gap whether languages that look
far apart are merely offset, and CKA whether they have the same shape, however rotated. `mean` is over all
ordered pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.evaluation.bitext import NEIGHBOURS, Direction, Relevance, both_directions, on_device
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.results.aggregates import add_mean
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results

T = TypeVar("T")
METRICS = ("bitext@1", "bitext_csls@1", "translation_gap", "translation_gap_centred", "cka")
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
    """The N captions in two languages of the images that have both.

    Attributes:
        a, b: the languages.
        image_N: int64, the images.
        a_ND, b_ND: float32, row i of both is of image i.
        label_a_N, label_b_N: int64, equal where texts are equal: whoever finds the same words has found the
            translation.
    """

    a: str
    b: str
    image_N: np.ndarray
    a_ND: Tensor
    b_ND: Tensor
    label_a_N: np.ndarray
    label_b_N: np.ndarray

    def directions(self) -> tuple[Direction, Direction]:
        """From a to b, and from b to a."""
        right_in_b, right_in_a = map(Relevance.of_labels, (self.label_b_N, self.label_a_N))
        return both_directions(self.a_ND, self.b_ND, right_in_b, right_in_a)


def measure_alignment(embedded: EmbeddedSet, results: Results) -> None:
    """Add the five measures of every ordered pair of languages that share at least two images.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    name = MetricName("alignment", embedded.name, MEAN, (), "")
    results.protocol[name.prefix] = PROTOCOL
    pairs = []
    for part in for_each_pair(embedded, lambda pair: _measure_pair(pair, embedded.name)):
        results.merge(part)
        pairs += [str(MetricName.parse(one).language) for one in part.metrics]
    for metric in METRICS if pairs else ():
        add_mean(results, replace(name, metric=metric), list(dict.fromkeys(pairs)))


def for_each_pair(embedded: EmbeddedSet, measure: Callable[[Pair], T]) -> list[T]:
    """What `measure` returns for each two languages that share at least two images, on every rank.

    Each two languages are measured once, on one rank. A collective, as `map_over_ranks`.
    """
    first = embedded.first_captions()
    caption_of = {lang: first[embedded.language_M[first] == lang] for lang in embedded.languages}
    label_of_text = {text: i for i, text in enumerate(dict.fromkeys(embedded.texts))}
    label_M = np.array([label_of_text[text] for text in embedded.texts], np.int64)

    def of_language(a: str) -> list[T]:
        outcomes = []
        for b in _partners(embedded.languages, a):
            image_a, image_b = (embedded.picture_M[caption_of[lang]] for lang in (a, b))
            both, row_a, row_b = np.intersect1d(image_a, image_b, True, return_indices=True)
            if len(both) >= 2:
                in_a, in_b = caption_of[a][row_a], caption_of[b][row_b]
                a_ND, b_ND = (on_device(embedded.text_MD[rows]) for rows in (in_a, in_b))
                outcomes.append(measure(Pair(a, b, both, a_ND, b_ND, label_M[in_a], label_M[in_b])))
        return outcomes

    parts = map_over_ranks(embedded.captions, of_language)
    return [outcome for part in parts.values() for outcome in part]


def _partners(languages: list[str], a: str) -> list[str]:
    """Half of the other languages, so that every two meet once and all languages have equal work."""
    i = languages.index(a)
    return [b for j, b in enumerate(languages) if j != i and (j > i) == bool((j - i) % 2)]


def _measure_pair(pair: Pair, subject: str) -> Results:
    """All measures of two languages, under both orders of their names."""
    results = Results(suite="", model={})
    there, back = pair.directions()
    without_direction = _measure_spaces(pair.a_ND, pair.b_ND)
    for language, direction, other in (
        (f"{pair.a}-{pair.b}", there, back),
        (f"{pair.b}-{pair.a}", back, there),
    ):
        for metric, hits in (
            ("bitext@1", direction.hits()),
            ("bitext_csls@1", direction.csls_hits(other)),
        ):
            name = MetricName("alignment", subject, language, (), metric)
            results.add(name, hits, chance=direction.chance, ids=pair.image_N)
        for metric, (value, chance) in without_direction.items():
            name = MetricName("alignment", subject, language, (), metric)
            results.add(name, value, count=len(pair.image_N), chance=chance)
    return results


def _measure_spaces(a_ND: Tensor, b_ND: Tensor) -> dict[str, tuple[float, float]]:
    """Value and chance level of the measures that are the same in both directions."""
    centred = centre(a_ND), centre(b_ND)
    scaled = (F.normalize(one, eps=AT_THE_MEAN) for one in centred)
    # Were the captions paired at random, translations would be as near as the others: a gap of 0.
    return {
        "translation_gap": (translation_gap(a_ND, b_ND), 0.0),
        "translation_gap_centred": (translation_gap(*scaled), 0.0),
        "cka": linear_cka(*centred),
    }


def centre(rows_ND: Tensor) -> Tensor:
    """The rows less their mean, which is computed in float64: equal rows become zero."""
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
    if min(spread_a, spread_b) <= len(a_ND) * AT_THE_MEAN**2:
        return 0.0, 0.0
    own = _gram_norm(a_ND) * _gram_norm(b_ND)
    across = float((a_ND.T @ b_ND).square().sum(dtype=torch.float64))
    return across / own, spread_a * spread_b / ((len(a_ND) - 1) * own)


def _gram_norm(rows_ND: Tensor) -> float:
    """|A'A| = |AA'|, from the smaller of the two."""
    n, d = rows_ND.shape
    gram = rows_ND @ rows_ND.T if n < d else rows_ND.T @ rows_ND
    return float(gram.square().sum(dtype=torch.float64).sqrt())
