"""Letter case by language: the dotted and dotless i, and scripts that have no case.

text, language -> the same text in upper, lower or swapped case
"""

from collections.abc import Iterable

import regex

# Turkish, Azerbaijani and Crimean Tatar pair i with İ and ı with I (SpecialCasing.txt of the Unicode
# Character Database); Python's own methods follow the other languages.
_DOTTED = ("tr", "az", "crh")
# The scripts that write two cases. Georgian is not among them: its capitals serve headlines only.
_CASED = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Adlam}&&\p{L}]", regex.V1)
_LETTER = regex.compile(r"\p{L}")


def base_language(lang: str) -> str:
    """The language alone: `pt` of `pt-BR`."""
    return lang.partition("-")[0]


def upper(text: str, lang: str) -> str:
    if base_language(lang) in _DOTTED:
        text = text.replace("i", "İ")  # `ı` becomes I by itself
    return text.upper()


def lower(text: str, lang: str) -> str:
    if base_language(lang) in _DOTTED:
        # Python lowers İ to i and a combining dot.
        text = text.replace("İ", "i").replace("I", "ı")
    return text.lower()


def swapped(text: str, lang: str) -> str:
    """Capitals for small letters and small letters for capitals."""
    return "".join(lower(one, lang) if one.isupper() else upper(one, lang) for one in text)


def cased_like(word: str, pattern: str, lang: str) -> str:
    """`word` in capitals or with a capital at its start where `pattern` is so; else as it is."""
    if len(pattern) > 1 and pattern.isupper():
        return upper(word, lang)
    if pattern[:1].isupper():
        return upper(word[:1], lang) + word[1:]
    return word


def has_case(texts: Iterable[str]) -> bool:
    """Whether most letters of the texts belong to a script that has letter case."""
    letters = cased = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        cased += len(_CASED.findall(text))
    return 2 * cased > letters
