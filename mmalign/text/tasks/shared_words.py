"""Pairs of texts without the words that both sides share.

    query, its right candidates -> words that occur on both sides, words with a digit -> both without them

Names, numbers and loans are spelled alike in languages of one script, and an encoder of one language finds
a translation by them alone. What remains has to be understood. Names in two scripts stay.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import regex

from mmalign.text.tasks.task import Example

_WORD = regex.compile(r"[\w'’]+")
_MARKS = regex.compile(r"\p{M}+")
# Loans and inflected names begin alike: `Obama`, `Obamaning`. Shorter words must be equal.
_SAME_START = 4


def without_shared_words(
    queries: Sequence[Example], candidates: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Queries and candidates of one language without what a query and a right candidate of it share.

    Two words are shared if their first four letters are equal, or all letters of shorter ones, without case
    and accents. A query, or a candidate, of which no letter remains is left out, and so is a query without a
    right candidate.
    """
    words_of = {one.id: _starts(one.texts[0]) for one in candidates}
    shared: dict[str, set[str]] = {one.id: set() for one in candidates}
    bare_queries = []
    for query in queries:
        own = _starts(query.texts[0])
        bare_queries.append(
            _without(query, set().union(*(words_of[name] for name in _right(query))))
        )
        for name in _right(query):
            shared[name] |= own
    bare = [_without(one, shared[one.id]) for one in candidates]
    kept = [one for one in bare if _has_letter(one)]
    return answered_by(kept, filter(_has_letter, bare_queries)), kept


def answered_by(candidates: Iterable[Example], queries: Iterable[Example]) -> list[Example]:
    """The queries that have a right one among these candidates, each with its right ones among them."""
    there = {one.id for one in candidates}
    return [
        replace(one, target=right)
        for one in queries
        if (right := tuple(name for name in _right(one) if name in there))
    ]


def _start(word: str) -> str:
    letters = _MARKS.sub("", unicodedata.normalize("NFKD", word.casefold()))
    return letters[:_SAME_START]


def _starts(text: str) -> set[str]:
    return {_start(word) for word in _WORD.findall(text)}


def _without(example: Example, starts: Iterable[str]) -> Example:
    shared = set(starts)

    def kept(match: "regex.Match[str]") -> str:
        word = match[0]
        return "" if _start(word) in shared or any(map(str.isdigit, word)) else word

    text = " ".join(_WORD.sub(kept, example.texts[0]).split())
    return replace(example, texts=(text,))


def _has_letter(example: Example) -> bool:
    return any(map(str.isalpha, example.texts[0]))


def _right(query: Example) -> tuple[str, ...]:
    return cast("tuple[str, ...]", query.target)
