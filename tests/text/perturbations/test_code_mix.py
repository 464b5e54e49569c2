"""Only words of a dictionary change language, and never into their own."""

from pathlib import Path

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.text.perturbations.code_mix import mix, tables_from


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = {
        "de": "dog Hund\nred rot\n",
        "tr": "dog köpek\nlight IŞIK\n",
        "zh": "red 红\nball 球\ncomputer 电脑\n",
    }
    for lang, text in lines.items():
        (tmp_path / f"en-{lang}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def mixed(
    folder: Path,
    lang: str,
    text: str,
    seed: int = 0,
    share: float = 1.0,
    languages: tuple[str, ...] | None = None,
) -> str:
    tables = tables_from(lang, folder, languages)
    assert tables is not None
    return mix(text, np.random.default_rng(seed), share, tables, lang)


def test_english_goes_into_every_language_that_knows_the_word(folder: Path) -> None:
    results = {mixed(folder, "en", "The RED dog runs", seed) for seed in range(30)}
    assert results == {f"The {r} {d} runs" for r in ("rot", "红") for d in ("Hund", "köpek")}
    assert mixed(folder, "en", "Nothing known here") == "Nothing known here"


def test_other_languages_go_into_english_and_through_it_into_others(folder: Path) -> None:
    assert mixed(folder, "de", "Hund und Katze", languages=("en",)) == "dog und Katze"
    assert mixed(folder, "tr", "Işık, köpek", languages=("en",)) == "light, dog"
    assert mixed(folder, "zh", "红球。", languages=("en",)) == "red ball。"
    assert mixed(folder, "zh", "我的电脑坏了", languages=("en",)) == "我的computer坏了"
    assert mixed(folder, "de", "Hund und rot", languages=("tr", "zh")) == "köpek und 红"
    results = {mixed(folder, "de", "Hund", seed) for seed in range(20)}
    assert results == {"dog", "köpek"}


def test_which_languages(folder: Path) -> None:
    assert set(tables_from("en", folder, ("de", "en")) or {}) == {"de"}
    assert set(tables_from("de-AT", folder) or {}) == {"en", "tr", "zh"}
    assert tables_from("en", folder, ("en",)) is None
    assert set(tables_from("de", folder, ("de", "zh")) or {}) == {"zh"}
    assert tables_from("sw", folder) is None
    with pytest.raises(UserError, match="no dictionary of `fr`"):
        tables_from("en", folder, ("fr",))


def test_a_complete_tested_text_is_not_in_the_tables(folder: Path) -> None:
    tables = tables_from("de", folder, tested=["hund", "Rot und Hund"])
    assert tables == {"en": {"rot": ("red",)}, "tr": {}, "zh": {"rot": ("红",)}}


def test_the_share_counts_known_words_only(folder: Path) -> None:
    text = "dog " * 10 + "cat " * 30
    changed = [mixed(folder, "en", text, seed, 0.4).split().count("dog") for seed in range(10)]
    assert changed == [6] * 10
