"""Documents with events for the tests of event causality; written for the tests, not from a data set."""

from tiny import tiny_model, tiny_tokenizer

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.tasks.task import Causality, Event, EventPair, Example

LONG = 32  # maximum number of tokens of the tower


def tiny_tower() -> TextEncoder:
    return TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=LONG)


def document(
    name: str,
    sentences: tuple[str, ...],
    triggers: tuple[str, ...],
    pairs: tuple[tuple[int, int, bool], ...],
    lang: str = "en",
) -> Example:
    """Each trigger is the first occurrence of its words in its sentence."""
    events = []
    for trigger in triggers:
        number = next(i for i, one in enumerate(sentences) if trigger in one)
        start = sentences[number].index(trigger)
        events.append(Event(number, start, start + len(trigger)))
    return Example(
        name, lang, sentences, Causality(tuple(events), tuple(EventPair(*pair) for pair in pairs))
    )


def storm(name: str = "storm") -> Example:
    """Three sentences, four events, four pairs: every type of node and of edge."""
    return document(
        name,
        ("the storm caused the flood , and the flood grew .", "A dog sleeps .", "the storm ended"),
        ("storm", "flood", "sleeps", "ended"),
        ((0, 1, True), (0, 2, False), (1, 3, False), (2, 3, False)),
    )


def alone(name: str = "alone") -> Example:
    """One event, so no pair."""
    return document(name, ("a red ball sleeps .",), ("sleeps",), ())


def crowded(events: int = 60) -> Example:
    """A long document with all pairs of its events."""
    words = tuple(f"cat{i:02}" for i in range(events))
    sentences = tuple(" ".join(words[i : i + 6]) + " ." for i in range(0, events, 6))
    pairs = tuple((a, b, b == a + 1) for a in range(events) for b in range(a + 1, events))
    return document("crowded", sentences, words, pairs)


def overlapping() -> Example:
    """Two triggers that share a word."""
    return document(
        "overlap",
        ("the civil war broke out and ended .",),
        ("civil war", "war", "ended"),
        ((0, 1, False), (0, 2, True), (1, 2, True)),
    )
