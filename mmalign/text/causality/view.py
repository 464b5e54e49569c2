"""A document with some of its words in other languages, its events where they were.

    sentence -> words at spaces -> some become translations (code_switch.py) -> sentence
    place of an event, in words -> the same words of the new sentence -> its new characters

Triggers are translated like any word. The event of a view is the whole of the space-separated words that its
trigger touched, with punctuation that is written without a space; MECI writes none.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np

from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.robust.code_switch import CodeSwitchConfig, switch
from mmalign.text.tasks.example import Causality, Event, Example


def view_of(
    example: Example,
    tables: Mapping[str, Dictionary],
    config: CodeSwitchConfig,
    random: np.random.Generator,
) -> Example:
    """The same sentences, events and pairs in the same order; the words are mixed."""
    target = example.target
    assert isinstance(target, Causality), example.id
    old = [tuple(text.split(" ")) for text in example.texts]
    new = [
        switch(replace(example, texts=words), tables, config, random, words=True).texts
        for words in old
    ]
    events = tuple(_moved(one, old[one.sentence], new[one.sentence]) for one in target.events)
    texts = tuple(" ".join(words) for words in new)
    return replace(example, texts=texts, target=replace(target, events=events))


def _moved(event: Event, old: tuple[str, ...], new: tuple[str, ...]) -> Event:
    before, after = _starts(old), _starts(new)
    touched = [
        i
        for i, word in enumerate(old)
        if before[i] < event.end and event.start < before[i] + len(word)
    ]
    last = touched[-1]
    return Event(event.sentence, after[touched[0]], after[last] + len(new[last]))


def _starts(words: tuple[str, ...]) -> list[int]:
    return list(accumulate((len(word) + 1 for word in words), initial=0))[:-1]
