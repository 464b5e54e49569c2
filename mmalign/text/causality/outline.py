"""The parts of a document and their positions: its sentences, phrases, statements and event pairs.

The method's abstract names phrases, sentences, statements and event pairs (He et al. 2024, arXiv
2403.02893); how they are found was not published, except that phrases came from dependency parses, which
few languages have. The rules here are ours and need nothing but letters:

    word       a run of letters, digits and vowel signs, hyphens and apostrophes inside it included
    clause     a longest run of words of one sentence with no other character but white space in between
    phrase     a longest run of words of a clause without a glue word
    glue word  one of the document's ten most frequent words of at most four characters that occur twice or
               more (articles, prepositions, conjunctions of most languages), unless it is in a trigger
    statement  an event: its trigger, and the clauses that the trigger is in

A script without spaces has long words: its phrases are clauses.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import regex

from mmalign.text.tasks.task import Causality, Example, starts_of

# First character and the one after the last, of the sentences joined by one space.
Span = tuple[int, int]

# A word (group 1) or one mark. The characters inside a word are apostrophes, the hyphen, and the zero-width
# joiners that scripts of South Asia write between letters.
_PART = regex.compile(r"([\p{L}\p{M}\p{N}]+(?:['’\-\u200c\u200d][\p{L}\p{M}\p{N}]+)*)|[^\s]")
_LONGEST_GLUE = 4
_MOST_GLUE = 10


@dataclass(frozen=True)
class Phrase:
    """A run of words; `words` are in lower case, `sentence` and `clause` number what it is in."""

    span: Span
    sentence: int
    clause: int
    words: frozenset[str]


@dataclass(frozen=True)
class Outline:
    """The parts of one document.

    Attributes:
        triggers: of each event.
        clauses: of each event, the clauses of its trigger: its statement.
        phrases_of: of each event, the numbers of the phrases in its clauses.
        sentence_of: of each event.
        pairs: numbers of two events, the earlier first.
        causal: of each pair.
    """

    text: str
    sentences: list[Span]
    phrases: list[Phrase]
    triggers: list[Span]
    clauses: list[Span]
    phrases_of: list[list[int]]
    sentence_of: list[int]
    pairs: list[tuple[int, int]]
    causal: list[bool]


class _Part(NamedTuple):
    span: Span
    text: str
    is_word: bool


def outline(example: Example) -> Outline:
    """The parts of a document; its target is a Causality."""
    target = target_of(example)
    starts = starts_of(example.texts)
    located = list(zip(starts, example.texts, strict=True))
    triggers = [
        (starts[one.sentence] + one.start, starts[one.sentence] + one.end) for one in target.events
    ]
    parts = [
        [
            _Part((start + m.start(), start + m.end()), m[0].casefold(), m[1] is not None)
            for m in _PART.finditer(text)
        ]
        for start, text in located
    ]
    words = (part.text for each in parts for part in each if part.is_word)
    short = Counter(word for word in words if len(word) <= _LONGEST_GLUE)
    glue = {word for word, count in short.most_common(_MOST_GLUE) if count > 1}
    clauses = [
        (sentence, list(run))
        for sentence, each in enumerate(parts)
        for is_word, run in groupby(each, lambda part: part.is_word)
        if is_word
    ]
    phrases = list(_phrases(clauses, glue, triggers))
    spans = [_span_of(run) for _, run in clauses]
    own = [[n for n, span in enumerate(spans) if overlap(span, one)] for one in triggers]
    statements = [[one, *(spans[n] for n in each)] for one, each in zip(triggers, own, strict=True)]
    return Outline(
        text=" ".join(example.texts),
        sentences=[(start, start + len(text)) for start, text in located],
        phrases=phrases,
        triggers=triggers,
        # A trigger may reach past its clauses, and may consist of marks alone.
        clauses=[(min(s for s, _ in each), max(e for _, e in each)) for each in statements],
        phrases_of=[[i for i, one in enumerate(phrases) if one.clause in each] for each in own],
        sentence_of=[one.sentence for one in target.events],
        pairs=[(one.first, one.second) for one in target.pairs],
        causal=[one.causal for one in target.pairs],
    )


def target_of(example: Example) -> Causality:
    assert isinstance(example.target, Causality), example.id
    return example.target


def overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _phrases(
    clauses: Sequence[tuple[int, list[_Part]]], glue: set[str], triggers: Sequence[Span]
) -> Iterator[Phrase]:
    def is_glue(part: _Part) -> bool:
        return part.text in glue and not any(overlap(part.span, one) for one in triggers)

    for clause, (sentence, words) in enumerate(clauses):
        for splits, run in groupby(words, is_glue):
            if not splits:
                kept = list(run)
                names = frozenset(part.text for part in kept if part.text not in glue)
                yield Phrase(_span_of(kept), sentence, clause, names)


def _span_of(words: Sequence[_Part]) -> Span:
    return words[0].span[0], words[-1].span[1]
