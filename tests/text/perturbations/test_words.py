"""Words go, move or come twice; the rest of a text stays."""

import numpy as np
import pytest

from mmalign.text.perturbations.segments import segments, word_positions
from mmalign.text.perturbations.words import drop_words, duplicate_words, swap_words, without

TEXTS = (
    "The red ball, (rolled) away.",
    "Мяч катится.",
    "红色的球。",
    "กำแพงสีแดง",
    "赤いボール",
    "कुत्ता भागता है।",
)


def words(text: str) -> list[str]:
    parts = segments(text)
    return [parts[i] for i in word_positions(parts)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_each_edit_does_what_it_says(text: str, share: float) -> None:
    for seed in range(20):
        dropped, swapped, doubled = (
            edit(text, np.random.default_rng(seed), share)
            for edit in (drop_words, swap_words, duplicate_words)
        )
        assert 1 <= len(words(dropped)) < len(words(text))
        assert swapped != text and sorted(swapped) == sorted(text)
        assert len(words(doubled)) > len(words(text)) and set(words(doubled)) == set(words(text))


def test_words_of_scripts_without_spaces_stay_whole() -> None:
    rng = np.random.default_rng
    assert {drop_words("我们学习汉语", rng(seed), 0.1) for seed in range(30)} == {
        "学习汉语",
        "我们汉语",
        "我们学习",
    }
    assert swap_words("红色桌子", rng(0), 1.0) == "桌子红色"
    assert duplicate_words("กำแพง", rng(0), 1.0) == "กำแพงกำแพง"


def test_spaces_after_a_drop() -> None:
    parts = ["a", " ", "b", ",", " ", "c", " ", "d"]
    assert "".join(without(parts, {0})) == "b, c d"
    assert "".join(without(parts, {2})) == "a, c d"
    assert "".join(without(parts, {5, 7})) == "a b,"
    assert "".join(without(parts, {0, 2, 5})) == ", d"


def test_a_copy_is_written_as_its_script_writes_words() -> None:
    rng = np.random.default_rng(0)
    assert duplicate_words("ball", rng, 1.0) == "ball ball"
    assert duplicate_words("球", rng, 1.0) == "球球"


def test_what_cannot_change_stays() -> None:
    for text in ("", "?!"):
        for edit in (drop_words, swap_words, duplicate_words):
            assert edit(text, np.random.default_rng(0), 1.0) == text
    assert drop_words("ball", np.random.default_rng(0), 1.0) == "ball"
    assert swap_words("the the", np.random.default_rng(0), 1.0) == "the the"
