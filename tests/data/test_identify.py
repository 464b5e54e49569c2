"""Languages are identified with a confidence, and scripts are compared with them."""

import sys

import pytest

from mmalign.core.errors import UserError
from mmalign.data import identify
from mmalign.data.identify import identifier, script_share


def test_languages_are_identified_with_a_confidence() -> None:
    pytest.importorskip("py3langid", reason="the extra `identify` is not installed")
    code, confidence = identifier()("Der Hund schläft unter dem grünen Stuhl")
    assert code == "de" and 0.5 < confidence <= 1
    assert identifier()("Mbwa analala chini ya kiti cha kijani")[0] == "sw"
    assert identifier()("taxi")[1] < confidence
    assert identifier()("123 !?") == ("und", 0.0)


def test_identification_without_its_library_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identify._py3langid.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"mmalign\[identify\]"):
        identifier()


def test_a_model_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"no\.bin: no such model; name a fastText file, or `py3langid`"
    ):
        identifier("no.bin")


@pytest.mark.parametrize(
    ("text", "lang", "share"),
    [
        ("a dog", "en", 1.0),
        ("собака", "ru", 1.0),
        ("sobaka", "ru", 0.0),
        ("собака", "sr", 1.0),
        ("sobaka", "sr-Latn", 1.0),
        ("犬が走る", "ja", 1.0),
        ("狗跑了 IMG", "zh", 0.5),
        ("개", "ko", 1.0),
        ("कुत्ता", "hi", 1.0),
        ("123 !?", "en", None),
        ("a dog", "und", None),
    ],
)
def test_the_script_of_a_caption_is_compared_with_its_language(
    text: str, lang: str, share: float | None
) -> None:
    assert script_share(text, lang) == share
