"""Language codes (BCP-47): their shape, their names, and how often each language is drawn.

lgg-x-official -> "Lugbara, official"        ur -> "Urdu", "اردو"
captions of each language -> weight of one caption -> shares between floors and caps
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from langcodes import Language, standardize_tag
from langcodes.tag_parser import LanguageTagError

from mmalign.core.errors import UserError

# The shape of a tag in RFC 5646. The registry is not asked: low-resource data bring codes of their own.
_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")

# A share: of every language, or of each that is named.
Bound = float | Mapping[str, float]


def is_language_code(code: str) -> bool:
    """Whether `code` has the shape of a BCP-47 tag, for example `sw`, `pt-BR`, `lgg-x-official`."""
    return _TAG.fullmatch(code) is not None


@lru_cache(maxsize=4096)
def canonical_language(code: str) -> str:
    """The code as BCP 47 and CLDR write it: `iw` -> `he`, `zh_CN` -> `zh-CN`, `EN` -> `en`, `deu` -> `de`.

    What has not the shape of a code is returned as it is. Whoever reads codes compares the two and counts
    the changes.
    """
    # langcodes would also read an empty text, as `und`.
    if not is_language_code(code.replace("_", "-")):
        return code
    try:
        return standardize_tag(code)
    except LanguageTagError:
        return code


def respelled_in_words(respelled: Counter[str]) -> str:
    """How many captions of each code got the canonical one, as a line for the terminal."""
    codes = (
        f"`{code}` -> `{canonical_language(code)}`: {n}" for code, n in respelled.most_common()
    )
    return f"languages of captions, as BCP 47 writes them: {', '.join(codes)}"


@lru_cache(maxsize=4096)
def language_name(code: str) -> str:
    """The English name, followed by script, territory and private subtags: "Portuguese, Brazil"."""
    # The names are Unicode's (CLDR) or else IANA's. A code without one is its own name.
    language = _parse(code)
    if language is None:
        return code
    private = (language.private or "").removeprefix("x-").replace("-", " ")
    return ", ".join(part for part in (*language.describe().values(), private) if part)


@lru_cache(maxsize=4096)
def own_name(code: str) -> str | None:
    """The name in the language itself, None if it is not known or the same as in English."""
    language = _parse(code)
    own = language.autonym() if language else ""
    return None if not language or own.casefold() == language.language_name().casefold() else own


@lru_cache(maxsize=4096)
def likely_script(code: str) -> str | None:
    """The ISO 15924 code of the script that the language is usually written in, None if it is not known."""
    language = _parse(code)
    return language.maximize().script if language is not None and language.language else None


def labelled(code: str) -> str:
    """Name and code: "Swahili (sw)"; the code alone if it has no name."""
    name = language_name(code)
    return code if name == code else f"{name} ({code})"


def _parse(code: str) -> Language | None:
    """The parsed code, None if it is no code or its language is not known."""
    try:
        # Normalizing would replace some codes, such as `iw` or `sh`, by others.
        language = Language.get(code, normalize=False)
    except LanguageTagError:
        return None
    return None if language.language_name().startswith("Unknown language") else language


def caption_weights(counts: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The weight of one caption of each language under temperature sampling.

    Language l with n captions is drawn with probability proportional to n^(1/T) (Devlin et al. 2019,
    multilingual BERT's S = 1/T; Arivazhagan et al. 2019, arXiv 1907.05019), so one of its captions weighs
    n^(1/T - 1). T = 1 draws all captions alike, a large T draws all languages alike.
    """
    return {lang: n ** (1 / temperature - 1) for lang, n in counts.items()}


def bounded_shares(
    shares: Mapping[str, float], floor: Bound | None, cap: Bound | None
) -> dict[str, float]:
    """Shares brought between floors and caps; those that touch neither keep their proportions.

    The result is clip(c * share, floor, cap) for the one factor c with which it sums to 1. That sum is
    piecewise linear in c, with corners where a share meets a bound, so c is found exactly.

    Args:
        shares: positive, summing to 1.
        floor, cap: a language that a mapping does not name has none.

    Raises:
        UserError: no shares lie between the bounds, or a bound names a language that is not in `shares`.
    """
    low_L = _bounds(floor, shares, 0.0, "language_floor")
    high_L = _bounds(cap, shares, 1.0, "language_cap")
    # The bounds come from decimal numbers in a YAML file: 1e-9 is far above their rounding errors.
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
    # The sum is linear between the two corners around 1, and not flat there.
    factor = np.interp(1.0, sum_K, corner_K)
    bounded_L = np.clip(factor * share_L, low_L, high_L)
    return dict(zip(shares, bounded_L.tolist(), strict=True))


def _bounds(
    bound: Bound | None, shares: Mapping[str, float], none: float, field: str
) -> np.ndarray:
    """(languages,) float64, in the order of `shares`; `none` for a language that has no bound."""
    if not isinstance(bound, Mapping):
        return np.full(len(shares), none if bound is None else bound)
    unknown = sorted(bound.keys() - shares.keys())
    if unknown:
        raise UserError(
            f"data.{field}: `{unknown[0]}` is not among the languages that are trained on: "
            f"{', '.join(sorted(shares))}"
        )
    return np.array([bound.get(lang, none) for lang in shares])
