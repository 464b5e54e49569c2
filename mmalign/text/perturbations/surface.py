"""How a text is dressed: its punctuation and its letter case.

    text -> segments -> marks or words that can change -> a share of them changed -> noisy text

    punctuation_removed   changes texts with punctuation outside of words; never empties one
    punctuation_doubled   changes the same texts, and those of punctuation only
    punctuation_added     changes every text: one mark of its script a level of severity, at the end
    upper, lower          change texts with a word that is not yet so
    swapped               changes every text with a cased letter

But for `punctuation_added`, severity 1 to 5 changes a share of 0.2, 0.4, 0.6, 0.8 and 1 of the marks or
words that can change, at least one. Letter case exists in few scripts: see `casing.has_case`.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import regex

from mmalign.data.dictionaries import casing
from mmalign.text.perturbations.sampling import Graded, choose
from mmalign.text.perturbations.segments import segments, word_places

CaseEdit = Literal["upper", "lower", "swapped"]

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
}
_OTHER_END_MARKS = ".!?,"
_URDU_END_MARKS = "۔!؟،"

_CASES: dict[CaseEdit, Callable[[str, str], str]] = {
    "upper": casing.upper,
    "lower": casing.lower,
    "swapped": casing.swapped,
}


class SurfaceConfig(Graded):
    """Changed punctuation or letter case."""

    kind: Literal["surface"]
    edit: Literal[
        "punctuation_removed",
        "punctuation_doubled",
        "punctuation_added",
        "upper",
        "lower",
        "swapped",
    ]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.edit}-{self.severity}"


def remove_punctuation(text: str, rng: np.random.Generator, share: float) -> str:
    """`text` without a share of its marks; a text of marks only stays as it is."""
    parts = segments(text)
    for place in choose(_marks(parts), share, rng):
        parts[place] = ""
    return "".join(parts) if "".join(parts).strip() else text


def double_punctuation(text: str, rng: np.random.Generator, share: float) -> str:
    """`text` with a share of its marks written twice."""
    parts = segments(text)
    for place in choose(_marks(parts), share, rng):
        parts[place] *= 2
    return "".join(parts)


def add_punctuation(text: str, rng: np.random.Generator, count: int, lang: str) -> str:
    """`text` with `count` random marks of its script at its end."""
    marks = end_marks(text, lang)
    return text + "".join(marks[rng.integers(len(marks))] for _ in range(count))


def end_marks(text: str, lang: str) -> str:
    """The marks that may stand at the end of a text, by the script of its last letter."""
    if casing.base_language(lang) == "ur":
        return _URDU_END_MARKS
    letters = _LETTER.findall(text)
    last = letters[-1] if letters else ""
    return next(
        (marks for script, marks in _END_MARKS.items() if regex.match(script, last)),
        _OTHER_END_MARKS,
    )


def change_case(
    text: str, rng: np.random.Generator, share: float, edit: CaseEdit, lang: str, least: int = 1
) -> str:
    """`text` with a share of its words in another letter case, of those that this changes."""
    parts = segments(text)
    changed = {place: _CASES[edit](parts[place], lang) for place in word_places(parts)}
    changeable = [place for place, word in changed.items() if word != parts[place]]
    for place in choose(changeable, share, rng, least):
        parts[place] = changed[place]
    return "".join(parts)


def _marks(parts: list[str]) -> list[int]:
    return [place for place, part in enumerate(parts) if _MARK.fullmatch(part)]
