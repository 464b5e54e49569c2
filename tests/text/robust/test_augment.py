"""What a loop gets: the examples to train on, and a hand for its batches."""

from pathlib import Path

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.text.robust.augment import AugmentConfig, build_augmentation, rewriter
from mmalign.text.robust.code_switch import CodeSwitchConfig
from mmalign.text.robust.rs_da import RsDaConfig
from mmalign.text.tasks.example import Answer, Example

LABELLED = [Example(str(i), "en", ("a red ball", "a dog"), "yes") for i in range(4)]
TAGGED = [
    Example("0", "en", ("a", "red", "ball"), ("O", "A", "B")),
    Example("1", "en", ("ball",), ("B",)),
]
FOUND = [
    Example("0", "en", ("a ball", "red"), ("7",)),
    Example("1", "en", ("ball", "dog"), ("1", "2")),
]
ASKED = [Example("0", "en", ("a ball?", "a red ball"), (Answer("red", 2),))]


@pytest.fixture
def rs_da(tmp_path: Path) -> AugmentConfig:
    (tmp_path / "x.tsv").write_text("word\tneighbours\nball\torb sphere\n")
    return RsDaConfig(kind="rs_da", neighbours=str(tmp_path / "x.tsv"), copies=3)


@pytest.fixture
def code_switch(tmp_path: Path) -> AugmentConfig:
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\nball\tKugel\n")
    return CodeSwitchConfig(
        kind="code_switch", dictionaries=str(tmp_path), sentence_ratio=1.0, token_ratio=1.0
    )


def test_none_changes_nothing() -> None:
    train, batch = build_augmentation(None, LABELLED, seed=0)
    assert train == LABELLED
    assert batch(LABELLED, np.random.default_rng(0)) == LABELLED


def test_rs_da_works_before_training(rs_da: AugmentConfig) -> None:
    train, batch = build_augmentation(rs_da, LABELLED, seed=0)
    assert len(train) == 12 and len({one.texts for one in train}) > 1
    assert batch(train, np.random.default_rng(0)) == train


def test_code_switch_works_batch_by_batch(code_switch: AugmentConfig) -> None:
    train, batch = build_augmentation(code_switch, LABELLED, seed=0)
    assert train == LABELLED
    assert {one.texts for one in batch(train, np.random.default_rng(0))} == {
        ("a red Kugel", "a dog")
    }


def test_tags_stay_with_their_words(rs_da: AugmentConfig, code_switch: AugmentConfig) -> None:
    train, batch = build_augmentation(code_switch, TAGGED, seed=0)
    switched = batch(train, np.random.default_rng(0))
    assert [one.texts for one in switched] == [("a", "red", "Kugel"), ("Kugel",)]
    assert [one.target for one in switched] == [one.target for one in TAGGED]
    with pytest.raises(UserError, match="tagging"):
        build_augmentation(rs_da, TAGGED, seed=0)


def test_the_ids_of_retrieval_are_no_tags(rs_da: AugmentConfig, code_switch: AugmentConfig) -> None:
    assert len(build_augmentation(rs_da, FOUND, seed=0)[0]) == 6
    _, batch = build_augmentation(code_switch, FOUND, seed=0)
    assert batch(FOUND, np.random.default_rng(0))[0].texts == ("a Kugel", "red")


def test_answers_may_not_move(rs_da: AugmentConfig, code_switch: AugmentConfig) -> None:
    for config in (rs_da, code_switch):
        with pytest.raises(UserError, match="span_qa"):
            build_augmentation(config, ASKED, seed=0)


def test_a_rewriter_draws_one_view_of_each(rs_da: AugmentConfig) -> None:
    views = rewriter(rs_da, LABELLED)(LABELLED * 20, np.random.default_rng(0))
    assert [one.id for one in views] == [one.id for one in LABELLED * 20]
    assert {one.texts[0] for one in views} == {"a red ball", "a red orb", "a red sphere"}
