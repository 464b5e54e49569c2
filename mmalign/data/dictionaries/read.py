"""Bilingual dictionaries from English, for texts that mix languages; training reads them too.

    <folder>/en-<lang>.tsv   columns `en`, `translation`, perhaps `senses`   -+
    <folder>/en-<lang>.txt   MUSE: `word translation`                        -+-> language -> Dictionary
    <folder>/<lang>2.txt     CoSDA-ML: `word<TAB>translation`                -+

Several files of one language are joined.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language, is_language_code
from mmalign.data.dictionaries.casing import lower
from mmalign.data.dictionaries.lines import check_folder, numbered_lines

ENGLISH = "en"

# Word in small letters -> its translations, the safest first: the one that shares the most `senses` with it,
# otherwise in the order of the file.
Dictionary = dict[str, tuple[str, ...]]

# Layouts: Conneau et al. 2018 (arXiv 1710.04087) for MUSE, Qin et al. 2020 (arXiv 2006.06402) for CoSDA-ML,
# whose `sw2.txt` is Swedish.
_NAME = re.compile(r"en-([^.]+)\.(?:tsv|txt)|([^.]+)2\.txt")
_WORD = regex.compile(r"\w+(?:['’\u200c\u200d]\w+)*")  # ZWNJ and ZWJ occur inside words
_COLUMNS = (["en", "translation"], ["en", "translation", "senses"])


@lru_cache(maxsize=2)
def read_dictionaries(folder: Path) -> dict[str, Dictionary]:
    """The dictionaries of a folder by language; they are cached, so do not change them.

    Raises:
        UserError: no such folder, no dictionary in it, or a broken line (file, line).
    """
    check_folder(folder, "dictionaries `en-<lang>.tsv`, `en-<lang>.txt` or `<lang>2.txt`")
    weights: dict[str, dict[str, dict[str, int]]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        lang = match and canonical_language(match[1] or match[2])
        if lang and is_language_code(lang):
            entries = weights.setdefault(lang, {})
            for word, translation, senses in _entries(path):
                # Texts are looked up word by word; a word that both languages spell alike changes nothing.
                if _WORD.fullmatch(word) and lower(word, ENGLISH) != lower(translation, lang):
                    known = entries.setdefault(lower(word, ENGLISH), {})
                    known[translation] = max(senses, known.get(translation, 0))
    if not weights:
        raise UserError(
            f"{folder}: no dictionary; name them `en-<lang>.tsv`, `en-<lang>.txt` or `<lang>2.txt`"
        )
    return {lang: _safest_first(entries) for lang, entries in weights.items()}


def choose_dictionaries(
    folder: Path, languages: Sequence[str] | None, asker: str
) -> dict[str, Dictionary]:
    """Those to the wanted languages, sorted by language; none named: all of the folder.

    `asker` is what the error begins with: the field or set that needs a dictionary that is not there.
    """
    known = read_dictionaries(folder)
    lacking = sorted(set(languages or ()) - known.keys())
    if lacking:
        raise UserError(
            f"{asker}: {folder} has no dictionary to `{lacking[0]}`; it has those to "
            f"{', '.join(sorted(known))}"
        )
    return {lang: known[lang] for lang in sorted(languages or known)}


def invert(dictionary: Mapping[str, tuple[str, ...]], lang: str) -> Dictionary:
    """The dictionary from `lang` to English; translations of several words are left out."""
    weights: dict[str, dict[str, tuple[int, int]]] = {}
    for english, translations in dictionary.items():
        for rank, translation in enumerate(translations):
            if _WORD.fullmatch(translation):
                entries = weights.setdefault(lower(translation, lang), {})
                # Sorted in descending order: an early rank first, then many translations.
                entries.setdefault(english, (-rank, len(translations)))
    return _safest_first(weights)


def _safest_first(weights: dict[str, dict[str, Any]]) -> Dictionary:
    # A stable sort, also with `reverse`: among equals the order of the file stays.
    return {
        word: tuple(sorted(translations, key=translations.__getitem__, reverse=True))
        for word, translations in weights.items()
    }


def _entries(path: Path) -> Iterator[tuple[str, str, int]]:
    """(English word, translation, senses) of every line."""
    lines = numbered_lines(path)
    if path.suffix == ".tsv":
        header = next(lines, (1, ""))[1].split("\t")
        if header not in _COLUMNS:
            raise UserError(
                f"{path}: the first line must be `en<TAB>translation`, then `senses` or not"
            )
    for number, line in lines:
        cells = line.split("\t") if "\t" in line else line.split(maxsplit=1)
        word, translation, senses = (*(cell.strip() for cell in cells), "1", "1")[:3]
        if len(cells) < 2 or not word or not translation or not senses.isdecimal():
            raise UserError(f"{path}, line {number}: write an English word and its translation")
        yield word, translation, int(senses)
