"""The shape of the space: how captions of a language spread, and where they are relative to their images.

geometry/<set>/<lang> or mean/isotropy       1: captions spread alike in all D directions; 0: along one line
geometry/<set>/<lang> or mean/modality_gap   distance of the mean image from the mean caption, 0 to 2
geometry/<set>/<lang> or mean/alignment      mean squared distance of a caption to its image; less is better
geometry/<set>/<lang> or mean/uniformity     of captions on the sphere, 0: one point; less is better

None of them has a chance level, and none shows by itself that a model is good: a collapsed model is perfectly
aligned, and a random one is uniform.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmalign.evaluation.alignment import centre
from mmalign.evaluation.bitext import on_device
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.results.aggregates import merge_with_means
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results

FEWEST = 4  # captions, without which the spread cannot be estimated
MOST_FOR_UNIFORMITY = 10_000

_SEED = 0
_BLOCK = 2**22  # inner products at a time: 16 MiB
_ONE_POINT = 1e-8  # variance of vectors of unit length that differ by rounding only

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    f"all captions of a language, each with its picture; languages with fewer than {FEWEST} are left out. "
    "isotropy: IsoScore (arXiv 2108.07344) of the captions, with the squared covariance estimated "
    "without bias (Song et al. 2012, JMLR 13), so that the number of captions does not matter. modality_gap: "
    "distance between the mean picture and the mean caption (arXiv 2203.02053). alignment (alpha 2) and "
    "uniformity (t 2) as in arXiv 2005.10242: alignment over pairs of caption and picture, uniformity over "
    f"all pairs of captions, or of {MOST_FOR_UNIFORMITY:,} captions drawn at random (seed {_SEED}) where a "
    "language has more. `mean` averages the languages"
)


def measure_geometry(embedded: EmbeddedSet, results: Results) -> None:
    """Add the four measures of every language with enough captions, and their means. A collective."""
    results.protocol[f"geometry/{embedded.name}"] = {"how": PROTOCOL}
    parts = map_over_ranks(embedded.captions, lambda lang: _measure_language(embedded, lang))
    merge_with_means(results, parts.values())


def _measure_language(embedded: EmbeddedSet, lang: str) -> Results:
    results = Results(suite="", model={})
    mine = embedded.language_M == lang
    if mine.sum() < FEWEST:
        return results
    text_ND = on_device(embedded.text_MD[mine])
    image_ND = on_device(embedded.image_PD[embedded.picture_M[mine]])
    some_ND = text_ND
    if len(text_ND) > MOST_FOR_UNIFORMITY:
        # Always the same rows, for every model.
        rng = np.random.default_rng(_SEED)
        drawn = rng.choice(len(text_ND), MOST_FOR_UNIFORMITY, replace=False)
        some_ND = text_ND[torch.from_numpy(np.sort(drawn)).to(text_ND.device)]
    gap_D = text_ND.mean(0, dtype=torch.float64) - image_ND.mean(0, dtype=torch.float64)
    distance_N = (text_ND - image_ND).square().sum(1).double().cpu().numpy()
    named = partial(MetricName, "geometry", embedded.name, lang, ())
    results.add(named("isotropy"), isotropy(text_ND), count=len(text_ND))
    results.add(named("modality_gap"), float(gap_D.norm()), count=len(text_ND))
    results.add(named("alignment"), distance_N, ids=embedded.picture_M[mine])
    results.add(named("uniformity"), uniformity(some_ND), count=len(some_ND))
    return results


def isotropy(text_ND: Tensor) -> float:
    """IsoScore (arXiv 2108.07344) of N > 3 rows: 1 if they vary alike in all directions, 0 if in one only."""
    # It rotates to principal components and rescales, which equals (p - 1) / (D - 1) with the number of
    # directions in use, p = tr(C)^2 / tr(C^2) of the covariance C.
    n, d = text_ND.shape
    row_ND = centre(text_ND.double())
    length_N = row_ND.square().sum(1)
    total, squares = float(length_N.sum()), float(length_N.square().sum())
    if total <= n * _ONE_POINT:
        return 0.0
    # The smaller one: their norms are equal.
    gram = row_ND.T @ row_ND if d < n else row_ND @ row_ND.T
    # The plain estimate of tr(C^2) grows as N shrinks, which would let languages with few captions look flat;
    # this one has no bias (Song et al. 2012, JMLR 13, HSIC_1 of a linear kernel with itself).
    off_diagonal = float(gram.square().sum()) - squares * n / (n - 2)
    squared_covariance = (off_diagonal + total**2 / ((n - 1) * (n - 2))) / (n * (n - 3))
    # The estimate scatters around its true value, below what D directions allow too.
    in_use = (total / (n - 1)) ** 2 / max(squared_covariance, _ONE_POINT**2)
    return float(np.clip((in_use - 1) / (d - 1), 0, 1))


def uniformity(text_ND: Tensor) -> float:
    """log of the mean of exp(-2 |x - y|^2) over all pairs of N > 1 rows of unit length (arXiv 2005.10242)."""
    n = len(text_ND)
    rows = max(1, _BLOCK // n)
    # Of unit vectors |x - y|^2 = 2 - 2 x * y.
    total = sum(
        float((4 * (text_ND[start : start + rows] @ text_ND.T) - 4).exp().sum(dtype=torch.float64))
        for start in range(0, n, rows)
    )
    with_itself = float((4 * text_ND.square().sum(1) - 4).exp().sum(dtype=torch.float64))
    return float(np.log((total - with_itself) / (n * (n - 1))))
