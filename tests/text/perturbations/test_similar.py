"""Similar characters are of the same script, and never the character itself."""

import unicodedata

import pytest

from mmalign.text.perturbations.similar import homophones, similar


def test_some_of_each_script() -> None:
    assert {"洪", "宏", "弘"} <= set(similar("红", "zh"))
    assert set(similar("か", "ja")) == {"が", "カ"}
    assert set(similar("ツ", "ja")) == {"ヅ", "ッ", "つ"}
    assert {"발", "물", "만"} <= set(similar("말", "ko")) and len(similar("말", "ko")) == 65
    assert similar("ท", "th") == ("ฐ", "ฑ", "ฒ", "ถ", "ธ")
    assert similar("a", "en") == similar("", "zh") == similar("ก", "th") == ()


@pytest.mark.parametrize("lang", ["zh", "ja"])
def test_homophones_are_common_characters_in_the_order_of_readings(lang: str) -> None:
    table = homophones(lang)
    assert len(table) == {"zh": 3755, "ja": 2965}[lang]  # the first level of each standard
    for one, others in table.items():
        assert one not in others and 3 <= len(others) <= 6
        assert all(unicodedata.name(other).startswith("CJK UNIFIED") for other in others)
