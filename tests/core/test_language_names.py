"""Codes are named in words; what has no name stays as it is."""

import pytest

from mmalign.core.languages import direction, labelled, language_name, own_name


@pytest.mark.parametrize(
    ("code", "name", "own", "way"),
    [
        ("sw", "Swahili", "Kiswahili", "ltr"),
        ("ur", "Urdu", "اردو", "rtl"),
        ("he", "Hebrew", "עברית", "rtl"),
        ("pa", "Punjabi", "ਪੰਜਾਬੀ", "ltr"),
        ("pa-Arab", "Punjabi, Arabic", "پنجابی (عربی)", "rtl"),
        ("quz", "Cusco Quechua", "Runasimi", "ltr"),
        ("kea", "Kabuverdianu", None, "ltr"),
        ("en", "English", None, "ltr"),
        ("pt-BR", "Portuguese, Brazil", "português (Brasil)", "ltr"),
        ("lgg-x-official", "Lugbara, official", None, "ltr"),
        ("mean", "mean", None, "ltr"),
        ("x-foo", "x-foo", None, "ltr"),
        ("not a code", "not a code", None, "ltr"),
    ],
)
def test_a_code_in_words(code: str, name: str, own: str | None, way: str) -> None:
    assert (language_name(code), own_name(code), direction(code)) == (name, own, way)
    assert labelled(code) == (code if name == code else f"{name} ({code})")
