"""Marks and letter case change; letters stay the same letters."""

import numpy as np
import pytest

from mmalign.data.dictionaries import casing
from mmalign.text.perturbations.surface import (
    add_punctuation,
    change_case,
    end_marks,
    repeat_punctuation,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_marks_are_removed_and_doubled_outside_of_words() -> None:
    text = "Well, don't: (stop)!"
    assert repeat_punctuation(text, rng(), 1.0, 0) == "Well don't stop"
    assert repeat_punctuation(text, rng(), 1.0, 2) == "Well,, don't:: ((stop))!!"
    assert len(repeat_punctuation(text, rng(), 0.2, 0)) == len(text) - 1
    assert repeat_punctuation("¿Qué? 好。 है। كتاب؟", rng(), 1.0, 0) == "Qué 好 है كتاب"
    assert repeat_punctuation("?!", rng(), 1.0, 0) == "?!"
    assert repeat_punctuation("no marks", rng(), 1.0, 2) == "no marks"


@pytest.mark.parametrize(
    ("lang", "text", "mark"),
    [
        ("en", "ball", "."),
        ("ar", "كرة", "؟"),
        ("ur", "گیند", "۔"),
        ("hi", "गेंद", "।"),
        ("zh", "ball 球", "。"),
        ("ja", "ボール!", "？"),
        ("el", "μπάλα", ";"),
        ("hy", "գնդակ", "։"),
        ("am", "ኳስ", "።"),
        ("my", "ဘောလုံး", "။"),
        ("en", "", "."),
    ],
)
def test_added_marks_are_those_of_the_script(lang: str, text: str, mark: str) -> None:
    assert mark in end_marks(text, lang)
    added = add_punctuation(text, rng(), 4, lang)
    assert added.startswith(text) and len(added) == len(text) + 4
    assert set(added[len(text) :]) <= set(end_marks(text, lang))


def test_case_knows_the_dotted_i() -> None:
    assert casing.upper("istanbul ışık", "tr") == "İSTANBUL IŞIK"
    assert casing.lower("İSTANBUL IŞIK", "tr-TR") == "istanbul ışık"
    assert casing.upper("istanbul", "en") == "ISTANBUL"
    assert casing.swapped("İlk ışık", "tr") == "iLK IŞIK"
    assert casing.lower("ΣΚΎΛΟΣ", "el") == "σκύλος"


def test_only_words_that_can_change_count() -> None:
    assert change_case("NASA red", rng(), 0.2, "upper", "en") == "NASA RED"
    assert change_case("NASA red 球", rng(), 1.0, "lower", "en") == "nasa red 球"
    assert change_case("Red Ball", rng(), 1.0, "swapped", "en") == "rED bALL"
    assert change_case("球", rng(), 1.0, "upper", "zh") == "球"


def test_scripts_with_case() -> None:
    assert casing.has_case(["ball"]) and casing.has_case(["мяч"]) and casing.has_case(["μπάλα"])
    assert not casing.has_case(["NBA 的球员在这里打球"])
    assert not casing.has_case(["ბურთი"]) and not casing.has_case(["123 ?!"])


def test_a_word_takes_the_case_of_another() -> None:
    assert casing.cased_like("teh", "The", "en") == "Teh"
    assert casing.cased_like("teh", "THE", "en") == "TEH"
    assert casing.cased_like("teh", "the", "en") == "teh"
    assert casing.cased_like("iyi", "I", "tr") == "İyi"
