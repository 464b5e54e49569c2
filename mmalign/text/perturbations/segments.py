"""Words of a text in any script.

Segments are those of ICU's word boundaries: the rules of Unicode UAX 29, and dictionaries for scripts that
are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese). A word is a segment with a letter or a
digit.
"""

from collections.abc import Sequence

import regex
from icu4py.breakers import WordBreaker

_IN_A_WORD = regex.compile(r"[\p{L}\p{N}]")
_OF_A_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]")
_UNSPACED = regex.compile(
    r"[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]", regex.V1
)


def segments(text: str) -> list[str]:
    """The segments of a text, none of them empty."""
    # The rules and dictionaries of `root` serve every script; locales only change marks such as the colon.
    return list(WordBreaker(text, "root"))


def is_word(segment: str) -> bool:
    """Whether a segment holds a letter or a digit."""
    return _IN_A_WORD.search(segment) is not None


def word_positions(parts: Sequence[str]) -> list[int]:
    """The numbers of the segments that are words."""
    return [i for i, part in enumerate(parts) if is_word(part)]


def put(parts: Sequence[str], position: int, word: str) -> list[str]:
    """The segments with `word` at `position`, spaced where it would merge with a word beside it."""
    # A Chinese sentence has no spaces, but two English words that replace two of its own need one.
    before, after = parts[:position], parts[position + 1 :]
    left = " " if before and _merge(before[-1][-1:], word[:1]) else ""
    right = " " if after and _merge(word[-1:], after[0][:1]) else ""
    return [*before, left + word + right, *after]


def space_after(word: str) -> str:
    """What separates a word from the next one in its script: a space, or nothing."""
    return "" if _UNSPACED.match(word) else " "


def _merge(left: str, right: str) -> bool:
    # Whether two characters side by side belong to one word in scripts with spaces.
    return all(_OF_A_WORD.match(one) and not _UNSPACED.match(one) for one in (left, right))
