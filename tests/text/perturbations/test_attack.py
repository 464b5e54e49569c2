"""The search breaks a bag of words that can be broken, keeps to its limits, and invents no success."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.text.perturbations.attack import (
    AttackConfig,
    Predict,
    attack,
    candidates_for,
    is_attackable,
    misspellings,
    translated,
)
from mmalign.text.perturbations.characters import alphabet_of, clusters
from mmalign.text.tasks.task import Example

GOOD = {"wonderful": 2.0, "lovely": 1.5, "pleasant": 0.5}
TEXTS = (
    "what a wonderful story about two children",
    "a lovely, wonderful evening with pleasant people",
    "nothing here says anything about quality",
)


def examples(lang: str = "en") -> list[Example]:
    return [Example(str(i), lang, (text,), "good") for i, text in enumerate(TEXTS)]


def config(**fields: Any) -> AttackConfig:
    tree = {"kind": "attack", "candidates": "characters", **fields}
    return validate(AttackConfig, tree, "test")


def bag_of_words(asked: list[Example] | None = None) -> Predict:
    """Class 1 where the words of `GOOD` weigh more than 0.4; remembers what it is asked."""

    def predict(texts: list[Example]) -> np.ndarray:
        if asked is not None:
            asked.extend(texts)
        weight = [sum(GOOD.get(w.strip(","), 0) for w in one.texts[0].split()) for one in texts]
        right = 1 / (1 + np.exp(0.4 - np.array(weight)))
        return np.stack([1 - right, right], axis=1)

    return predict


def run(predict: Predict, settings: AttackConfig, right: int = 1, **more: Any) -> list[Any]:
    candidates = candidates_for(settings, examples())
    assert candidates is not None
    return attack(examples(), [right] * 3, predict, candidates, settings, seed=0, **more)


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.replace(",", "").split(), after.replace(",", "").split(), strict=True)
    return [(a, b) for a, b in pairs if a != b]


def test_a_bag_of_words_breaks_at_its_important_words() -> None:
    first, second, third = run(bag_of_words(), config(max_words=0.5))
    assert first.broken and [a for a, _ in changed_words(TEXTS[0], first.example.texts[0])] == [
        "wonderful"
    ]
    assert second.broken
    assert [a for a, _ in changed_words(TEXTS[1], second.example.texts[0])] == list(
        ("lovely", "wonderful", "pleasant")
    )
    assert not third.broken and third.queries == 0  # wrong before: no success
    assert [one.was_correct for one in (first, second, third)] == [True, True, False]
    assert third.example == examples()[2]


def test_the_same_seed_finds_the_same() -> None:
    assert run(bag_of_words(), config()) == run(bag_of_words(), config())


def test_few_words_may_change() -> None:
    first, second, _ = run(bag_of_words(), config(max_words=0.01))
    assert first.broken and not second.broken  # one word always may; the second needs three
    assert len(changed_words(TEXTS[1], second.example.texts[0])) == 1


@pytest.mark.parametrize("budget", [2, 7, 20, 60])
def test_queries_are_counted_and_bounded(budget: int) -> None:
    asked: list[Example] = []
    results = run(bag_of_words(asked), config(budget=budget))
    assert all(one.queries <= budget for one in results)
    assert sum(one.queries for one in results) == len(asked) - len(TEXTS)


def test_one_call_a_round_serves_all_examples() -> None:
    calls: list[int] = []
    inner = bag_of_words()

    def predict(texts: list[Example]) -> np.ndarray:
        calls.append(len(texts))
        return inner(texts)

    run(predict, config(max_words=1.0))
    most_words = max(len(text.split()) for text in TEXTS)
    assert len(calls) <= 2 + most_words


def test_nothing_is_found_where_nothing_helps() -> None:
    def stubborn(texts: list[Example]) -> np.ndarray:
        return np.tile([0.2, 0.8], (len(texts), 1))

    for one, example in zip(run(stubborn, config()), examples(), strict=True):
        assert not one.broken and one.example == example and one.queries > 0


def test_dissimilar_changes_are_not_asked_about() -> None:
    asked: list[Example] = []

    def nothing_alike(texts: list[str], changed: list[str]) -> np.ndarray:
        assert len(texts) == len(changed) and set(texts) <= set(TEXTS)
        return np.zeros(len(texts))

    settings = config(min_similarity=0.5)
    results = run(bag_of_words(asked), settings, similar=nothing_alike)
    assert not any(one.broken for one in results)
    assert all(len(one.texts[0].split()) <= len(TEXTS[1].split()) for one in asked)
    assert [one.example for one in results] == examples()
    all_alike: Callable[[list[str], list[str]], np.ndarray] = lambda a, _: np.ones(len(a))  # noqa: E731
    same = run(bag_of_words(), settings, similar=all_alike)
    assert same == run(bag_of_words(), config())


@pytest.mark.parametrize("word", ["wonderful", "красивый", "लड़कियाँ", "빨간색", "الأولاد"])
@pytest.mark.parametrize("edits", [1, 2])
def test_misspellings_keep_the_first_letter(word: str, edits: int) -> None:
    found = misspellings(word, np.random.default_rng(0), alphabet_of([word]), edits, 30, "en")
    assert found and word not in found and len(set(found)) == len(found)
    for one in found:
        assert clusters(one)[0] == clusters(word)[0]
        assert abs(len(clusters(one)) - len(clusters(word))) <= edits
        assert set(clusters(one)) <= set(clusters(word))


def test_short_words_and_numbers_have_no_misspellings() -> None:
    rng = np.random.default_rng(0)
    assert [misspellings(word, rng, {}, 1, 8, "en") for word in ("of", "1998", "B52s")] == [[]] * 3


@pytest.mark.parametrize(
    ("lang", "word", "some"),
    [
        ("zh-CN", "红", "洪"),
        ("zh-CN", "计算机", "计算积"),
        ("ja", "犬", "権"),
        ("ja", "は", "ば"),
        ("ko", "말", "발"),
        ("th", "สี", "ศี"),
    ],
)
def test_short_words_of_other_scripts_get_similar_letters(lang: str, word: str, some: str) -> None:
    found = misspellings(word, np.random.default_rng(0), {}, 1, 100, lang)
    assert some in found and word not in found and len(set(found)) == len(found)
    assert all(len(one) == len(word) for one in found)
    assert len(misspellings(word, np.random.default_rng(0), {}, 1, 2, lang)) == min(2, len(found))
    row = Example("1", lang, (word,), "x")
    candidates = candidates_for(config(), [row])
    assert candidates is not None and is_attackable(row, candidates, seed=0)
    assert not is_attackable(Example("2", lang, ("12",), "x"), candidates, seed=0)


def test_a_chinese_word_is_attacked_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "en-zh.txt").write_text("computer 电脑\n", encoding="utf-8")
    settings = config(candidates="code_mix", folder=str(tmp_path))
    rows = [Example("1", "zh", ("我的电脑坏了",), "x")]

    def predict(texts: list[Example]) -> np.ndarray:
        right = np.array([0.9 if "电脑" in one.texts[0] else 0.1 for one in texts])
        return np.stack([right, 1 - right], axis=1)

    candidates = candidates_for(settings, rows)
    assert candidates is not None
    (result,) = attack(rows, [0], predict, candidates, settings, seed=0)
    assert result.broken and result.example.texts == ("我的computer坏了",)


def test_translations_break_it_too(tmp_path: Path) -> None:
    text = "wonderful wunderbar\nlovely schön\nlovely reizend\npleasant angenehm\n"
    (tmp_path / "en-de.txt").write_text(text, encoding="utf-8")
    (tmp_path / "en-sw.txt").write_text("lovely nzuri\n", encoding="utf-8")
    settings = config(candidates="code_mix", folder=str(tmp_path), max_words=0.5)
    first, second, _ = run(bag_of_words(), settings)
    assert first.example.texts[0] == "what a wunderbar story about two children" and first.broken
    assert second.broken and second.queries == 3 + 5
    assert candidates_for(settings, examples("ru")) is None
    tables = {"de": {"lovely": ("schön", "reizend")}, "sw": {"lovely": ("nzuri",)}}
    rng = np.random.default_rng(0)
    assert translated("Lovely", rng, tables, "en", 2) == ["schön", "nzuri"]


def test_two_texts_and_lone_words() -> None:
    def predict(texts: list[Example]) -> np.ndarray:
        right = np.array([0.9 if "ball" in one.texts[1] else 0.1 for one in texts])
        return np.stack([right, 1 - right], axis=1)

    pair = [Example("1", "en", ("a dog plays", "ball"), "same")]
    settings = config()
    candidates = candidates_for(settings, pair)
    assert candidates is not None
    (result,) = attack(pair, [0], predict, candidates, settings, seed=0)
    assert result.broken and result.example.texts[0] == "a dog plays"
    assert attack([], [], predict, candidates, settings, seed=0) == []


def test_code_mix_needs_a_folder() -> None:
    with pytest.raises(UserError, match="needs `folder`"):
        config(candidates="code_mix")
    assert config().name == "attack_characters"
