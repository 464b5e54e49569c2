"""Pairs of single words in English and other languages, split into trained and held out.

    folder of dictionaries -> single words -> English words drawn -> entries of each language
        -> trained  |  held out: no word of theirs occurs in a trained entry of any language  |  neither

Left out are what `data/dictionaries/read.py` leaves out, foreign entries of several words, and entries with a
note in brackets.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from mmalign.core.errors import UserError
from mmalign.data.dictionaries.read import choose_dictionaries
from mmalign.evaluation.measured import Measured

Entry = tuple[str, str]  # an English word and one of its translations

_FEWEST = 10  # English words of a split; fewer say nothing
_PHRASE_OR_NOTE = re.compile(r"[\s()\[\]（）]")


class WordsConfig(Measured):
    folder: str
    """Folder with dictionaries from English: `en-<lang>.tsv`, `en-<lang>.txt` or `<lang>2.txt`."""
    words: int = pydantic.Field(default=2000, ge=2)
    """How many English words at most are drawn from each dictionary."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Of the draw, and of the split of a lexicon."""


class LexiconConfig(WordsConfig):
    words: int = pydantic.Field(default=2000, ge=2 * _FEWEST)
    """How many English words at most are drawn from each dictionary."""
    held_out: float = pydantic.Field(default=0.3, gt=0, lt=1)
    """Share of the English words that are held out."""


@dataclass(frozen=True)
class WordList:
    """The words of one language: all that were drawn, sorted, and two parts of them."""

    entries: tuple[Entry, ...]  # any of them is a right answer
    trained: tuple[Entry, ...]
    held_out: tuple[
        Entry, ...
    ]  # all translations of English words that share nothing with a trained entry


@dataclass(frozen=True)
class Lexicon:
    """Word lists by language, sorted."""

    config: LexiconConfig
    lists: Mapping[str, WordList]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def english(self) -> list[str]:
        """The English words of all languages, each once."""
        return list(dict(entry for one in self.lists.values() for entry in one.entries))

    @property
    def sha256(self) -> str:
        """Of all entries and the split: equal where two models were asked the same."""
        return hashlib.sha256(repr(sorted(self.lists.items())).encode()).hexdigest()


def read_lexicon(config: LexiconConfig) -> Lexicon:
    """The lexicon that the section describes.

    Raises:
        UserError: dictionaries that cannot be read, or one with too few words on either side of the split.
    """
    asker = f"lexicon `{config.name}`"
    chosen = choose_dictionaries(Path(config.folder), config.languages, asker)
    lists = _split({lang: _drawn(one, config) for lang, one in chosen.items()}, config)
    for lang, one in lists.items():
        for split, entries in (("trained", one.trained), ("held-out", one.held_out)):
            words = len(dict(entries))
            if words < _FEWEST:
                raise UserError(
                    f"{asker}: the dictionary to `{lang}` in {config.folder} leaves {words} {split} English "
                    f"words, {_FEWEST} are the least; raise `words`, change `held_out` or `languages`"
                )
    return Lexicon(config, lists)


def _drawn(dictionary: Mapping[str, tuple[str, ...]], config: LexiconConfig) -> tuple[Entry, ...]:
    """The entries of the English words that come first in the order of their hashes."""
    single: dict[str, dict[str, None]] = {}  # the inner one as an ordered set
    for english, foreign in dictionary.items():
        if kept := [one for one in foreign if not _PHRASE_OR_NOTE.search(one)]:
            single[english] = dict.fromkeys(kept)
    words = sorted(single, key=lambda one: _hash(config.seed, "draw", one))
    return tuple((one, foreign) for one in sorted(words[: config.words]) for foreign in single[one])


def _split(drawn: Mapping[str, tuple[Entry, ...]], config: LexiconConfig) -> dict[str, WordList]:
    def is_trained(entry: Entry) -> bool:
        return _hash(config.seed, "split", entry[0]) >= config.held_out

    trained = {lang: tuple(filter(is_trained, entries)) for lang, entries in drawn.items()}
    # Bantu languages share words, and a foreign word has several English ones: an English word that is drawn
    # to be held out is only held out where neither it nor a translation is a trained word of any language.
    known = {word.casefold() for each in trained.values() for entry in each for word in entry}
    lists = {}
    for lang, entries in drawn.items():
        met = {entry[0] for entry in entries if any(word.casefold() in known for word in entry)}
        held_out = tuple(one for one in entries if one[0] not in met)
        lists[lang] = WordList(entries, trained[lang], held_out)
    return lists


def _hash(seed: int, what: str, word: str) -> float:
    # Not a generator: what is drawn and held out must be the same in every language, and adding a dictionary
    # must not move the words of the others.
    digest = hashlib.sha256(f"{seed} {what} {word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
