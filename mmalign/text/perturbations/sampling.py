"""What every perturbation draws with: levels of severity, places and random streams.

    severity 1 to 5 -> share of a text's parts -> places drawn at random -> the parts that change

The random stream of a text depends on (seed, draw, id of the example, number of the text) alone: no
example changes another's noise, and every model and every run meets the same noisy texts. The places of
a low severity are among those of a higher one.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from mmalign.core.config import Section

NOISE_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Severity 1 to 5 where a part loses its form or its place: characters, keys, words dropped or moved."""

REPLACED_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Severity 1 to 5 where a part stays readable: real typos, translations, letter case, punctuation."""


class Graded(Section):
    """A perturbation with five levels."""

    kind: str
    severity: int = Field(default=2, ge=1, le=5)
    """1 (hardly seen) to 5 (as much as the perturbation allows)."""

    @property
    def name(self) -> str:
        """The perturbation's name in metrics, for example `characters-2`."""
        return f"{self.kind}-{self.severity}"


def noise_share(severity: int) -> float:
    return NOISE_SHARES[severity - 1]


def replaced_share(severity: int) -> float:
    return REPLACED_SHARES[severity - 1]


def text_generator(seed: int, draw: int, example: str, text: int) -> np.random.Generator:
    """The random stream of one text; Python's own `hash` would differ from process to process.

    Args:
        draw: number of the repetition, where noise is drawn several times.
        example: id of the example.
        text: number of the text in it.
    """
    digest = hashlib.sha256(example.encode()).digest()
    return np.random.default_rng((seed, draw, int.from_bytes(digest[:8], "big"), text))


def choose(
    places: Sequence[int], share: float, rng: np.random.Generator, least: int = 1
) -> list[int]:
    """About `share` of the places in random order, never fewer than `least` (if there are so many).

    The number is rounded at random, so that its mean is exact however few the places are.
    """
    count = max(least, math.floor(share * len(places) + rng.random()))
    return [places[i] for i in rng.permutation(len(places))[:count]]
