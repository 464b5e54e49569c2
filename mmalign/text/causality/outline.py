"""Where the parts of a document stand: its sentences, phrases, statements and event pairs.

    sentences + events -> words and marks -> clauses  -> the clause of a trigger: its statement
                                          -> phrases, by frequent short words

The method's abstract names phrases, sentences, statements and event pairs (He et al. 2024, arXiv
2403.02893); how they are found was not published, except that phrases came from dependency parses, which
few languages have. The rules here are ours and need nothing but letters:

    word       a run of letters, digits and vowel signs, hyphens and apostrophes inside it included
    clause     a longest run of words of one sentence with no other character but white space in between
    phrase     a longest run of words of a clause without a glue word
    glue word  one of the document's ten most frequent words of at most four characters that occur twice or
               more (articles, prepositions, conjunctions of most languages), unless it is in a trigger
    statement  an event: its trigger, and the clauses that the trigger stands in

So an event is no node beside its statement. A script without spaces has long words: its phrases are clauses.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import regex

from mmalign.text.tasks.example import Causality, Example

Span = tuple[int, int]
"""First character and the one behind the last, of the sentences joined by one space."""

_PART = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’\-\u200c\u200d][\p{L}\p{M}\p{N}]+)*|[^\s]")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}].*", regex.DOTALL)
_LONGEST_GLUE = 4
_MOST_GLUE = 10


@dataclass(frozen=True)
class Phrase:
    """A run of words; `words` are in small letters, `sentence` and `clause` number what it is in."""

    span: Span
    sentence: int
    clause: int
    words: frozenset[str]


@dataclass(frozen=True)
class Outline:
    """The parts of one document.

    Attributes:
        triggers: of each event.
        clauses: of each event, the clauses of its trigger: the place of its statement.
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


@dataclass(frozen=True)
class _Part:
    """A word or a mark."""

    span: Span
    text: str
    is_word: bool


def outline(example: Example) -> Outline:
    """The parts of a document; its target is a Causality."""
    target = example.target
    assert isinstance(target, Causality), example.id
    starts = list(accumulate((len(one) + 1 for one in example.texts), initial=0))[:-1]
    sentences = [
        (start, start + len(one)) for start, one in zip(starts, example.texts, strict=True)
    ]
    triggers = [
        (starts[one.sentence] + one.start, starts[one.sentence] + one.end) for one in target.events
    ]
    parts = [_parts(one, start) for start, one in zip(starts, example.texts, strict=True)]
    glue = _glue_words([part for each in parts for part in each])
    clauses = [(n, run) for n, each in enumerate(parts) for run in _runs(each)]
    phrases = list(_phrases(clauses, glue, triggers))
    own = [
        [n for n, (_, run) in enumerate(clauses) if overlap(_span_of(run), trigger)]
        for trigger in triggers
    ]
    return Outline(
        text=" ".join(example.texts),
        sentences=sentences,
        phrases=phrases,
        triggers=triggers,
        clauses=[
            _hull([trigger, *(_span_of(clauses[n][1]) for n in numbers)])
            for trigger, numbers in zip(triggers, own, strict=True)
        ],
        phrases_of=[
            [i for i, one in enumerate(phrases) if one.clause in numbers] for numbers in own
        ],
        sentence_of=[one.sentence for one in target.events],
        pairs=[(one.first, one.second) for one in target.pairs],
        causal=[one.causal for one in target.pairs],
    )


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a character."""
    return one[0] < other[1] and other[0] < one[1]


def _parts(sentence: str, start: int) -> list[_Part]:
    found = []
    for match in _PART.finditer(sentence):
        text = match.group()
        span = (start + match.start(), start + match.end())
        found.append(_Part(span, text.casefold(), bool(_WORD.fullmatch(text))))
    return found


def _glue_words(parts: Sequence[_Part]) -> set[str]:
    short = Counter(part.text for part in parts if part.is_word and len(part.text) <= _LONGEST_GLUE)
    return {word for word, count in short.most_common(_MOST_GLUE) if count > 1}


def _runs(parts: Sequence[_Part]) -> list[list[_Part]]:
    """The clauses of a sentence, as words."""
    return [list(run) for is_word, run in groupby(parts, lambda part: part.is_word) if is_word]


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


def _hull(spans: Sequence[Span]) -> Span:
    return min(start for start, _ in spans), max(end for _, end in spans)
