"""Codes are named in words; what has no name stays as it is."""

import pytest

from mmalign.core.languages import labelled, language_name, own_name


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
