"""The shape of the space: how captions of a language spread, and how they lie to their pictures.

geometry/<set>/<lang> or mean/isotropy       1: captions spread alike in all D directions; 0: along one line
geometry/<set>/<lang> or mean/modality_gap   distance of the mean picture from the mean caption, 0 to 2
geometry/<set>/<lang> or mean/alignment      mean squared distance of a caption to its picture; less is better
geometry/<set>/<lang> or mean/uniformity     of captions on the sphere, 0: one point; less is better

    EmbeddedSet -> languages dealt out over the ranks -> captions of one, each with its picture -> Results

None of them has a chance level, and none says by itself that a model is good: a collapsed model is perfectly
aligned, and a random one is uniform.
"""

import numpy as np
import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.evaluation.alignment import centre
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.retrieval import for_each_language
from mmalign.results.results import Results

METRICS = ("isotropy", "modality_gap", "alignment", "uniformity")
FEWEST = 4  # captions, without which the spread cannot be estimated
MOST_FOR_UNIFORMITY = 10_000

_SEED = 0
_BLOCK = 2**22  # inner products at a time: 16 MiB
_ONE_POINT = 1e-8  # variance of vectors of unit length that differ by rounding only

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
    """Add the four measures of every language with enough captions, and their means.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    prefix = f"geometry/{embedded.name}"
    results.protocol[prefix] = PROTOCOL
    parts = for_each_language(embedded, lambda lang: _measure_language(embedded, lang))
    measured = [part for part in parts if part.metrics]
    for part in measured:
        results.merge(part)
    for metric in METRICS if measured else ():
        values = [
            value
            for part in measured
            for n, value in part.metrics.items()
            if n.endswith(f"/{metric}")
        ]
        counts = [
            count
            for part in measured
            for n, count in part.counts.items()
            if n.endswith(f"/{metric}")
        ]
        results.add(f"{prefix}/mean/{metric}", float(np.mean(values)), count=sum(counts))


def _measure_language(embedded: EmbeddedSet, lang: str) -> Results:
    results = Results(suite="", model={})
    mine = embedded.language_M == lang
    if mine.sum() < FEWEST:
        return results
    prefix = f"geometry/{embedded.name}/{lang}"
    text_ND = _rows(embedded.text_MD[mine])
    image_ND = _rows(embedded.image_PD[embedded.picture_M[mine]])
    distance_N = (text_ND - image_ND).square().sum(1)
    gap = text_ND.mean(0, dtype=torch.float64) - image_ND.mean(0, dtype=torch.float64)
    results.add(f"{prefix}/isotropy", isotropy(text_ND), count=len(text_ND))
    results.add(f"{prefix}/modality_gap", float(gap.norm()), count=len(text_ND))
    distances = distance_N.double().cpu().numpy()
    results.add(f"{prefix}/alignment", distances, ids=embedded.picture_M[mine])
    some_ND = _sample(text_ND)
    results.add(f"{prefix}/uniformity", uniformity(some_ND), count=len(some_ND))
    return results


def _rows(rows_ND: np.ndarray) -> Tensor:
    """On this rank's device; vectors that are not numbers become zero."""
    return torch.from_numpy(rows_ND).to(distributed.device()).nan_to_num(0.0, 0.0, 0.0)


def isotropy(text_ND: Tensor) -> float:
    """IsoScore of N > 3 rows: 1 if they vary alike in all D directions, 0 if in one only or not at all.

    IsoScore (Rudman et al. 2022, arXiv 2108.07344) rotates to principal components and rescales, which comes
    down to (p - 1) / (D - 1) with p = tr(C)^2 / tr(C^2) of the covariance C, the number of directions in use.
    The plain estimate of tr(C^2) grows as N shrinks, which would let languages with few captions look flat;
    this one has no bias (Song et al. 2012, JMLR 13, HSIC_1 of a linear kernel with itself).
    """
    n, d = text_ND.shape
    row_ND = centre(text_ND.double())
    length_N = row_ND.square().sum(1)
    total, squares = float(length_N.sum()), float(length_N.square().sum())
    if total <= n * _ONE_POINT:
        return 0.0
    gram = row_ND.T @ row_ND if d < n else row_ND @ row_ND.T
    off_diagonal = float(gram.square().sum()) - squares * n / (n - 2)
    squared_covariance = (off_diagonal + total**2 / ((n - 1) * (n - 2))) / (n * (n - 3))
    # The estimate scatters around its true value, below what D directions allow too.
    in_use = (total / (n - 1)) ** 2 / max(squared_covariance, _ONE_POINT**2)
    return float(np.clip((in_use - 1) / (d - 1), 0, 1))


def uniformity(text_ND: Tensor) -> float:
    """log of the mean of exp(-2 |x - y|^2) over all pairs of N > 1 rows of unit length.

    Wang and Isola 2020, arXiv 2005.10242, with t = 2; there |x - y|^2 = 2 - 2 x * y.
    """
    n = len(text_ND)
    rows = max(1, _BLOCK // n)
    total = sum(
        float((4 * (text_ND[start : start + rows] @ text_ND.T) - 4).exp().sum(dtype=torch.float64))
        for start in range(0, n, rows)
    )
    with_itself = float((4 * text_ND.square().sum(1) - 4).exp().sum(dtype=torch.float64))
    return float(np.log((total - with_itself) / (n * (n - 1))))


def _sample(text_ND: Tensor) -> Tensor:
    """At most MOST_FOR_UNIFORMITY rows, always the same ones."""
    if len(text_ND) <= MOST_FOR_UNIFORMITY:
        return text_ND
    drawn = np.random.default_rng(_SEED).choice(len(text_ND), MOST_FOR_UNIFORMITY, replace=False)
    return text_ND[torch.from_numpy(np.sort(drawn)).to(text_ND.device)]
