"""Typing errors that are equally severe in every script.

An edit swaps a character with its right neighbour, deletes it, doubles it or replaces it by one of the same
kind (script and letter case) that the language's own texts hold. That alphabet is the only difference between
languages, and all that the noise of one example depends on in the others.

Only letters are edited: another number would mean something else. Severity 1 to 5 edits a share of 0.05, 0.1,
0.2, 0.3 and 0.4 of them. Every text that has a letter changes.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import regex

from mmalign.text.perturbations.sampling import Change, Graded, choose

# Kind of character (see `kind_of`) -> the characters of that kind, sorted.
Alphabet = Mapping[str, tuple[str, ...]]


def typos(
    text: str, rng: np.random.Generator, share: float, alphabet: Alphabet, least: int = 1
) -> str:
    """`text` with about a share of its letters edited, each at most once by choice.

    With `least` (the least number of edits) 1 a text that has a letter comes back changed, however short, so
    short texts change more than `share`. Kinds that the alphabet lacks are not replaced.
    """
    characters = clusters(text)
    letters = letter_positions(characters)
    positions = choose(letters, share, rng, least)
    noisy = "".join(edited(characters, positions, letters, rng, alphabet))
    if positions and noisy == text:  # edits that undid each other
        characters[positions[0]] *= 2
        return "".join(characters)
    return noisy


def clusters(text: str) -> list[str]:
    """The grapheme clusters of a text (Unicode UAX 29)."""
    # A vowel sign, a ZWJ or a part of a Hangul syllable stays with its base: no edit splits a character.
    return list(regex.findall(r"\X", text))


def letter_positions(characters: list[str]) -> list[int]:
    """The numbers of the clusters that are letters."""
    return [i for i, one in enumerate(characters) if kind_of(one)]


def alphabet_of(texts: Iterable[str]) -> Alphabet:
    """The letters that occur in `texts`, by kind."""
    letters = {one for text in texts for one in clusters(text) if kind_of(one)}
    by_kind = sorted(sorted(letters), key=kind_of)  # stable: each kind stays sorted
    return {kind: tuple(members) for kind, members in groupby(by_kind, key=kind_of)}


def kind_of(character: str) -> str:
    """Script and category of a grapheme cluster's base, such as `LATIN Ll`; empty: never edited."""
    base = character[0]
    category = unicodedata.category(base)
    if category[0] != "L":
        return ""
    # Python has no script property: the first word of the character's Unicode name stands for it.
    return f"{unicodedata.name(base, '').partition(' ')[0]} {category}"


def edited(
    characters: list[str],
    positions: Iterable[int],
    letters: list[int],
    rng: np.random.Generator,
    alphabet: Alphabet,
) -> list[str]:
    """The characters with one random edit at each position; a deleted one leaves an empty string."""
    result = list(characters)
    for i in positions:
        letter = result[i]
        others = [one for one in alphabet.get(kind_of(letter), ()) if one != letter]
        right = "".join(result[i + 1 : i + 2])  # empty behind the last character
        possible = ["double"]  # a lone letter is only doubled: other edits would leave nothing
        if sum(result[j] != "" for j in letters) > 1:  # the last letter stays
            possible.append("delete")
            if others:
                possible.append("replace")
            if right not in ("", letter) and kind_of(right):
                possible.append("swap")
        match possible[rng.integers(len(possible))]:
            case "double":
                result[i] = letter * 2
            case "delete":
                result[i] = ""
            case "replace":
                result[i] = others[rng.integers(len(others))]
            case "swap":
                result[i], result[i + 1] = right, letter
    return result


class CharactersConfig(Graded):
    """Random edits of characters."""

    kind: Literal["characters"]

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        # A text always changes; of single words only the share of the severity.
        least = int(not single_words)
        return partial(typos, share=self.noise_share, alphabet=alphabet_of(texts), least=least)
