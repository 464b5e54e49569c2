"""Texts that mix languages: a share of the words replaced by their translation.

    English text -> its words in en-<lang> dictionaries             -> another language for each -> mixed text
    other text   -> its words in its own dictionary, read backwards -> English
                 -> the first translation from there                -> another language for each -> mixed text

The language that a model was trained in is mixed in only where it is asked for: its words can help. An entry
whose word is a complete tested text is not used: its translation would be the same row in another language.
Words are matched in small letters, each on its own: expressions are not looked up.
Severity 1 to 5 replaces a share of 0.2, 0.4, 0.6, 0.8 and 1 of the words that are in the dictionaries, at
least one. Only texts with such a word change: how many depends on the dictionaries.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.dictionaries.casing import base_language, lower
from mmalign.data.dictionaries.read import ENGLISH, Dictionary, invert, read_dictionaries
from mmalign.text.perturbations.sampling import Change, Graded, choose
from mmalign.text.perturbations.segments import put, segments, word_positions


def tables_from(
    lang: str,
    folder: Path,
    languages: tuple[str, ...] | None = None,
    tested: Iterable[str] = (),
) -> dict[str, Dictionary] | None:
    """Language -> dictionary from `lang` into it; None: there is none from `lang` into `languages`.

    Args:
        languages: by default English and every language of the folder.
        tested: texts in `lang`; entries of words that are one of them are left out.

    Raises:
        UserError: see `read_dictionaries`, or a language of `languages` that has no dictionary.
    """
    dictionaries = read_dictionaries(folder)
    wanted = known_languages(folder) if languages is None else languages
    if missing := sorted({*wanted} - {*known_languages(folder)}):
        raise UserError(f"{folder}: no dictionary of `{missing[0]}`; add it, or fix `languages`")
    base = base_language(lang)
    own: Dictionary | None = None  # into English
    if base != ENGLISH:
        # A regional variety is served by the dictionary of its language.
        found = dictionaries.get(lang) or dictionaries.get(base)
        if found is None:
            return None
        own = invert(found, lang)
    whole = {lower(text, lang) for text in tested}
    tables = {}
    for to in sorted(wanted):
        if base_language(to) != base:
            table = own if to == ENGLISH else _through(own, dictionaries[to])
            assert table is not None, "English is not mixed into English"
            tables[to] = {word: found for word, found in table.items() if word not in whole}
    return tables or None


def known_languages(folder: Path) -> tuple[str, ...]:
    """English and the languages of a folder's dictionaries, sorted; UserError: see `read_dictionaries`."""
    return tuple(sorted({ENGLISH, *read_dictionaries(folder)}))


def _through(own: Dictionary | None, english: Dictionary) -> Dictionary:
    """Word -> what the safest English word that has a translation becomes; None: the word is English."""
    if own is None:
        return english
    table = {}
    for word, pivots in own.items():
        small = (lower(one, ENGLISH) for one in pivots)
        found = next((english[one] for one in small if one in english), ())
        # Only the safest translation of the safest word: two guesses are joined.
        if found and found[0] != word:
            table[word] = found[:1]
    return table


def mix(
    text: str, rng: np.random.Generator, share: float, tables: dict[str, Dictionary], lang: str
) -> str:
    """`text` of language `lang` with a share of the words that are in the tables translated."""
    parts = segments(text)
    known = {i: translations(parts[i], tables, lang) for i in word_positions(parts)}
    for i in choose([i for i, found in known.items() if found], share, rng):
        # A language is drawn evenly among those that have the word, as CoSDA-ML does (Qin et al. 2020, arXiv
        # 2006.06402), and then its safest translation: a wrong one would change the label.
        parts = put(parts, i, known[i][rng.integers(len(known[i]))][0])
    return "".join(parts)


def translations(word: str, tables: dict[str, Dictionary], lang: str) -> list[tuple[str, ...]]:
    """The word's translations, those of one language together, the safest first."""
    small = lower(word, lang)
    return [table[small] for table in tables.values() if small in table]


class CodeMixConfig(Graded):
    """Words replaced by their translation."""

    kind: Literal["code_mix"]
    folder: str
    """Folder with dictionaries from English; relative to where the command runs."""
    languages: tuple[str, ...] | None = None
    """What to mix in; by default every language of the folder but that of training."""

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        if single_words:
            return None
        tables = tables_from(lang, Path(self.folder), self.languages, tested=texts)
        return partial(mix, share=self.replaced_share, tables=tables, lang=lang) if tables else None
