"""Segments join to their text, and words are found in every script."""

import pytest

from mmalign.text.perturbations.segments import put, segments, space_after, word_positions

WORDS = {
    "Don't stop, 1,998 well-known": ["Don't", "stop", "1,998", "well", "known"],
    "красный  мяч.": ["красный", "мяч"],
    "می‌خواهم کتاب": ["می‌خواهم", "کتاب"],
    "हिन्दी में।": ["हिन्दी", "में"],
    "빨간 공과": ["빨간", "공과"],
    "红色的球。": ["红", "色", "的", "球"],
    "赤いボール": ["赤", "い", "ボール"],
    "กำแพง": ["กำ", "แ", "พ", "ง"],
    "?! 🐕": [],
    "": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_a_text(text: str) -> None:
    parts = segments(text)
    assert "".join(parts) == text
    assert [parts[i] for i in word_positions(parts)] == WORDS[text]


def test_a_word_that_is_put_in_does_not_merge_with_its_neighbours() -> None:
    parts = segments("红色的")
    assert "".join(put(parts, 0, "red")) == "red色的"
    assert "".join(put(put(parts, 0, "red"), 1, "colour")) == "red colour的"
    assert "".join(put(put(parts, 1, "colour"), 0, "red")) == "red colour的"
    assert "".join(put(segments("a b"), 2, "c")) == "a c"
    assert parts == ["红", "色", "的"]


def test_what_separates_words() -> None:
    assert [space_after(word) for word in ("a", "мяч", "공", "球", "い", "ー", "แ")] == [
        *[" "] * 3,
        *[""] * 4,
    ]
