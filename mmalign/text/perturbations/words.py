"""Words dropped, swapped with their right neighbour, or written twice.

`segments.py` defines what a word is in which script. Severity 1 to 5 changes a share of
0.05, 0.1, 0.2, 0.3 and 0.4 of the words, at least one.

Order and single words carry meaning: on tasks that ask about them (PAWS-X asks about order) a change may
make the target wrong, so read these scores as changes of behaviour, not as errors.

    drop        changes every text of two words or more; never empties one
    swap        changes every text with two different words side by side
    duplicate   changes every text with a word
"""

from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from mmalign.text.perturbations.sampling import Change, Graded, choose
from mmalign.text.perturbations.segments import segments, space_after, word_positions


def drop_words(text: str, rng: np.random.Generator, share: float) -> str:
    """`text` without a share of its words, each with one of the spaces beside it."""
    parts = segments(text)
    words = word_positions(parts)
    # One word stays, so that no text is emptied.
    return "".join(without(parts, choose(words, share, rng)[: len(words) - 1]))


def without(parts: list[str], positions: Collection[int]) -> list[str]:
    """The segments but those at `positions`; the space that follows goes too, or else the one before."""
    kept: list[str] = []
    space_goes = False
    for i, part in enumerate(parts):
        if i in positions:
            space_goes = i + 1 < len(parts) and parts[i + 1].isspace()
            if not space_goes and kept and kept[-1].isspace():
                kept.pop()
        elif space_goes:
            space_goes = False
        else:
            kept.append(part)
    return kept


def swap_words(text: str, rng: np.random.Generator, share: float) -> str:
    """`text` with a share of its pairs of neighbouring words swapped; what is between them stays."""
    parts = segments(text)
    # Two equal words would leave the text unchanged.
    follower = {i: j for i, j in pairwise(word_positions(parts)) if parts[i] != parts[j]}
    for i in choose(list(follower), share, rng):
        # A word may be in two chosen pairs, and then moves twice.
        parts[i], parts[follower[i]] = parts[follower[i]], parts[i]
    return "".join(parts)


def duplicate_words(text: str, rng: np.random.Generator, share: float) -> str:
    """`text` with a share of its words written twice."""
    parts = segments(text)
    for i in choose(word_positions(parts), share, rng):
        parts[i] += space_after(parts[i]) + parts[i]
    return "".join(parts)


class WordsConfig(Graded):
    """Random edits of words."""

    kind: Literal["words"]
    edit: Literal["drop", "swap", "duplicate"]

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        edits = {"drop": drop_words, "swap": swap_words, "duplicate": duplicate_words}
        return None if single_words else partial(edits[self.edit], share=self.noise_share)
