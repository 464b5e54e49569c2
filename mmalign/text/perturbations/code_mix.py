"""Texts that mix languages: a share of the words replaced by their translation.

    English text -> its words in en-<lang> dictionaries -> another language for each -> mixed text
    other text   -> its words in its own dictionary, read backwards -> English       -> mixed text

Words are matched in small letters, each on its own: expressions are not looked up. In scripts without
spaces the pieces of longer words are translated one by one, which changes their meaning more than elsewhere.
Severity 1 to 5 replaces a share of 0.2, 0.4, 0.6, 0.8 and 1 of the words that are in the dictionaries, at
least one. Only texts with such a word change: how many depends on the dictionaries.
"""

from collections.abc import Sequence
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
    lang: str, folder: Path, languages: tuple[str, ...] | None = None
) -> dict[str, Dictionary] | None:
    """Language -> dictionary from `lang` into it; None: there is none from `lang` into `languages`.

    Raises:
        UserError: see `read_dictionaries`, or a language of `languages` that has no dictionary.
    """
    dictionaries = read_dictionaries(folder)
    known = {ENGLISH, *dictionaries}
    wanted = known if languages is None else set(languages)
    if missing := sorted(wanted - known):
        raise UserError(f"{folder}: no dictionary of `{missing[0]}`; add it, or fix `languages`")
    if base_language(lang) == ENGLISH:
        return {to: dictionaries[to] for to in sorted(wanted - {ENGLISH})} or None
    # Dictionaries start from English; a pivot through it to a third language would join two guesses.
    # A regional variety is served by the dictionary of its language.
    own = dictionaries.get(lang) or dictionaries.get(base_language(lang))
    if own is None or ENGLISH not in wanted:
        return None
    return {ENGLISH: invert(own, lang)}


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
    """What to mix in; by default English and every language of the folder."""

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        if single_words:
            return None
        tables = tables_from(lang, Path(self.folder), self.languages)
        return partial(mix, share=self.replaced_share, tables=tables, lang=lang) if tables else None
