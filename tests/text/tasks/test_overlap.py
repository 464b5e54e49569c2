"""Tested rows that occur in training or dev are found by id, by equal text and by nearly equal text."""

import numpy as np
import pytest

from mmalign.text.tasks import overlap as module
from mmalign.text.tasks.overlap import known_rows, overlap
from mmalign.text.tasks.task import Answer, Example, Task

LONG = "the quick brown fox jumps over the lazy dog near the old river bank today"


def row(name: str, *texts: str, lang: str = "en", target: str = "a") -> Example:
    return Example(name, lang, texts, target)


def found(tested: Example, *others: Example) -> str:
    by_id, by_text, near = known_rows([tested], others, "classification")
    return "".join(word for word, one in (("i", by_id), ("t", by_text), ("n", near)) if one[0])


@pytest.mark.parametrize(
    ("tested", "other", "expected"),
    [
        # One id, once with the name of each split in front.
        (row("train-fox7", "new"), row("test-fox7", "other"), "i"),
        (row("de-test-Q17", "neu", lang="de"), row("de-train-Q17", "other"), "i"),
        # Publishers number each split from 1: no item is shared.
        (row("test-7", "new"), row("train-7", "other"), ""),
        (row("contest-fox", "new"), row("con-fox", "other"), ""),
        # Equal but for what a reader would not notice.
        (row("1", "Ｔhe  Fox"), row("2", "the fox"), "t"),
        (row("1", LONG), row("2", LONG.replace("today", "yesterday")), "n"),
        (row("1", LONG), row("2", LONG.upper() + "!"), "n"),
        (row("1", LONG), row("2", " ".join(LONG.split()[:6])), ""),
        # Each text of a pair must be found: premises are shared by many pairs.
        (row("1", LONG, "it sleeps"), row("2", LONG, "it is awake"), ""),
        (row("1", LONG, "it sleeps"), row("2", LONG + "!", "it sleeps"), "n"),
        (
            row("1", "猫が川のそばで眠っている", lang="ja"),
            row("2", "猫が川のそばで眠っていた"),
            "n",
        ),
        (row("1", "!"), row("2", "?"), ""),
    ],
)
def test_what_a_row_shares_with_another(tested: Example, other: Example, expected: str) -> None:
    assert found(tested, other) == expected


def test_many_rows_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choice(words, 20, replace=False)) for _ in range(300)]
    near = [text.rpartition(" ")[0] + " other" for text in texts[:200]]
    tested = [row(f"t{i}", text) for i, text in enumerate(near)]
    others = [row(f"o{i}", text) for i, text in enumerate(texts[100:])]
    whole = known_rows(tested, others, "classification")[2]
    assert not whole[:100].any() and whole[100:].mean() > 0.95  # 19 of 21 words
    monkeypatch.setattr(module, "_AT_A_TIME", 7)
    np.testing.assert_array_equal(known_rows(tested, others, "classification")[2], whole)


def test_dev_rows_that_are_tested_are_reported() -> None:
    """SQuAD's dev set chooses the weights, and XQuAD's questions are translations of some of its own."""

    def asked(name: str, question: str, lang: str = "en") -> Example:
        return Example(name, lang, (question, LONG), (Answer("fox", 16),))

    train = [asked("5a01", "What colour is the sky above the harbour?")]
    dev = [asked("56beb4", "Who jumps?"), asked("56beb5", "Where?")]
    tests = {"de": [asked("56beb4", "Wer springt?", "de"), asked("77", "Wann?", "de")]}
    task = Task("xquad", "span_qa", "en", (), train, {"en": dev}, tests, {})
    words = overlap(task)
    assert "both the item and the language are new" in words
    assert "1 of 2 test rows show an item of `en` dev, which chooses the weights: 1 by id" in words
