"""Which words are asked, and that a held-out word has nothing to do with a trained one."""

from pathlib import Path

import pytest
from lexical_cases import ENGLISH, LANGUAGES, foreign, write_dictionaries

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.evaluation.lexicon import LexiconConfig, read_lexicon


def config(folder: Path, **fields: object) -> LexiconConfig:
    return validate(LexiconConfig, {"name": "toy", "folder": str(folder), **fields}, "test")


def strings(entries: tuple[tuple[str, str], ...]) -> set[str]:
    return {word.casefold() for entry in entries for word in entry}


def test_all_entries_are_there_and_the_split_takes_its_share(tmp_path: Path) -> None:
    lexicon = read_lexicon(config(write_dictionaries(tmp_path)))
    assert list(lexicon.lists) == list(LANGUAGES)
    for lang, one in lexicon.lists.items():
        assert one.entries == tuple((word, foreign(word, lang)) for word in sorted(ENGLISH))
        assert sorted(one.trained + one.held_out) == list(one.entries)
        assert 0.15 * len(ENGLISH) < len(one.held_out) < 0.45 * len(ENGLISH)
    first, second = ({word for word, _ in one.held_out} for one in lexicon.lists.values())
    assert first == second
    assert sorted(lexicon.english) == sorted(ENGLISH)


def test_held_out_words_share_no_string_with_training_in_any_language(tmp_path: Path) -> None:
    # Words of one language that are words of the other, and words with several English ones.
    shared = [(a, foreign(b, "ee").upper()) for a, b in zip(ENGLISH, ENGLISH[20:], strict=False)]
    folder = write_dictionaries(tmp_path, sw=shared, ee=[("bade", "kiki"), ("tuna", "kiki")])
    lexicon = read_lexicon(config(folder, held_out=0.6))
    trained = set().union(*(strings(one.trained) for one in lexicon.lists.values()))
    for one in lexicon.lists.values():
        assert one.held_out and not strings(one.held_out) & trained
        asked = {english for english, _ in one.held_out}
        assert {entry for entry in one.entries if entry[0] in asked} == set(one.held_out)
    assert any(
        set(one.entries) - set(one.trained) - set(one.held_out) for one in lexicon.lists.values()
    )


def test_phrases_and_notes_are_left_out(tmp_path: Path) -> None:
    more = [("bade", "two words"), ("bade", "note(verb)"), ("two bade", "single")]
    plain = read_lexicon(config(write_dictionaries(tmp_path / "a")))
    noisy = read_lexicon(config(write_dictionaries(tmp_path / "b", ee=more)))
    assert plain.lists == noisy.lists
    assert plain.sha256 == noisy.sha256


def test_the_draw_depends_on_seed_and_word_alone(tmp_path: Path) -> None:
    folder = write_dictionaries(tmp_path)
    both = read_lexicon(config(folder, words=40))
    alone = read_lexicon(config(folder, words=40, languages=["sw"]))
    other = read_lexicon(config(folder, words=40, seed=1))
    assert len(both.english) == 40 and set(alone.english) == set(both.english)
    assert alone.lists["sw"] == both.lists["sw"]
    assert set(other.english) != set(both.english) and other.sha256 != both.sha256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"languages": ["xx"]}, r"has no dictionary to `xx`; it has those to ee, sw$"),
        ({"words": 20, "held_out": 0.9}, r"leaves \d trained English words, 10 are the least"),
        ({"words": 20, "held_out": 0.1}, r"leaves \d held-out English words, 10 are the least"),
    ],
)
def test_refusals_are_one_sentence(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_lexicon(config(write_dictionaries(tmp_path), **fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"held_out": 0.0}, {"held_out": 1.0}, {"words": 5}, {"word": 9}])
def test_the_section_is_strict(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="test"):
        config(tmp_path, **wrong)
