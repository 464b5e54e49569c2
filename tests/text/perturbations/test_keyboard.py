"""Slips go to touching keys of the language's own layout, and no mark loses its base."""

import unicodedata

import numpy as np
import pytest
import regex

from mmalign.text.perturbations.keyboard import KeyboardConfig, neighbours_of, slips

TEXTS = {
    "en": "The quick brown fox",
    "de": "Zwölf Boxkämpfer jagen",
    "fr": "Voilà les élèves",
    "es": "El niño pequeño",
    "it": "Perché è così",
    "pt": "O coração do menino",
    "tr": "Işıklı İstanbul",
    "ru": "Красный мяч",
    "uk": "Їжак і м'яч",
    "el": "Ο σκύλος τρέχει",
    "he": "ילד משחק בכדור",
    "ar": "الولد يلعب",
    "fa": "کتاب‌ها را می‌خوانم",
    "bg": "Червената топка",
    "id": "Bola merah",
    "sw": "Mpira mwekundu",
    "th": "ลูกบอลสีแดงกับหมา",
    "ur": "سرخ گیند اور کتا",
    "vi": "Quả bóng đỏ và con chó",
    "hi": "हिन्दी में क्षत्रिय की किताब",
}


@pytest.mark.parametrize("lang", TEXTS)
def test_every_slip_is_a_neighbour(lang: str) -> None:
    neighbours = neighbours_of(lang)
    assert neighbours is not None
    for seed in range(30):
        noisy = slips(TEXTS[lang], np.random.default_rng(seed), 0.2, neighbours)
        assert noisy != TEXTS[lang] and len(noisy) == len(TEXTS[lang])
        for old, new in zip(TEXTS[lang], noisy, strict=True):
            assert old == new or new in neighbours[old]
            assert unicodedata.category(old)[0] == unicodedata.category(new)[0]


@pytest.mark.parametrize("lang", TEXTS)
def test_layouts_are_symmetric_within_a_case(lang: str) -> None:
    neighbours = neighbours_of(lang)
    assert neighbours is not None
    small = {key: near for key, near in neighbours.items() if not key.isupper()}
    assert len(small) > 20
    for key, near in small.items():
        assert 1 <= len(near) <= 7 and key not in near
        assert all(key in neighbours[one] for one in near)
        assert all(len(one) == 1 for one in near)


def test_known_neighbours() -> None:
    def near(lang: str, key: str) -> set[str]:
        return set((neighbours_of(lang) or {})[key])

    assert near("en", "s") == set("weadzx") and near("en", "S") == set("WEADZX")
    assert near("de", "z") == set("tugh") and near("fr", "a") == set("ézq")
    assert near("tr", "İ") == set("ĞÜŞ") and near("tr", "I") == set("UOJK")
    assert near("ru", "а") == set("кевпсм") and near("he", "ש") == set("דז")
    assert near("hi", "ि") == set("ीूु")  # vowel signs only
    assert near("bg", "ш") == set("ищож") and near("th", "ร") == set("คตนา")
    assert near("ur", "ر") == set("عتدف") and near("vi", "ư") == set("pơ")
    assert "红" in near("zh", "洪")  # of one sound
    assert "SS" not in near("de", "Ü")


def test_marks_keep_their_base() -> None:
    neighbours = neighbours_of("hi")
    assert neighbours is not None
    for seed in range(50):
        noisy = slips(TEXTS["hi"], np.random.default_rng(seed), 0.4, neighbours)
        assert not regex.search(r"(^|\s)\p{M}", noisy)
        assert len(regex.findall(r"\X", noisy)) == len(regex.findall(r"\X", TEXTS["hi"]))


def test_languages_without_a_layout_have_no_neighbours() -> None:
    assert neighbours_of("ja") is None and neighbours_of("am") is None
    assert neighbours_of("pt-BR") == neighbours_of("pt")
    assert neighbours_of("fr-CA") == neighbours_of("en")
    slip = KeyboardConfig(kind="keyboard").change
    assert slip(["lal gend"], "hi-Latn", False) is None and slip(["लाल"], "hi-Latn", False)
