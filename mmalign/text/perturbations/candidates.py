"""The words that an attack may write instead of a word.

word -> a few misspellings (one or two edits, the first letter kept)     -+
word -> its translations, a few from each dictionary                     -+-> candidates of the word
"""

from collections.abc import Callable
from itertools import zip_longest

import numpy as np

from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.perturbations.characters import Alphabet, clusters, edited, letter_positions
from mmalign.text.perturbations.code_mix import translations

Candidates = Callable[[str, np.random.Generator], list[str]]
"""Word -> different words to try instead of it, the word itself not among them; may be none."""

_LEAST_LETTERS = 3


def misspellings(
    word: str, rng: np.random.Generator, alphabet: Alphabet, edits: int, most: int
) -> list[str]:
    """Up to `most` random misspellings of a word, each of at most `edits` edits behind its first letter.

    The edits are those of `characters.py`. Readers still recognise words whose first letter and most others
    are correct (Pruthi et al. 2019, arXiv 1905.11268, who keep the last letter too). Words of fewer than
    three letters have none, so this attack does not exist in scripts that segment into single characters; nor
    have words with a digit, because another number means something else.
    """
    characters = clusters(word)
    letters = letter_positions(characters)
    if len(letters) < _LEAST_LETTERS or any(map(str.isdigit, word)):
        return []
    inner = letters[1:]
    # A dictionary as an ordered set: edits may repeat one another, or undo themselves.
    found: dict[str, None] = {}
    for _ in range(most):
        count = min(int(rng.integers(1, edits + 1)), len(inner))
        positions = rng.choice(inner, size=count, replace=False).tolist()
        found["".join(edited(characters, positions, letters, rng, alphabet))] = None
    return [one for one in found if one != word]


def translated(
    word: str, _rng: np.random.Generator, tables: dict[str, Dictionary], lang: str, most: int
) -> list[str]:
    """Up to `most` translations of a word: the safest of every language, then the second of each, ..."""
    ranks = zip_longest(*translations(word, tables, lang))
    found = dict.fromkeys(one for rank in ranks for one in rank if one is not None and one != word)
    return list(found)[:most]
