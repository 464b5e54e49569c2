"""The emoji that scenes and tasks are made of, their names, and sentences to put names into.

    emoji_concepts.tsv (code point, group, subgroup) -+-> Concept (character, groups, name per language)
    CLDR names, package `emoji` ----------------------+
    emoji_sentences.tsv (hand-written) -----------------> sentences per language

The names are those of Unicode CLDR in 14 languages; the groups are those of the Unicode emoji list.
"""

from dataclasses import dataclass
from pathlib import Path

import emoji

from mmalign.core.errors import UserError

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")

NUM_CONCEPTS = 1109
"""Rows of `emoji_concepts.tsv`."""

_CONCEPTS = Path(__file__).with_name("emoji_concepts.tsv")
_SENTENCES = Path(__file__).with_name("emoji_sentences.tsv")


@dataclass(frozen=True)
class Concept:
    """One emoji: its character, its Unicode group and subgroup as slugs, and its name per language."""

    character: str
    group: str
    subgroup: str
    names: dict[str, str]


def load_concepts(languages: tuple[str, ...], count: int) -> tuple[Concept, ...]:
    """The first `count` concepts of `emoji_concepts.tsv` with their names in `languages`.

    Raises:
        UserError: no language, a language twice, or a language that has no names here.
    """
    if not languages or len(set(languages)) < len(languages):
        raise UserError(f"emoji_scenes: `languages` is {list(languages)}: name each language once")
    for lang in languages:
        if lang not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise UserError(f"emoji_scenes: `languages` has `{lang}`; available are {known}")
        emoji.config.load_language(lang)
    lines = _CONCEPTS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")][:count]
    return tuple(
        Concept(character, group, subgroup, {lang: name_of(character, lang) for lang in languages})
        for character, group, subgroup in ((chr(int(row[0], 16)), *row[1:]) for row in rows)
    )


def name_of(character: str, lang: str) -> str:
    """The name of an emoji in a language that `load_concepts` has loaded, words apart.

    Raises:
        KeyError: this emoji has no name in this language.
    """
    name: str = emoji.EMOJI_DATA[character][lang]
    return name.strip(":").replace("_", " ")


def load_sentences() -> dict[str, list[str]]:
    """Of each language the sentences of `emoji_sentences.tsv`; `{}` stands where the names go."""
    _, *lines = _SENTENCES.read_text(encoding="utf-8").splitlines()
    sentences: dict[str, list[str]] = {lang: [] for lang in LANGUAGES}
    for lang, sentence in (line.split("\t") for line in lines):
        sentences[lang].append(sentence)
    return sentences
