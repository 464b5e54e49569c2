"""Examples of every kind of task in every script: what changes, what never does, and how much."""

from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.config import Section, validate
from mmalign.core.errors import UserError
from mmalign.text.perturbations.perturb import PerturbationConfig, perturb
from mmalign.text.tasks.task import Answer, Example

TEXTS = {
    "en": ("The red ball rolled away, twice in 1998!", "A small dog sleeps on the green chair."),
    "tr": ("Kırmızı top iki kez yuvarlandı!", "Küçük köpek yeşil sandalyede uyuyor."),
    "ru": ("Красный мяч укатился дважды!", "Собака спит на зелёном стуле."),
    "el": ("Η κόκκινη μπάλα κύλησε μακριά!", "Ο σκύλος κοιμάται στην καρέκλα."),
    "ar": ("تدحرجت الكرة الحمراء بعيدا!", "ينام الكلب على الكرسي الأخضر؟"),
    "he": ("הכדור האדום התגלגל!", "הכלב ישן על הכיסא."),
    "hi": ("लाल गेंद दूर लुढ़क गई।", "कुत्ता हरी कुर्सी पर सोता है।"),
    "th": ("ลูกบอลสีแดงกลิ้งไป", "สุนัขนอนบนเก้าอี้"),
    "zh": ("红色的球滚走了。", "小狗睡在绿色的椅子上。"),
    "ja": ("赤いボールが転がった。", "犬は緑の椅子で寝ている。"),
    "ko": ("빨간 공이 굴러갔다!", "강아지가 의자에서 잔다."),
    "am": ("ቀይ ኳስ ተንከባለለ።", "ውሻው ወንበር ላይ ይተኛል።"),
}
CASED = ("en", "tr", "ru", "el")
WITHOUT_LAYOUT = ("ja", "ko", "am")
SURFACE = (
    "punctuation_removed",
    "punctuation_doubled",
    "punctuation_added",
    "upper",
    "lower",
    "swapped",
)
PLAIN: list[dict[str, Any]] = [
    {"kind": "characters"},
    {"kind": "keyboard"},
    *({"kind": "words", "edit": edit} for edit in ("drop", "swap", "duplicate")),
    *({"kind": "surface", "edit": edit} for edit in SURFACE),
]


class Holder(Section):
    noise: PerturbationConfig


def config(severity: int = 3, **fields: Any) -> PerturbationConfig:
    return validate(Holder, {"noise": {**fields, "severity": severity}}, "test").noise


def pairs(lang: str) -> list[Example]:
    first, second = TEXTS[lang]
    return [Example(str(i), lang, (first, second), "same") for i in range(12)]


@pytest.mark.parametrize("fields", PLAIN, ids=lambda fields: "_".join(fields.values()))
def test_noise_in_every_script(fields: dict[str, Any]) -> None:
    noise, edit = config(**fields), str(fields.get("edit"))
    for lang in TEXTS:
        clean = pairs(lang)
        noisy = perturb(clean, "similarity", noise, seed=0)
        assert noisy == perturb(clean, "similarity", noise, seed=0)
        no_case = edit in ("upper", "lower", "swapped") and lang not in CASED
        no_layout = fields["kind"] == "keyboard" and lang in WITHOUT_LAYOUT
        assert (noisy is None) == (no_case or no_layout)
        for one, other in zip(noisy or [], clean, strict=False):
            assert (one.id, one.lang, one.target) == (other.id, other.lang, other.target)
            assert all(text.strip() for text in one.texts)
            # Thai has no punctuation to change.
            assert one.texts != other.texts or (lang == "th" and edit.startswith("punctuation"))


@pytest.mark.parametrize("fields", PLAIN, ids=lambda fields: "_".join(fields.values()))
def test_severity_grows_in_the_mean(fields: dict[str, Any]) -> None:
    text = TEXTS["en"][0] + " Well, yes; no: perhaps? Never!"
    clean = [Example(str(i), "en", (text,), "x") for i in range(15)]
    means = []
    for severity in range(1, 6):
        noisy = perturb(clean, "classification", config(severity, **fields), seed=0)
        assert noisy is not None
        # What differs, in characters: `ratio` is the share of matching characters of both texts.
        differ = [1 - SequenceMatcher(None, text, one.texts[0], False).ratio() for one in noisy]
        means.append(np.mean(differ))
    assert all(low < high for low, high in pairwise(means)), means


def test_noise_depends_on_seed_draw_id_and_text_alone() -> None:
    clean, noise = pairs("en"), config(kind="characters")
    first = perturb(clean, "classification", noise, seed=0)
    assert first is not None
    assert perturb(clean[::-1], "classification", noise, seed=0) == first[::-1]
    assert perturb(clean[:1], "classification", noise, seed=0) == first[:1]
    assert len({one.texts for one in first}) == len(clean)
    assert perturb(clean, "classification", noise, seed=1) != first
    assert perturb(clean, "classification", noise, seed=0, draw=1) != first
    twice = perturb(
        [Example("1", "en", ("same text", "same text"), 1)], "multiple_choice", noise, 0
    )
    assert twice is not None and twice[0].texts[0] != twice[0].texts[1]


@pytest.mark.parametrize("fields", PLAIN, ids=lambda fields: "_".join(fields.values()))
def test_tags_stay_with_their_words(fields: dict[str, Any]) -> None:
    words = tuple(TEXTS["hi"][0].split() + TEXTS["en"][0].split())
    lang = "hi" if fields["kind"] == "keyboard" else "en"
    clean = [Example(str(i), lang, words, ("O",) * len(words)) for i in range(20)]
    noisy = perturb(clean, "tagging", config(**fields), seed=0)
    between = fields["kind"] == "words" or str(fields.get("edit")).startswith("punctuation")
    if between:
        assert noisy is None
    elif noisy is not None:
        assert all(len(one.texts) == len(words) == len(one.target) for one in noisy)
        assert all(word and " " not in word for one in noisy for word in one.texts)
        same = np.mean([a == b for one in noisy for a, b in zip(one.texts, words, strict=True)])
        assert 0 < same < 1


def test_answers_stay_where_they_are() -> None:
    context = "The red ball rolled away."
    clean = [Example("q", "en", ("What rolled away?", context), (Answer("red ball", 4),))]
    for fields in PLAIN:
        noisy = perturb(clean, "span_qa", config(**fields), seed=0)
        assert (
            noisy is not None
            and noisy[0].texts[1] == context
            and noisy[0].target == clean[0].target
        )
        assert noisy[0].texts[0] != clean[0].texts[0]


def test_a_query_changes() -> None:
    clean = [Example("q", "en", ("red ball, small dog",), ("picture-1", "picture-2"))]
    for fields in PLAIN[:5]:
        noisy = perturb(clean, "retrieval", config(**fields), seed=0)
        assert noisy is not None and noisy[0].texts != clean[0].texts
        assert noisy[0].target == clean[0].target


def test_lists_and_dictionaries(tmp_path: Path) -> None:
    (tmp_path / "en.tsv").write_text("ball\tbal\n", encoding="utf-8")
    (tmp_path / "en-de.txt").write_text("ball Ball\nred rot\ndog Hund\n", encoding="utf-8")
    for kind, known in (("typo_list", "bal"), ("code_mix", "rot")):
        noise = config(5, kind=kind, folder=str(tmp_path))
        noisy = perturb(pairs("en"), "classification", noise, seed=0)
        assert noisy is not None and known in noisy[0].texts[0].split()
        assert perturb(pairs("ru"), "classification", noise, seed=0) is None
        assert perturb(pairs("en"), "tagging", noise, seed=0) is None
    # A complete tested text is not translated: it would be the same row in another language.
    rows = [
        Example(str(i), "en", (text,), "x") for i, text in enumerate(("cat", "Dog", "a dog, red"))
    ]
    noisy = perturb(rows, "classification", noise, seed=0)
    assert noisy is not None
    assert [one.texts[0] for one in noisy] == ["cat", "Dog", "a dog, rot"]
    with pytest.raises(UserError, match="no such folder"):
        missing = config(kind="code_mix", folder=str(tmp_path / "nowhere"))
        perturb(pairs("en"), "classification", missing, seed=0)


def test_names_and_mistakes() -> None:
    names = [config(**fields).name for fields in PLAIN]
    assert names[:3] == ["characters-3", "keyboard-3", "words_drop-3"]
    assert len(set(names)) == len(names) and "surface_upper-3" in names
    with pytest.raises(UserError, match=r"`noise.severity` is 0"):
        config(0, kind="characters")
    with pytest.raises(UserError, match=r"did you mean `keyboard`"):
        config(kind="keybord")
    assert perturb([], "classification", config(kind="characters"), seed=0) == []
