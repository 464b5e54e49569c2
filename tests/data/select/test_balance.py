"""Captions are balanced by words and languages, as MetaCLIP does it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import make_image, make_pair, write_set

from mmalign.core.batch import Caption
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.select.balance import WordList
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import Selected, select
from mmalign.data.shards.reader import ShardSet


def set_of(folder: Path, captions: list[tuple[str, str]]) -> Path:
    image = make_image(0)
    pairs = [
        replace(make_pair(i, ()), key=f"k{i:04d}", image=image, captions=(Caption(lang, text),))
        for i, (lang, text) in enumerate(captions)
    ]
    return write_set(folder, pairs, samples_per_shard=100)


def choose(data: Path, out: Path, **rule: Any) -> Selected:
    return select(str(data), out, validate(SelectConfig, {"balance": rule}, "rules"), processes=2)


def texts(folder: Path) -> list[str]:
    shard_set = ShardSet(folder)
    return [shard_set.read(i).captions[0].text for i in range(len(shard_set))]


@pytest.mark.parametrize(
    ("lang", "lines", "text", "found"),
    [
        ("en", "dog\nhot dog\ncat", "A hot Dog, please", {0, 1}),
        ("en", "dog\nhot dog\ncat", "hotdogs and dogs", set()),
        ("ja", "犬\n子犬\n猫", "子犬が走る", {0, 1}),
        ("th", "แมว\nหมา", "แมวดำ", {0}),
        ("de", "Straße\n\nStraße\n über  uns ", "ÜBER UNS und die STRASSE", {0, 1}),
        ("zh", "狗\nＤＮＡ", "一只狗 dna", {0, 1}),
    ],
)
def test_words_are_found_in_texts_of_any_script(
    tmp_path: Path, lang: str, lines: str, text: str, found: set[int]
) -> None:
    (tmp_path / "words.txt").write_text(lines, encoding="utf-8")
    assert WordList.read(str(tmp_path / "words.txt"), lang, 0).find(text) == found


def test_frequent_words_are_capped_and_rare_ones_stay(tmp_path: Path) -> None:
    captions = [("en", "a dog")] * 400 + [("en", "a cat")] * 20 + [("en", "a dog and an axolotl")]
    captions += [("en", "something")] * 5 + [("de", "ein Hund")] * 30
    data = set_of(tmp_path / "data", captions)
    (tmp_path / "en.txt").write_text("dog\ncat\naxolotl\n")
    found = choose(data, tmp_path / "out", words={"en": str(tmp_path / "en.txt")}, most=50)
    kept = texts(tmp_path / "out")
    # 401 * 50 / 401 are expected: four standard deviations of a binomial distribution to either side.
    assert abs(kept.count("a dog") - 50) < 4 * np.sqrt(50 * (1 - 50 / 401))
    assert kept.count("a cat") == 20 and "a dog and an axolotl" in kept
    assert kept.count("something") == 0 and kept.count("ein Hund") == 30
    assert found.removed["captions"] == {
        "none of the words": 5,
        "words of too many captions": 400 - kept.count("a dog"),
    }
    choose(data, tmp_path / "again", words={"en": str(tmp_path / "en.txt")}, most=50)
    assert texts(tmp_path / "again") == kept
    rule = {"words": {"en": str(tmp_path / "en.txt")}, "most": {"en": 1000}, "others": "keep"}
    assert choose(data, tmp_path / "all", **rule).removed["samples"] == {}


def test_languages_are_capped(tmp_path: Path) -> None:
    data = set_of(tmp_path / "data", [("en", f"dog {i}") for i in range(90)] + [("de", "Hund")] * 9)
    found = choose(data, tmp_path / "out", captions_per_language=20)
    assert found.manifest.languages == {"en": 20, "de": 9}
    assert found.removed["samples"] == {"over 20 captions in en": 70}


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({}, "give `words` or `captions_per_language`"),
        ({"words": {"en": "none.txt"}}, "balance.words.en: none.txt cannot be read"),
        ({"words": {"en": "x"}, "most": {"de": 1}}, "`most` must be one number, or name the lang"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_one_sentence(
    tmp_path: Path, rule: dict[str, Any], sentence: str
) -> None:
    data = set_of(tmp_path / "data", [("en", "dog")])
    with pytest.raises(UserError, match=sentence):
        choose(data, tmp_path / "out", **rule)
