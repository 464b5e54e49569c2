"""Languages are identified with a confidence, and scripts are compared with them."""

import random
import sys
from pathlib import Path

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


def test_a_fasttext_model_identifies_languages(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext", reason="needs fasttext, also to train the model")
    if not hasattr(fasttext, "train_supervised"):
        pytest.skip("fasttext-predict does not train")
    words = {"deu_Latn": "der hund und die katze", "eng_Latn": "the dog or a cat is"}
    rng = random.Random(0)
    lines = [
        f"__label__{label} {' '.join(rng.choices(text.split(), k=5))}\n"
        for _ in range(1000)
        for label, text in words.items()
    ]
    (tmp_path / "train.txt").write_text("".join(lines))
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=8, bucket=1000, verbose=0)
    model.save_model(str(tmp_path / "model.bin"))
    classify = identifier(str(tmp_path / "model.bin"))
    code, confidence = classify("der hund\nund die katze")
    assert code == "de" and 0.8 < confidence <= 1
    assert classify("the dog is a cat")[0] == "en" and classify("123") == ("und", 0.0)
    with pytest.raises(UserError, match="not a fastText model"):
        identifier(str(tmp_path / "train.txt"))


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
