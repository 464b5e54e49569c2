"""One example of a text task, and what its target may be.

file of a publisher -> reader -> Example (id, language, texts, target) -> heads, scores
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Answer:
    """A correct answer of span question answering: its text and where it starts in the context."""

    text: str
    start: int


@dataclass(frozen=True)
class Event:
    """The position of the words that name something that happens, in a document.

    `start` and `end` count the characters of sentence number `sentence`, which counts from 0.
    """

    sentence: int
    start: int
    end: int


@dataclass(frozen=True)
class EventPair:
    """Two events, by their numbers from 0 (`first` < `second`), and whether one causes the other."""

    first: int
    second: int
    causal: bool


@dataclass(frozen=True)
class Causality:
    """The events of a document in the order of their positions, and the pairs that are asked about."""

    events: tuple[Event, ...]
    pairs: tuple[EventPair, ...]


def starts_of(parts: Sequence[str]) -> list[int]:
    """Where each part starts in the parts joined by one space."""
    return list(accumulate((len(one) + 1 for one in parts), initial=0))[:-1]


Target = str | float | int | tuple[str, ...] | tuple[Answer, ...] | Causality


@dataclass(frozen=True)
class Example:
    """One example of a text task of any kind.

    kind of task     texts                              target
    classification   (text,) or (first, second)         its label, str
    similarity       (first, second)                    their score, float
    multiple_choice  (context, choice, choice, ...)     number of the correct choice from 0, int
    tagging          the words                          one tag per word, tuple of str
    span_qa          (question, context)                the correct answers, tuple of Answer
    retrieval        (query,) or (candidate,)           ids of the correct candidates, tuple of str
    event_causality  the sentences of a document        its events and pairs of them, Causality

    Attributes:
        id: equal for texts that are translations of each other.
        lang: BCP-47 code of all its texts.
    """

    id: str
    lang: str
    texts: tuple[str, ...]
    target: Target
