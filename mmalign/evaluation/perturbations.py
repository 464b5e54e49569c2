"""Noise for test texts: typing errors that mean the same in every script.

    text -> characters as a reader counts them -> a share of them edited -> noisy text

A character is a grapheme cluster (Unicode UAX 29): an Arabic vowel sign, a Devanagari matra, a ZWJ
or ZWNJ and the parts of a Hangul syllable stay with their base, so no edit makes half a character.
An edit swaps a character with its right neighbour, deletes it, doubles it or replaces it. There is
no keyboard in it: a replacement is drawn evenly from the characters of the same kind (script and
letter case) that the language's own texts hold. That alphabet is all that differs between
languages.

Only letters and digits are edited; spaces, punctuation and symbols stay. The noise of a row depends
on (seed, id of the row) and on the texts alone, so every model and every run meets the same noisy
texts.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import regex

from mmalign.batch import TaskRow

Alphabet = Mapping[str, tuple[str, ...]]
"""Kind of character (see `kind_of`) -> the characters of that kind, sorted."""


def with_typos(rows: Sequence[TaskRow], rate: float, seed: int) -> list[TaskRow]:
    """The rows of one language with noisy texts; the alphabet is that of these rows."""
    alphabet = alphabet_of(row.text for row in rows)
    return [
        replace(row, text=typos(row.text, rate, row_generator(seed, row.id), alphabet))
        for row in rows
    ]


def typos(text: str, rate: float, rng: np.random.Generator, alphabet: Alphabet) -> str:
    """`text` with a share `rate` of its letters and digits edited, each at most once by choice.

    With a rate above 0 a text that has a letter or a digit comes back changed, however short, so
    short texts suffer more than `rate` says. The last letter is never deleted, and a lone one is
    only doubled, because every other edit would leave nothing of the text.

    Args:
        rate: 0 to 1; the number of edits is `rate` times the number of letters, at least one.
        alphabet: what replacements are drawn from; kinds that it lacks are not replaced.
    """
    characters: list[str] = regex.findall(r"\X", text)
    letters = [place for place, one in enumerate(characters) if kind_of(one) is not None]
    if rate == 0 or not letters:
        return text
    count = max(1, round(rate * len(letters)))
    places = rng.choice(letters, size=count, replace=False).tolist()
    edited = list(characters)
    for place in places:
        _edit(edited, place, letters, rng, alphabet)
    noisy = "".join(edited)
    if noisy == text:  # edits that undid each other
        characters[places[0]] *= 2
        return "".join(characters)
    return noisy


def alphabet_of(texts: Iterable[str]) -> Alphabet:
    """The letters and digits that occur in `texts`, by kind."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for character in regex.findall(r"\X", text):
            kind = kind_of(character)
            if kind is not None:
                found.setdefault(kind, set()).add(character)
    return {kind: tuple(sorted(characters)) for kind, characters in found.items()}


def kind_of(character: str) -> str | None:
    """Script and category of a grapheme cluster's base, such as `LATIN Ll`; None: never edited.

    Python knows no script property; the first word of a character's Unicode name stands in for it
    (LATIN, CYRILLIC, ARABIC, DEVANAGARI, HANGUL, CJK, HIRAGANA, DIGIT, ...).
    """
    base = character[0]
    category = unicodedata.category(base)
    if category[0] not in "LN":
        return None
    return f"{unicodedata.name(base, '').partition(' ')[0]} {category}"


def row_generator(seed: int, row_id: str) -> np.random.Generator:
    """The random stream of one row; Python's own `hash` would differ from process to process."""
    digest = hashlib.sha256(row_id.encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))


def _edit(
    edited: list[str],
    place: int,
    letters: list[int],
    rng: np.random.Generator,
    alphabet: Alphabet,
) -> None:
    """One random edit of the character at `place`; a deleted one leaves an empty string."""
    letter = edited[place]
    others = [one for one in alphabet.get(kind_of(letter) or "", ()) if one != letter]
    right = edited[place + 1] if place + 1 < len(edited) else ""
    possible = ["double"]
    if sum(edited[i] != "" for i in letters) > 1:
        possible.append("delete")
        if others:
            possible.append("replace")
        if right not in ("", letter) and kind_of(right) is not None:
            possible.append("swap")
    match possible[rng.integers(len(possible))]:
        case "double":
            edited[place] = letter * 2
        case "delete":
            edited[place] = ""
        case "replace":
            edited[place] = others[rng.integers(len(others))]
        case "swap":
            edited[place], edited[place + 1] = right, letter
