"""Code-switching: which sentences, which words, which languages."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.text.robust.code_switch import CodeSwitchConfig, switch, tables
from mmalign.text.tasks.example import Example

TEXT = "A red ball, (ball) and red dogs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\nball\tKugel\nball\tTanz fest\nred\trot\n")
    (tmp_path / "en-fr.tsv").write_text("en\ttranslation\nball\tballe\n")
    return tmp_path


def config_for(
    folder: Path, sentences: float = 1.0, words: float = 1.0, **fields: Any
) -> CodeSwitchConfig:
    settings = {"sentence_ratio": sentences, "token_ratio": words, **fields}
    return CodeSwitchConfig(kind="code_switch", dictionaries=str(folder), **settings)


def draws(
    config: CodeSwitchConfig, texts: tuple[str, ...], count: int, words: bool = False
) -> list[Example]:
    random = np.random.default_rng(0)
    example = Example("0", "en", texts, "x")
    return [switch(example, tables(config, "en"), config, random, words) for _ in range(count)]


def test_words_are_found_between_punctuation_and_the_rest_stays(folder: Path) -> None:
    config = config_for(folder, languages=("fr",))
    assert draws(config, (TEXT,), 1)[0].texts == ("A red balle, (balle) and red dogs",)


def test_language_and_translation_are_drawn_evenly(folder: Path) -> None:
    counts = Counter(one.texts[0] for one in draws(config_for(folder), ("Ball", "red"), 4000))
    assert {word: n / 4000 for word, n in counts.items()} == pytest.approx(
        {"Kugel": 0.25, "Tanz fest": 0.25, "balle": 0.5}, abs=0.03
    )
    reds = Counter(one.texts[1] for one in draws(config_for(folder), ("Ball", "red"), 4000))
    assert reds["rot"] / 4000 == pytest.approx(0.5, abs=0.03), "French does not know it"


def test_ratios_are_probabilities_of_sentences_and_words(folder: Path) -> None:
    config = config_for(folder, sentences=0.3, words=0.4)
    found = [one.texts[0].split(" ") for one in draws(config, ("ball " * 9 + "ball",), 3000)]
    switched = [sum(word != "ball" for word in words if word != "fest") for words in found]
    assert np.mean([n > 0 for n in switched]) == pytest.approx(0.3 * (1 - 0.6**10), abs=0.03)
    assert np.mean([n / 10 for n in switched if n]) == pytest.approx(0.4 / (1 - 0.6**10), abs=0.03)


def test_texts_of_an_example_are_drawn_each_on_its_own(folder: Path) -> None:
    config = config_for(folder, sentences=0.5, languages=("fr",))
    seen = {one.texts for one in draws(config, ("ball", "ball"), 100)}
    assert seen == {(a, b) for a in ("ball", "balle") for b in ("ball", "balle")}


def test_labelled_words_are_one_sentence_and_stay_as_many(folder: Path) -> None:
    words = ("a", "ball", "ball", "here")
    config = config_for(folder, sentences=0.5, languages=("de",))
    found = draws(config, words, 200, words=True)
    assert {len(one.texts) for one in found} == {4}
    assert any("Tanz fest" in one.texts for one in found)
    for one in found:  # with a token ratio of 1 a sentence is switched as a whole or not at all
        assert (one.texts[1] == "ball") == (one.texts[2] == "ball")


@pytest.mark.parametrize(("sentences", "words"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_ratio_of_zero_changes_nothing(folder: Path, sentences: float, words: float) -> None:
    config = config_for(folder, sentences, words)
    assert {one.texts for one in draws(config, (TEXT, "ball"), 50)} == {(TEXT, "ball")}


def test_a_language_without_a_dictionary_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match="`sw`"):
        tables(config_for(folder, languages=("sw",)), "en")
    with pytest.raises(UserError, match="leads from `sw`"):
        tables(config_for(folder), "sw")
