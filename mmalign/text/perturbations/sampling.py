"""What all perturbations share: levels of severity, positions drawn at random, and random streams.

The random stream of a text depends on (seed, draw, id of the example, number of the text) alone: no
example changes another's noise, and every model and every run gets the same noisy texts.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from mmalign.core.config import Section

# Severity 1 to 5 where a part loses its form or position: characters, keys, words dropped or moved.
NOISE_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
# Severity 1 to 5 where a part stays readable: real typos, translations, letter case, punctuation.
REPLACED_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)

Change = Callable[[str, np.random.Generator], str]


class Graded(Section):
    """A perturbation with five levels; a subclass with a literal `kind`, in a file of its own, is one."""

    kind: str
    severity: int = Field(default=2, ge=1, le=5)
    """1 (hardly visible) to 5 (as much as the perturbation allows)."""

    @property
    def name(self) -> str:
        """The perturbation's name in metrics, for example `characters-2` or `words_drop-2`."""
        edit = getattr(self, "edit", None)
        return f"{self.kind}_{edit}-{self.severity}" if edit else f"{self.kind}-{self.severity}"

    @property
    def noise_share(self) -> float:
        return NOISE_SHARES[self.severity - 1]

    @property
    def replaced_share(self) -> float:
        return REPLACED_SHARES[self.severity - 1]

    @abstractmethod
    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        """What makes texts of a language noisy; None: this noise does not exist there.

        Args:
            texts: all that will be changed, as a sample of the language.
            single_words: each text is one word of a sentence, and must stay one.

        Raises:
            UserError: a folder of the configuration is missing, or a file in it is broken.
        """


def text_generator(seed: int, draw: int, example: str, text: int) -> np.random.Generator:
    """The random stream of text number `text` of the example with the id `example`, in repetition `draw`."""
    # Python's own `hash` would differ from process to process.
    digest = hashlib.sha256(example.encode()).digest()
    return np.random.default_rng((seed, draw, int.from_bytes(digest[:8], "big"), text))


def choose(
    positions: Sequence[int], share: float, rng: np.random.Generator, least: int = 1
) -> list[int]:
    """About `share` of the positions in random order, never fewer than `least` (if there are so many)."""
    # Rounded at random, so that the mean is exact for few positions too.
    count = max(least, math.floor(share * len(positions) + rng.random()))
    # The positions of a low severity are among those of a higher one.
    return [positions[i] for i in rng.permutation(len(positions))[:count]]
