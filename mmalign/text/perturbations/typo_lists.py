"""Misspellings that people made, from one word list per language.

Two layouts, recognised line by line: `correct<TAB>misspelling` with further misspellings in further columns
(a first line `correct<TAB>misspelling` is a header), and `wrong->right`, as in Wikipedia's list of common
misspellings for machines, where several correct words are separated by commas.

Severity 1 to 5 misspells a share of 0.2, 0.4, 0.6, 0.8 and 1 of the words that are in the list, at least one.
Only texts with such a word change: how many depends on the list.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.dictionaries import casing
from mmalign.data.dictionaries.lines import check_folder, numbered_lines
from mmalign.text.perturbations.sampling import Change, Graded, choose
from mmalign.text.perturbations.segments import segments, word_positions
from mmalign.text.tasks.codes import bcp47

_HEADER = "correct\tmisspelling"

# Word in small letters -> its misspellings, in the order of the file.
Typos = Mapping[str, tuple[str, ...]]


def read_typos(folder: Path, lang: str) -> Typos | None:
    """The misspellings of a language's words; None: the folder has no list of it.

    Raises:
        UserError: no such folder, or a broken line (file, line).
    """
    check_folder(folder, "lists `<lang>.tsv` or `<lang>.txt`")
    # A regional variety such as `pt-BR` is served by the list of its language, unless it has its own.
    lists = [path for path in sorted(folder.iterdir()) if path.suffix in (".tsv", ".txt")]
    for code in (lang, casing.base_language(lang)):
        if found := [path for path in lists if bcp47(path.stem) == code]:
            break
    else:
        return None
    path, other = found[0], found[-1]
    if other.stem != path.stem:  # `iw.tsv` and `he.tsv`
        raise UserError(f"{other}: a second list of `{code}`, beside {path}; keep one of them")
    typos: dict[str, dict[str, None]] = {}
    for number, line in numbered_lines(path):
        if number == 1 and line == _HEADER:
            continue
        wrong, arrow, right = line.partition("->")
        # `wrong->right, right` turns into the columns of the other layout, one word at a time.
        rows = [[word, wrong] for word in right.split(",")] if arrow else [line.split("\t")]
        for word, *misspellings in ([cell.strip() for cell in row] for row in rows):
            if not misspellings or not all((word, *misspellings)):
                raise UserError(
                    f"{path}, line {number}: write `correct<TAB>misspelling` or `wrong->right`"
                )
            # A dictionary as an ordered set; a misspelling equal to its word would change nothing.
            known = typos.setdefault(casing.lower(word, lang), {})
            known.update(dict.fromkeys(one for one in misspellings if one != word))
    return {word: tuple(found) for word, found in typos.items() if found}


def misspell(text: str, rng: np.random.Generator, share: float, typos: Typos, lang: str) -> str:
    """`text` with a share of the words of the list misspelt, in the letter case that they had."""
    parts = segments(text)
    known = [i for i in word_positions(parts) if casing.lower(parts[i], lang) in typos]
    for i in choose(known, share, rng):
        misspellings = typos[casing.lower(parts[i], lang)]
        drawn = misspellings[rng.integers(len(misspellings))]
        parts[i] = casing.cased_like(drawn, parts[i], lang)
    return "".join(parts)


class TypoListConfig(Graded):
    """Misspellings from word lists."""

    kind: Literal["typo_list"]
    folder: str
    """Folder with one `<lang>.tsv` or `<lang>.txt` per language; relative to where the command runs."""

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        # A misspelling may hold a space, which would make two words of one tag.
        typos = None if single_words else read_typos(Path(self.folder), lang)
        if not typos:
            return None
        return partial(misspell, share=self.replaced_share, typos=typos, lang=lang)
