"""Language codes (BCP-47) and how often each language is drawn."""

import re
from collections.abc import Mapping

import numpy as np

from mmalign.core.errors import UserError

# The shape of a tag in RFC 5646; whether the registry lists it is not our business: low-resource data
# bring codes of their own.
_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


def is_language_code(code: str) -> bool:
    """Whether `code` has the shape of a BCP-47 tag, for example `sw`, `pt-BR`, `lgg-x-official`."""
    return _TAG.fullmatch(code) is not None


def caption_weights(counts: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The weight of one caption of each language under temperature sampling.

    Language l with n captions is to be drawn with probability proportional to n^(1/T) (Devlin et al. 2019,
    multilingual BERT's S = 1/T; Arivazhagan et al. 2019, arXiv 1907.05019), so one of its captions weighs
    n^(1/T - 1). T = 1 draws captions as they come, a large T draws the languages alike.
    """
    return {lang: n ** (1 / temperature - 1) for lang, n in counts.items()}


Bound = float | Mapping[str, float]
"""A share: of every language, or of each that is named."""


def bounded_shares(
    shares: Mapping[str, float], floor: Bound | None, cap: Bound | None
) -> dict[str, float]:
    """Shares brought between floors and caps; those that touch neither keep their proportions.

    The result is clip(c * share, floor, cap) for the one factor c with which it sums to 1. That sum grows
    with c along straight lines between the places where a share meets a bound, so c is found exactly.

    Args:
        shares: positive, summing to 1.
        floor, cap: a language that a mapping does not name has none.

    Raises:
        UserError: no shares lie between the bounds, or one is of a language that is not there.
    """
    low_L = _bounds(floor, shares, 0.0, "language_floor")
    high_L = _bounds(cap, shares, 1.0, "language_cap")
    if low_L.sum() > 1 + 1e-9:
        raise UserError(
            f"data.language_floor: the floors of {len(shares)} languages add up to {low_L.sum():.3g}, more "
            "than all captions; together they may be 1 at most"
        )
    if high_L.sum() < 1 - 1e-9:
        raise UserError(
            f"data.language_cap: the caps of {len(shares)} languages add up to {high_L.sum():.3g}, less "
            "than all captions; together they must be 1 at least"
        )
    share_L = np.array(list(shares.values()))
    corner_K = np.unique(np.concatenate([low_L / share_L, high_L / share_L]))
    sum_K = np.clip(corner_K[:, None] * share_L, low_L, high_L).sum(1)
    # Straight between the two corners around 1, where the sum is not flat.
    factor = np.interp(1.0, sum_K, corner_K)
    bounded_L = np.clip(factor * share_L, low_L, high_L)
    return dict(zip(shares, bounded_L.tolist(), strict=True))


def _bounds(
    bound: Bound | None, shares: Mapping[str, float], none: float, field: str
) -> np.ndarray:
    """(languages,) float64, in the order of `shares`."""
    if not isinstance(bound, Mapping):
        return np.full(len(shares), none if bound is None else bound)
    unknown = sorted(bound.keys() - shares.keys())
    if unknown:
        raise UserError(
            f"data.{field}: `{unknown[0]}` is not among the languages that are trained on: "
            f"{', '.join(sorted(shares))}"
        )
    return np.array([bound.get(lang, none) for lang in shares])
