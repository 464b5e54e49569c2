"""Segments join to their text, and words are found in every script."""

import pytest

from mmalign.text.perturbations.segments import put, segments, space_after, word_positions

WORDS = {
    "Don't stop, 1,998 well-known": ["Don't", "stop", "1,998", "well", "known"],
    "красный  мяч.": ["красный", "мяч"],
    "می‌خواهم کتاب": ["می‌خواهم", "کتاب"],
    "हिन्दी में।": ["हिन्दी", "में"],
    "빨간 공과": ["빨간", "공과"],
    "红色的球在桌子上。": ["红色", "的", "球", "在", "桌子", "上"],
    "紅色的球": ["紅色", "的", "球"],
    "赤いボールを見る": ["赤い", "ボール", "を", "見る"],
    "กำแพงสีน้ำตาล": ["กำแพง", "สี", "น้ำตาล"],
    "ນ້ຳຕານ": ["ນ້ຳ", "ຕານ"],
    "ឆ្មាខ្មៅ": ["ឆ្មា", "ខ្មៅ"],
    "𠮟る 🐕 𠀀": ["𠮟", "る", "𠀀"],
    "?! 🐕": [],
    "": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_a_text(text: str) -> None:
    parts = segments(text)
    assert "".join(parts) == text
    assert [parts[i] for i in word_positions(parts)] == WORDS[text]


def test_a_word_that_is_put_in_does_not_merge_with_its_neighbours() -> None:
    parts = segments("红色桌子的")
    assert "".join(put(parts, 0, "red")) == "red桌子的"
    assert "".join(put(put(parts, 0, "red"), 1, "table")) == "red table的"
    assert "".join(put(put(parts, 1, "table"), 0, "red")) == "red table的"
    assert "".join(put(segments("a b"), 2, "c")) == "a c"
    assert parts == ["红色", "桌子", "的"]


def test_what_separates_words() -> None:
    assert [space_after(word) for word in ("a", "мяч", "공", "球", "い", "ー", "แ")] == [
        *[" "] * 3,
        *[""] * 4,
    ]
