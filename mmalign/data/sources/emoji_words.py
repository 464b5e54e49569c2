"""Word lists for robust fine-tuning: near-synonyms of the emoji's names, and small dictionaries.

    emoji_neighbours.tsv (hand-written) --------------------> neighbours
    names of the emoji that are none of the concepts -------> dictionaries/en-<lang>

The dictionaries leave out the concepts of the scenes, so that mixing languages with them never gives away a
name that a task tests. Single words may be shared: `red` stands in `red heart` and in `red apple`.
"""

from pathlib import Path

import emoji

from mmalign.data.sources.emoji_concepts import Concept, load_concepts, name_of
from mmalign.data.sources.emoji_scenes import EmojiScenes

_NEIGHBOURS = Path(__file__).with_name("emoji_neighbours.tsv")
_ENGLISH = "en"
_FULL = emoji.STATUS["fully_qualified"]  # the other statuses spell the same emoji again
_KEYCAP = "\N{COMBINING ENCLOSING KEYCAP}"
_REGIONS = range(0x1F1E6, 0x1F200)  # pairs of these letters are the flags of countries
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)  # flags of parts of a country

Table = list[tuple[str, ...]]
"""Rows of a table; the first one names the columns."""


def read_words(config: EmojiScenes) -> dict[str, Table]:
    """The word lists by name: `neighbours`, and `dictionaries/en-<lang>` for each other language.

    Raises:
        UserError: a language that has no names here.
    """
    languages = (_ENGLISH, *(lang for lang in config.languages if lang != _ENGLISH))
    concepts = load_concepts(languages, config.concepts)
    characters = _plain_emoji()
    dictionaries = {
        f"dictionaries/{_ENGLISH}-{lang}": _dictionary(characters, concepts, lang)
        for lang in config.languages
        if lang != _ENGLISH
    }
    return {"neighbours": _read_neighbours(concepts), **dictionaries}


def _read_neighbours(concepts: tuple[Concept, ...]) -> Table:
    """The neighbours that are no word of a concept's name: those would name another concept."""
    names = {word for concept in concepts for word in concept.names[_ENGLISH].lower().split()}
    header, *lines = _NEIGHBOURS.read_text(encoding="utf-8").splitlines()
    rows = []
    for word, neighbours in (line.split("\t") for line in lines):
        kept = " ".join(one for one in neighbours.split(" ") if one not in names)
        if kept:
            rows.append((word, kept))
    return [tuple(header.split("\t")), *rows]


def _plain_emoji() -> list[str]:
    """All emoji but skin tones, keycaps and the flags of countries and regions."""
    return [
        character
        for character, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == _FULL and not any(_is_left_out(one) for one in character)
    ]


def _is_left_out(letter: str) -> bool:
    code_point = ord(letter)
    return letter == _KEYCAP or any(code_point in span for span in (_REGIONS, _SKIN_TONES, _TAGS))


def _dictionary(characters: list[str], concepts: tuple[Concept, ...], lang: str) -> Table:
    """English names and those of `lang`, but for the concepts and whatever shares a full name with one."""
    tested = [{concept.names[one] for concept in concepts} for one in (_ENGLISH, lang)]
    rows = [
        (name_of(character, _ENGLISH), name_of(character, lang))
        for character in characters
        if lang in emoji.EMOJI_DATA[character]
    ]
    kept = [(en, name) for en, name in rows if en not in tested[0] and name not in tested[1]]
    return [("en", "translation"), *sorted(set(kept))]
