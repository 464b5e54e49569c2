"""RS-DA as published: where words are replaced, how often, and what stays."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.text.robust.rs_da import (
    RsDaConfig,
    augment,
    expected_share,
    read_neighbours,
)
from mmalign.text.tasks.example import Example

NEIGHBOURS = {
    "dog": ["hound"],
    "red": ["crimson", "scarlet", "ruby"],
    "big": [f"large{i}" for i in range(8)],
    "lonely": [],
}
TEXT = "a big red dog  and a Dog dog. lonely red"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "neighbours.json"
    path.write_text(json.dumps(NEIGHBOURS))
    return path


def config_for(path: Path, copies: int) -> RsDaConfig:
    return RsDaConfig(kind="rs_da", neighbours=str(path), copies=copies)


def test_both_layouts_say_the_same(path: Path, tmp_path: Path) -> None:
    table = tmp_path / "neighbours.tsv"
    rows = [f"{word}\t{' '.join(near)}" for word, near in NEIGHBOURS.items()]
    table.write_text("\n".join(["word\tneighbours", *rows]) + "\n")
    assert read_neighbours(table) == read_neighbours(path)
    assert read_neighbours(path)["red"] == ("crimson", "scarlet", "ruby")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", '{"dog": "hound"}', "`dog`"),
        ("x.json", "{", "not JSON"),
        ("x.tsv", "word\tnear\ndog\thound\n", "line 2.*neighbours"),
        ("x.tsv", "word\tneighbours\ndog\n", "line 2"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_neighbours(tmp_path / name)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_neighbours(tmp_path / "none.json")


def test_copies_follow_their_example_and_keep_all_but_the_texts(path: Path) -> None:
    train = [Example(str(i), "en", (TEXT, TEXT), f"label {i}") for i in range(3)]
    copies = augment(train, config_for(path, 4), seed=0)
    assert [one.id for one in copies] == [id for id in "012" for _ in range(4)]
    assert all(one.target == f"label {one.id}" and one.lang == "en" for one in copies)
    assert any(one.texts[0] != one.texts[1] for one in copies), "texts are drawn each on its own"
    assert augment(train, config_for(path, 4), seed=0) == copies
    assert augment(train, config_for(path, 4), seed=1) != copies


def test_only_whole_words_of_the_same_case_are_replaced(path: Path) -> None:
    for one in augment([Example("0", "en", (TEXT,), "x")], config_for(path, 50), seed=0):
        words = one.texts[0].split(" ")
        assert len(words) == len(TEXT.split(" "))
        for word, before in zip(words, TEXT.split(" "), strict=True):
            assert word in (before, *NEIGHBOURS.get(before, ()))


def test_words_are_replaced_as_often_as_an_independent_count_expects(path: Path) -> None:
    copies = augment([Example("0", "en", (TEXT,), "x")], config_for(path, 4000), seed=0)
    replaced: Counter[int] = Counter()
    for one in copies:
        for place, (word, before) in enumerate(
            zip(one.texts[0].split(" "), TEXT.split(" "), strict=True)
        ):
            replaced[place] += word != before
    # a big red dog "" and a Dog dog. lonely red
    by_hand = [0, 8 / 9, 3 / 4, 1 / 2, 0, 0, 0, 0, 0, 0, 3 / 4]
    shares = [replaced[place] / len(copies) for place in range(len(by_hand))]
    assert shares == pytest.approx(by_hand, abs=0.03)
    share = sum(shares) / len(shares)
    assert share == pytest.approx(sum(by_hand) / len(by_hand), abs=0.01)
    assert expected_share([TEXT], read_neighbours(path)) == pytest.approx(
        sum(by_hand) / len(by_hand)
    )


def test_every_choice_is_as_likely(path: Path) -> None:
    copies = augment([Example("0", "en", ("red",), "x")], config_for(path, 8000), seed=0)
    counts = Counter(one.texts[0] for one in copies)
    assert {word: n / 8000 for word, n in counts.items()} == pytest.approx(
        dict.fromkeys(("red", *NEIGHBOURS["red"]), 0.25), abs=0.02
    )


def test_without_neighbours_one_copy_is_the_example(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("word\tneighbours\n")
    train = [Example("0", "en", (TEXT, " spaces  stay "), "x")]
    assert augment(train, config_for(tmp_path / "x.tsv", 1), seed=0) == train
