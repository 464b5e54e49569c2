"""Typing errors change every text, split no character, and are the same on every run."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
import regex

from mmalign.text.perturbations.characters import alphabet_of, kind_of, typos

TEXTS = {
    "en": "The red ball rolled away, twice in 1998!",
    "de": "Überraschend größere Bälle",
    "ru": "красный мяч на зелёной траве",
    "ar": "مُحَمَّدٌ يَلْعَبُ بِالكُرَةِ",
    "fa": "می‌خواهم کتاب‌ها را بخوانم",
    "hi": "हिन्दी में क्षत्रिय की किताब",
    "th": "กำแพงสีแดงอยู่ที่นี่",
    "ko": "빨간 공과 강아지",
    "zh": "红色的球和一只小狗",
    "ja": "赤いボールと小さな犬",
    "yo": "ọmọ náà ń ṣeré pẹ̀lú bọ́ọ̀lù",
}


def noisy(lang: str, rate: float, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return typos(TEXTS[lang], rng, rate, alphabet_of([TEXTS[lang]]))


def characters(text: str) -> list[str]:
    return regex.findall(r"\X", text)


@pytest.mark.parametrize("lang", TEXTS)
def test_every_text_changes_and_none_is_emptied(lang: str) -> None:
    for seed in range(40):
        for rate in (0.01, 0.3, 1.0):
            result = noisy(lang, rate, seed)
            assert result != TEXTS[lang]
            assert any(kind_of(one) for one in characters(result))


@pytest.mark.parametrize("lang", TEXTS)
def test_marks_stay_with_their_base(lang: str) -> None:
    """Every character of a noisy text is one of the language's own: none lost or gained a mark."""
    own = set(characters(TEXTS[lang]))
    for seed in range(40):
        assert set(characters(noisy(lang, 0.3, seed))) <= own


@pytest.mark.parametrize("lang", TEXTS)
def test_spaces_and_punctuation_stay(lang: str) -> None:
    def fixed(text: str) -> list[str]:
        return [one for one in characters(text) if not kind_of(one)]

    for seed in range(20):
        assert fixed(noisy(lang, 0.5, seed)) == fixed(TEXTS[lang])


def test_numbers_stay() -> None:
    """Another number means something else, and may change the label."""
    assert all("1998" in noisy("en", rate, seed) for seed in range(40) for rate in (0.1, 0.5))


def test_a_single_edit_is_one_of_four() -> None:
    text, seen = "abcd", set()
    for seed in range(300):
        result = typos(
            text, np.random.default_rng(seed), 0.1, {"LATIN Ll": ("a", "b", "c", "d", "z")}
        )
        if len(result) == 5:
            seen.add("double")
            assert any(a == b for a, b in pairwise(result))
        elif len(result) == 3:
            seen.add("delete")
        else:
            differing = [i for i in range(4) if result[i] != text[i]]
            swapped = len(differing) == 2 and sorted(result) == sorted(text)
            assert swapped or len(differing) == 1
            seen.add("swap" if swapped else "replace")
    assert seen == {"double", "delete", "swap", "replace"}


def test_replacements_keep_script_and_case() -> None:
    alphabet = alphabet_of(["Abc Де", "犬 ボ ひ 1२"])
    assert alphabet["LATIN Lu"] == ("A",) and alphabet["LATIN Ll"] == ("b", "c")
    assert alphabet["CYRILLIC Lu"] == ("Д",) and alphabet["CYRILLIC Ll"] == ("е",)
    assert alphabet["CJK Lo"] == ("犬",)
    assert "ボ" in alphabet["KATAKANA Lo"] and not any(kind.endswith("Nd") for kind in alphabet)
    for seed in range(60):
        result = typos("Ab", np.random.default_rng(seed), 1.0, alphabet)
        assert all(unicodedata.name(one).startswith("LATIN") for one in result)


def test_short_and_hopeless_texts() -> None:
    rng = np.random.default_rng(0)
    assert typos("犬", rng, 0.1, {"CJK Lo": ("犬", "猫")}) == "犬犬"
    assert typos("aa", rng, 0.1, {}) in ("aaa", "a")
    assert typos("?! 🐕", rng, 1.0, {}) == "?! 🐕"
    assert typos("", rng, 1.0, {}) == ""
    assert typos("ball", rng, 0.0, {}, least=0) == "ball"


def test_the_rate_is_the_share_of_edited_letters() -> None:
    text = "abcdefghij" * 20
    lengths = []
    for seed in range(30):
        result = typos(text, np.random.default_rng(seed), 0.1, alphabet_of([text]))
        shared = sum(a == b for a, b in zip(text, result, strict=False))
        assert shared < len(text)
        lengths.append(abs(len(result) - len(text)))
    assert max(lengths) <= 20  # 20 edits move the length by at most one each
