"""A view keeps sentences, events and pairs; its words are other languages'."""

import numpy as np
from causality_cases import document, overlapping, storm

from mmalign.text.causality.view import view_of
from mmalign.text.robust.code_switch import CodeSwitchConfig
from mmalign.text.tasks.example import Causality, Example

TABLES = {"de": {"storm": ("Sturm",), "the": ("der",), "war": ("sehr langer Krieg",)}}


def config(sentences: float = 1.0, words: float = 1.0) -> CodeSwitchConfig:
    return CodeSwitchConfig(
        kind="code_switch", dictionaries="unused", sentence_ratio=sentences, token_ratio=words
    )


def triggers(example: Example) -> list[str]:
    assert isinstance(example.target, Causality)
    return [example.texts[one.sentence][one.start : one.end] for one in example.target.events]


def view(example: Example, seed: int = 0, **ratios: float) -> Example:
    return view_of(example, TABLES, config(**ratios), np.random.default_rng(seed))


def test_events_stand_where_their_words_went() -> None:
    found = view(storm())
    assert found.texts[0] == "der Sturm caused der flood , and der flood grew ."
    assert triggers(found) == ["Sturm", "flood", "sleeps", "ended"]
    assert isinstance(found.target, Causality)
    assert found.target.pairs == storm().target.pairs  # type: ignore[union-attr]
    assert (found.id, found.lang) == ("storm", "en")


def test_translations_of_several_words_and_overlapping_triggers() -> None:
    found = view(overlapping())
    assert triggers(found) == ["civil sehr langer Krieg", "sehr langer Krieg", "ended"]


def test_a_trigger_takes_its_whole_word() -> None:
    found = view(document("0", ("a  prewar, storm",), ("war", "storm"), ()))
    assert found.texts == ("a  prewar, Sturm",)
    assert triggers(found) == ["prewar,", "Sturm"]


def test_nothing_is_switched_without_a_chance_and_draws_differ() -> None:
    assert view(storm(), words=0.0) == storm()
    assert view(storm(), sentences=0.0) == storm()
    drawn = {view(storm(), seed, words=0.5).texts for seed in range(20)}
    assert len(drawn) > 3
    assert view(storm(), 3, words=0.5) == view(storm(), 3, words=0.5)
