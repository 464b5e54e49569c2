"""The word lists hand over no tested name, and no neighbour is the name of another concept."""

import re

import pytest

from mmalign.data.sources.emoji_concepts import LANGUAGES, load_concepts
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.emoji_words import Table, read_words

CONCEPTS = load_concepts(LANGUAGES, 600)  # as many as the demo has
WORDS = {word for concept in CONCEPTS for word in concept.names["en"].lower().split()}


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    return read_words(EmojiScenes(kind="emoji_scenes", concepts=600))


def test_there_is_a_dictionary_for_every_other_language(tables: dict[str, Table]) -> None:
    assert set(tables) == {"neighbours"} | {f"dictionaries/en-{lang}" for lang in LANGUAGES[1:]}
    some = read_words(EmojiScenes(kind="emoji_scenes", languages=("de", "fr"), concepts=600))
    assert set(some) == {"neighbours", "dictionaries/en-de", "dictionaries/en-fr"}
    assert some["dictionaries/en-de"] == tables["dictionaries/en-de"]


def test_neighbours_are_single_words_and_never_a_word_of_a_name(tables: dict[str, Table]) -> None:
    header, *rows = tables["neighbours"]
    assert header == ("word", "neighbours")
    assert len({word for word, _ in rows}) == len(rows) > 150
    for word, neighbours in rows:
        several = neighbours.split(" ")
        assert word in WORDS
        assert 1 <= len(set(several)) == len(several) <= 8
        assert all(re.fullmatch("[a-z]+", one) for one in [word, *several]), word
        assert not WORDS & set(several), word


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_a_dictionary_holds_no_name_of_a_concept(tables: dict[str, Table], lang: str) -> None:
    header, *rows = tables[f"dictionaries/en-{lang}"]
    assert header == ("en", "translation")
    assert len(set(rows)) == len(rows) > 1000
    english, translated = ({name for name in column} for column in zip(*rows, strict=True))
    assert not english & {concept.names["en"] for concept in CONCEPTS}
    assert not translated & {concept.names[lang] for concept in CONCEPTS}
    assert not any("\t" in cell or "\n" in cell or not cell.strip() for row in rows for cell in row)


def test_a_dictionary_leaves_out_flags_keycaps_and_skin_tones(tables: dict[str, Table]) -> None:
    english = {en for en, _ in tables["dictionaries/en-de"]}
    assert {"cow", "shark", "red heart", "chequered flag", "waving hand"} <= english
    assert not {"Germany", "Scotland", "keycap 1", "keycap #"} & english
    assert not any("skin tone" in name for name in english)
    assert ("cow", "kuh") in tables["dictionaries/en-de"]
