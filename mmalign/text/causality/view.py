"""A document with some of its words in other languages, and the new positions of its events.

    sentence -> words at spaces -> some become translations (code_switch.py) -> sentence
    position of an event, in words -> the same words of the new sentence -> its new characters

Triggers are translated like any word. The event of a view is all of the space-separated words that its
trigger touched, with punctuation that is written without a space; MECI writes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.causality.outline import target_of
from mmalign.text.robust.code_switch import CodeSwitchConfig, switch
from mmalign.text.tasks.example import Event, Example, starts_of


def view_of(
    example: Example,
    tables: Mapping[str, Dictionary],
    config: CodeSwitchConfig,
    random: np.random.Generator,
) -> Example:
    """The same sentences, events and pairs in the same order; the words are mixed."""
    target = target_of(example)
    old = [tuple(text.split(" ")) for text in example.texts]
    new = [
        switch(replace(example, texts=words), tables, config, random, words=True).texts
        for words in old
    ]
    events = tuple(_moved(one, old[one.sentence], new[one.sentence]) for one in target.events)
    texts = tuple(" ".join(words) for words in new)
    return replace(example, texts=texts, target=replace(target, events=events))


def _moved(event: Event, old: Sequence[str], new: Sequence[str]) -> Event:
    before, after = starts_of(old), starts_of(new)
    touched = [
        i
        for i, (start, word) in enumerate(zip(before, old, strict=True))
        if start < event.end and event.start < start + len(word)
    ]
    last = touched[-1]
    return Event(event.sentence, after[touched[0]], after[last] + len(new[last]))
