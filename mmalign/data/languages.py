"""Language codes (BCP-47) and how often each language is drawn."""

import re
from collections.abc import Mapping

import numpy as np

from mmalign.errors import UserError

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


def bounded_shares(
    shares: Mapping[str, float], floor: float | None, cap: float | None
) -> dict[str, float]:
    """Shares brought between a floor and a cap; those that touch neither keep their proportions.

    The result is clip(c * share, floor, cap) for the one factor c with which it sums to 1. That sum grows
    with c along straight lines between the places where a share meets a bound, so c is found exactly.

    Args:
        shares: positive, summing to 1.

    Raises:
        UserError: no shares lie between the two bounds.
    """
    low, high, count = floor or 0.0, cap or 1.0, len(shares)
    if low * count > 1 + 1e-9:
        raise UserError(
            f"data.language_floor: {count} languages with {low:g} each are more than all captions; give at "
            f"most {1 / count:.3g}"
        )
    if high * count < 1 - 1e-9:
        raise UserError(
            f"data.language_cap: {count} languages with {high:g} each are less than all captions; give at "
            f"least {1 / count:.3g}"
        )
    share_L = np.array(list(shares.values()))
    corner_K = np.unique(np.concatenate([low / share_L, high / share_L]))
    sum_K = np.clip(corner_K[:, None] * share_L, low, high).sum(1)
    # Straight between the two corners around 1, where the sum is not flat.
    factor = np.interp(1.0, sum_K, corner_K)
    bounded_L = np.clip(factor * share_L, low, high)
    return dict(zip(shares, bounded_L.tolist(), strict=True))
