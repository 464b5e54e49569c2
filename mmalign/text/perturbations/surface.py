"""Punctuation and letter case of a text.

    punctuation_removed   changes texts with punctuation outside of words; never empties one
    punctuation_doubled   changes the same texts, and those of punctuation only
    punctuation_added     changes every text: one mark of its script per level of severity, at the end
    upper, lower          change texts with a word that is not yet so
    swapped               changes every text with a cased letter

But for `punctuation_added`, severity 1 to 5 changes a share of 0.2, 0.4, 0.6, 0.8 and 1 of the marks or
words that can change, at least one. Letter case exists in few scripts: see `casing.has_case`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import regex

from mmalign.data.dictionaries import casing
from mmalign.text.perturbations.sampling import Change, Graded, choose
from mmalign.text.perturbations.segments import segments, word_positions

CaseEdit = Literal["upper", "lower", "swapped"]  # functions of casing.py

_MARK = regex.compile(r"\p{P}+")
_LETTER = regex.compile(r"\p{L}")
# Marks that end or part sentences, by the script of a text's last letter (names in the Unicode charts).
_END_MARKS = {
    r"\p{Arabic}": ".!؟،",
    r"[\p{Devanagari}\p{Bengali}\p{Oriya}\p{Gurmukhi}]": "।!?,",
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}]": "。！？，",
    r"\p{Greek}": ".!;,",
    r"\p{Armenian}": "։՜՞,",
    r"\p{Ethiopic}": "።!?፣",
    r"\p{Khmer}": "។!?,",
    r"\p{Myanmar}": "။၊",
    r"\p{Tibetan}": "།",
    r"\p{Thai}|\p{Lao}": "!?",
    "": ".!?,",  # matches every other letter, and a text without any
}


def repeat_punctuation(text: str, rng: np.random.Generator, share: float, times: int) -> str:
    """`text` with a share of its marks written `times` times; 0 removes them, but never the entire text."""
    parts = segments(text)
    marks = [i for i, part in enumerate(parts) if _MARK.fullmatch(part)]
    for i in choose(marks, share, rng):
        parts[i] *= times
    return "".join(parts) if "".join(parts).strip() else text


def add_punctuation(text: str, rng: np.random.Generator, count: int, lang: str) -> str:
    """`text` with `count` random marks of its script at its end."""
    marks = end_marks(text, lang)
    return text + "".join(marks[rng.integers(len(marks))] for _ in range(count))


def end_marks(text: str, lang: str) -> str:
    """The marks that may end a text, by the script of its last letter."""
    if casing.base_language(lang) == "ur":
        return "۔!؟،"
    last = "".join(_LETTER.findall(text)[-1:])
    return next(marks for script, marks in _END_MARKS.items() if regex.match(script, last))


def change_case(
    text: str, rng: np.random.Generator, share: float, edit: CaseEdit, lang: str, least: int = 1
) -> str:
    """`text` with a share of its words in another letter case, of those that this changes."""
    parts = segments(text)
    changed = {i: getattr(casing, edit)(parts[i], lang) for i in word_positions(parts)}
    changeable = [i for i, word in changed.items() if word != parts[i]]
    for i in choose(changeable, share, rng, least):
        parts[i] = changed[i]
    return "".join(parts)


class SurfaceConfig(Graded):
    """Changed punctuation or letter case."""

    kind: Literal["surface"]
    edit: Literal["punctuation_removed", "punctuation_doubled", "punctuation_added"] | CaseEdit

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        share, least = self.replaced_share, int(not single_words)
        if self.edit in ("upper", "lower", "swapped"):
            change = partial(change_case, share=share, edit=self.edit, lang=lang, least=least)
            return change if casing.has_case(texts) else None
        if single_words:
            return None
        if self.edit == "punctuation_added":
            return partial(add_punctuation, count=self.severity, lang=lang)
        times = 0 if self.edit == "punctuation_removed" else 2
        return partial(repeat_punctuation, share=share, times=times)
