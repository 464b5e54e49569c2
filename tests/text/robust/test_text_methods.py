"""Methods that rewrite the training texts: RS-DA before training, code-switching batch by batch."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.text.robust.code_switch import CodeSwitchConfig, tables_of
from mmalign.text.robust.method import AugmentConfig, build_augmentation
from mmalign.text.robust.rs_da import RsDaConfig, read_neighbours
from mmalign.text.tasks.task import Answer, Example

NEIGHBOURS = {
    "dog": ["hound"],
    "red": ["crimson", "scarlet", "ruby"],
    "big": [f"large{i}" for i in range(8)],
    "lonely": [],
}
TEXT = "a big red dog  and a Dog dog. lonely red"
SWITCHED = "A red ball, (ball) and red dogs"


@pytest.fixture
def rs_da(tmp_path: Path) -> RsDaConfig:
    path = tmp_path / "neighbours.json"
    path.write_text(json.dumps(NEIGHBOURS))
    return RsDaConfig(kind="rs_da", neighbours=str(path), copies=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\nball\tKugel\nball\tTanz fest\nred\trot\n")
    (tmp_path / "en-fr.tsv").write_text("en\ttranslation\nball\tballe\n")
    return tmp_path


def switching(
    folder: Path, sentences: float = 1.0, words: float = 1.0, **fields: Any
) -> CodeSwitchConfig:
    settings = {"sentence_ratio": sentences, "token_ratio": words, **fields}
    return CodeSwitchConfig(kind="code_switch", dictionaries=str(folder), **settings)


def copies(config: RsDaConfig, texts: tuple[str, ...], count: int, seed: int = 0) -> list[Example]:
    many = config.model_copy(update={"copies": count})
    return build_augmentation(many, [Example("0", "en", texts, "x")], seed, "en")[0]


def draws(config: AugmentConfig, one: tuple[str, ...] | Example, count: int) -> list[Example]:
    example = one if isinstance(one, Example) else Example("0", "en", one, "x")
    _, rewrite = build_augmentation(config, [example], seed=0, source="en")
    return rewrite([example] * count, np.random.default_rng(0))


def test_without_augmentation_nothing_changes() -> None:
    train = [Example(str(i), "en", (TEXT, "ball"), "yes") for i in range(4)]
    examples, rewrite = build_augmentation(None, train, seed=0, source="en")
    assert examples == train == rewrite(train, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", '{"dog": "hound"}', "`dog`.*fix that entry"),
        ("x.json", "{", "not JSON"),
        ("x.tsv", "word\tnear\ndog\thound\n", "line 2.*neighbours"),
        ("x.tsv", "word\tneighbours\ndog\n", "line 2"),
        ("x.json", '{"dog": ["\\ud83d"]}', "`dog` must have a list of words"),
        ("x.json", "[" * 100_000, "not JSON"),
        ("x.tsv", None, "no such file"),
    ],
)
def test_a_broken_file_of_neighbours_is_one_sentence(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_neighbours(tmp_path / name)


def test_both_layouts_of_neighbours_are_equal(rs_da: RsDaConfig, tmp_path: Path) -> None:
    table = tmp_path / "neighbours.tsv"
    rows = [f"{word}\t{' '.join(near)}" for word, near in NEIGHBOURS.items()]
    table.write_text("\n".join(["word\tneighbours", *rows]) + "\n")
    assert read_neighbours(table) == read_neighbours(Path(rs_da.neighbours))
    assert read_neighbours(table)["red"] == ("crimson", "scarlet", "ruby")


def test_copies_keep_all_but_the_texts(rs_da: RsDaConfig) -> None:
    train = [Example(str(i), "en", (TEXT, TEXT), f"label {i}") for i in range(3)]
    found, rewrite = build_augmentation(rs_da, train, seed=0, source="en")
    assert [one.id for one in found] == [*"012"] * 4  # one pass behind the other
    assert all(one.target == f"label {one.id}" and one.lang == "en" for one in found)
    assert any(one.texts[0] != one.texts[1] for one in found), "each text is drawn independently"
    assert build_augmentation(rs_da, train, seed=0, source="en")[0] == found
    assert build_augmentation(rs_da, train, seed=1, source="en")[0] != found
    assert rewrite(found, np.random.default_rng(0)) == found, "batches are not drawn again"


def test_words_are_replaced_evenly_by_their_neighbours(rs_da: RsDaConfig, tmp_path: Path) -> None:
    found = copies(rs_da, (TEXT,), 4000)
    replaced: Counter[int] = Counter()
    for one in found:
        pairs = zip(one.texts[0].split(" "), TEXT.split(" "), strict=True)
        for position, (word, before) in enumerate(pairs):
            assert word in (before, *NEIGHBOURS.get(before, ()))  # complete words, same case
            replaced[position] += word != before
    # a big red dog "" and a Dog dog. lonely red: m / (m + 1) for a word with m neighbours
    by_hand = [0, 8 / 9, 3 / 4, 1 / 2, 0, 0, 0, 0, 0, 0, 3 / 4]
    shares = [replaced[position] / 4000 for position in range(len(by_hand))]
    assert shares == pytest.approx(by_hand, abs=0.03)
    counts = Counter(one.texts[0] for one in copies(rs_da, ("red",), 8000))
    assert {word: n / 8000 for word, n in counts.items()} == pytest.approx(
        dict.fromkeys(("red", *NEIGHBOURS["red"]), 0.25), abs=0.02
    )
    (tmp_path / "x.tsv").write_text("word\tneighbours\n")
    nothing = RsDaConfig(kind="rs_da", neighbours=str(tmp_path / "x.tsv"))
    texts = (TEXT, " spaces  stay ")
    assert copies(nothing, texts, 1) == [Example("0", "en", texts, "x")]


def test_words_are_found_between_punctuation_and_the_rest_is_kept(folder: Path) -> None:
    found = draws(switching(folder, languages=("fr",)), (SWITCHED,), 1)
    assert found[0].texts == ("A red balle, (balle) and red dogs",)


def test_language_and_translation_are_drawn_evenly(folder: Path) -> None:
    found = draws(switching(folder), ("Ball", "red"), 4000)
    counts = Counter(one.texts[0] for one in found)
    assert {word: n / 4000 for word, n in counts.items()} == pytest.approx(
        {"Kugel": 0.25, "Tanz fest": 0.25, "balle": 0.5}, abs=0.03
    )
    reds = Counter(one.texts[1] for one in found)
    assert reds["rot"] / 4000 == pytest.approx(0.5, abs=0.03), "French does not know it"


def test_ratios_are_probabilities_of_sentences_and_words(folder: Path) -> None:
    config = switching(folder, sentences=0.3, words=0.4)
    found = [one.texts[0].split(" ") for one in draws(config, ("ball " * 9 + "ball",), 3000)]
    switched = [sum(word != "ball" for word in words if word != "fest") for words in found]
    assert np.mean([n > 0 for n in switched]) == pytest.approx(0.3 * (1 - 0.6**10), abs=0.03)
    assert np.mean([n / 10 for n in switched if n]) == pytest.approx(0.4 / (1 - 0.6**10), abs=0.03)
    for none in (switching(folder, sentences=0.0), switching(folder, words=0.0)):
        assert {one.texts for one in draws(none, (SWITCHED, "ball"), 50)} == {(SWITCHED, "ball")}


def test_each_text_of_an_example_is_drawn_independently(folder: Path) -> None:
    config = switching(folder, sentences=0.5, languages=("fr",))
    seen = {one.texts for one in draws(config, ("ball", "ball"), 100)}
    assert seen == {(a, b) for a in ("ball", "balle") for b in ("ball", "balle")}


def test_labelled_words_are_one_sentence_and_keep_their_number(
    folder: Path, rs_da: RsDaConfig
) -> None:
    tagged = Example("0", "en", ("a", "ball", "ball", "here"), ("O", "A", "B", "O"))
    found = draws(switching(folder, sentences=0.5, languages=("de",)), tagged, 200)
    assert {(len(one.texts), one.target) for one in found} == {(4, tagged.target)}
    assert any("Tanz fest" in one.texts for one in found)
    for one in found:  # with a token ratio of 1 all words of a sentence are switched or none
        assert (one.texts[1] == "ball") == (one.texts[2] == "ball")
    with pytest.raises(UserError, match="tagging"):
        build_augmentation(rs_da, [tagged], seed=0, source="en")


def test_the_ids_of_retrieval_are_not_tags(folder: Path, rs_da: RsDaConfig) -> None:
    found = [
        Example("0", "en", ("a ball", "red"), ("7",)),
        Example("1", "en", ("ball", "dog"), ("1", "2")),
    ]
    assert len(build_augmentation(rs_da, found, seed=0, source="en")[0]) == 8
    _, rewrite = build_augmentation(
        switching(folder, languages=("fr",)), found, seed=0, source="en"
    )
    assert rewrite(found, np.random.default_rng(0))[0].texts == ("a balle", "red")


def test_what_does_not_fit_is_one_sentence(folder: Path, rs_da: RsDaConfig) -> None:
    asked = [Example("0", "en", ("a ball?", "a red ball"), (Answer("red", 2),))]
    for config in (rs_da, switching(folder)):
        with pytest.raises(UserError, match="span_qa"):
            build_augmentation(config, asked, seed=0, source="en")
    with pytest.raises(UserError, match="`sw`"):
        tables_of(switching(folder, languages=("sw",)), asked)
    labelled = [Example("0", lang, ("mpira",), "x") for lang in ("sw", "yo")]
    with pytest.raises(UserError, match="no dictionary leads from `sw`, `yo` to `languages`"):
        build_augmentation(switching(folder), labelled, seed=0, source="sw")


MIXED = [
    Example("0", "sw", ("a red ball",), "x"),  # no dictionary
    Example("0", "de", ("a red Kugel",), "x"),  # `red` is no German word
    Example("0", "en", ("a red Kugel",), "x"),
]


def test_a_row_is_switched_by_the_dictionaries_of_its_own_language(folder: Path) -> None:
    _, rewrite = build_augmentation(switching(folder, languages=("fr",)), MIXED, 0, "en")
    for order in (MIXED, MIXED[::-1]):
        found = {one.lang: one.texts for one in rewrite(order, np.random.default_rng(0))}
        assert found == {"sw": ("a red ball",), "de": ("a red balle",), "en": ("a red Kugel",)}
    # Languages that have no dictionary do not move what is drawn for the others.
    _, rewrite = build_augmentation(switching(folder, words=0.5), MIXED[2:] * 20, 0, "en")
    alone = rewrite(MIXED[2:] * 20, np.random.default_rng(0))
    beside = rewrite([MIXED[0], MIXED[2]] * 20, np.random.default_rng(0))
    assert [one for one in beside if one.lang == "en"] == alone


def test_neighbours_are_those_of_the_tasks_language(rs_da: RsDaConfig) -> None:
    many = rs_da.model_copy(update={"copies": 40})
    found = build_augmentation(many, MIXED, 0, "en")[0]
    assert [one.lang for one in found] == ["sw", "de", "en"] * 40
    texts = {lang: {one.texts for one in found if one.lang == lang} for lang in ("sw", "de", "en")}
    assert texts["sw"] == {MIXED[0].texts} and texts["de"] == {MIXED[1].texts}
    assert len(texts["en"]) == 4
