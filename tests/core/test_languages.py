"""Codes are named in words; what has no name stays as it is."""

import pytest

from mmalign.core.languages import (
    canonical_language,
    is_language_code,
    labelled,
    language_name,
    own_name,
)


@pytest.mark.parametrize(
    ("code", "name", "own"),
    [
        ("sw", "Swahili", "Kiswahili"),
        ("ur", "Urdu", "اردو"),
        ("he", "Hebrew", "עברית"),
        ("pa", "Punjabi", "ਪੰਜਾਬੀ"),
        ("pa-Arab", "Punjabi, Arabic", "پنجابی (عربی)"),
        ("quz", "Cusco Quechua", "Runasimi"),
        ("kea", "Kabuverdianu", None),
        ("en", "English", None),
        ("pt-BR", "Portuguese, Brazil", "português (Brasil)"),
        ("lgg-x-official", "Lugbara, official", None),
        ("mean", "mean", None),
        ("x-foo", "x-foo", None),
        ("not a code", "not a code", None),
    ],
)
def test_a_code_in_words(code: str, name: str, own: str | None) -> None:
    assert (language_name(code), own_name(code)) == (name, own)
    assert labelled(code) == (code if name == code else f"{name} ({code})")


@pytest.mark.parametrize(
    ("code", "canonical"),
    [
        ("EN", "en"),
        ("iw", "he"),
        ("zh_CN", "zh-CN"),
        ("zh-hans", "zh-Hans"),
        ("PT-br", "pt-BR"),
        ("deu", "de"),
        ("quz", "quz"),
        ("lgg-x-official", "lgg-x-official"),
        ("jp", "jp"),
    ],
)
def test_a_code_has_one_spelling(code: str, canonical: str) -> None:
    assert canonical_language(code) == canonical == canonical_language(canonical)


@pytest.mark.parametrize("code", ["", "e", "en ", "../en", "not a code", "en--US", "en_US.UTF-8"])
def test_what_is_no_code_stays_as_it_is_and_is_no_code(code: str) -> None:
    assert canonical_language(code) == code
    assert not is_language_code(code)
