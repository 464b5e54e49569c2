"""Word lists for robust fine-tuning: near-synonyms of the emoji's names, and small dictionaries.

    emoji_neighbours.tsv (hand-written) --------------------> neighbours
    names of the emoji that are none of the concepts -------> dictionaries/en-<lang>

The dictionaries leave out the concepts of the scenes, so that mixing languages with them never gives away a
name that a task tests. Single words may be shared: `red` stands in `red heart` and in `red apple`.
"""

import re
from pathlib import Path

import emoji

from mmalign.data.sources.emoji_concepts import Concept, load_concepts, name_of
from mmalign.data.sources.emoji_scenes import EmojiScenes

_NEIGHBOURS = Path(__file__).with_name("emoji_neighbours.tsv")
_ENGLISH = "en"
_FULL = emoji.STATUS["fully_qualified"]  # the other statuses spell the same emoji again
# Keycaps, the letters whose pairs are the flags of countries, skin tones, the tags of other flags.
_LEFT_OUT = re.compile(
    "[\N{COMBINING ENCLOSING KEYCAP}\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
)

Table = list[tuple[str, ...]]
"""Rows of a table; the first one names the columns."""


def read_words(config: EmojiScenes) -> dict[str, Table]:
    """The word lists by name: `neighbours`, and `dictionaries/en-<lang>` for each other language.

    Raises:
        UserError: a language that has no names here.
    """
    languages = (_ENGLISH, *(lang for lang in config.languages if lang != _ENGLISH))
    concepts = load_concepts(languages, config.concepts)
    characters = [
        character
        for character, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == _FULL and not _LEFT_OUT.search(character)
    ]
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
