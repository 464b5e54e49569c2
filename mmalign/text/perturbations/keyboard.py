"""Typing errors that hit a neighbouring key.

A slip replaces a character by one whose key touches its own: the next key of the same row, or a key of the
row above or below that overlaps it. It keeps letter case, and a vowel sign becomes a vowel sign only, so no
mark loses its base. Characters without a key of their own (dead-key accents, shifted Arabic letters, digits)
stay. Chinese is typed by its sound: the slip there is a wrong choice among characters (`similar.py`).

Severity 1 to 5 hits a share of 0.05, 0.1, 0.2, 0.3 and 0.4 of the characters that have a key. Every text
with such a character changes.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from mmalign.data.dictionaries import casing
from mmalign.text.perturbations.sampling import Change, Graded, choose
from mmalign.text.perturbations.similar import homophones

# Character -> what a slip may type instead.
Neighbours = Mapping[str, tuple[str, ...]]
# The rows of digits, Q, A and Z from their first key (1, Q, A, Z of a US keyboard) to the right. A space is a
# key that carries no single letter. Right-to-left letters are in the order of their keys too, although an
# editor may show them reversed.
Rows = tuple[str, str, str, str]

_OFFSETS = (0.0, 0.5, 0.75, 1.25)  # where each row starts, in widths of a key

_QWERTY: Rows = ("", "qwertyuiop", "asdfghjkl", "zxcvbnm")
# Layouts as operating systems ship them under the language's name; dead keys are left out. Those of bg, id,
# sw, th, ur and vi are the default ones of xkeyboard-config (`symbols/bg`, `us`, `ke`, `th`, `pk`, `vn`).
_LAYOUTS: dict[str, tuple[Rows, ...]] = {
    "en": (_QWERTY,),
    "de": ((" " * 10 + "ß", "qwertzuiopü", "asdfghjklöä", "yxcvbnm"),),
    "fr": ((" é    è çà", "azertyuiop", "qsdfghjklmù", "wxcvbn"),),
    "fr-CA": (_QWERTY,),
    "es": (("", "qwertyuiop", "asdfghjklñ", "zxcvbnm"),),
    "it": ((" " * 11 + "ì", "qwertyuiopè", "asdfghjklòàù", "zxcvbnm"),),
    "pt": (("", "qwertyuiop", "asdfghjklç", "zxcvbnm"),),
    "tr": (("", "qwertyuıopğü", "asdfghjklşi", "zxcvbnmöç"),),
    "ru": (("", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),),
    "uk": (("", "йцукенгшщзхї", "фівапролджє", "ячсмитьбю"),),
    "el": (("", " ςερτυθιοπ", "ασδφγηξκλ", "ζχψωβνμ"),),
    "he": (("", "  קראטוןםפ", "שדגכעיחלךף", "זסבהנמצתץ"),),
    "ar": (("", "ضصثقفغعهخحجد", "شسيبلاتنمكط", "ئءؤر ىةوزظ"),),
    # ISIRI 9147
    "fa": (("", "ضصثقفغعهخحجچ", "شسیبلاتنمکگ", "ظطزرذدپو"),),
    "bg": (("", " уеишщксдзц", "ьяаожгтнвмч", "юйъэфхпрлб"),),  # BDS 5237
    "id": (_QWERTY,),
    "sw": (_QWERTY,),
    "ur": (
        ("", "قوعرتےءیہپ", "اسدفگحجکل", "زشچطبنم"),
        ("", " ؤ ڑٹ ئ ۃ ", "آصڈ غھضخ ", "ذژثظ ں"),
    ),
    # Tones are dead keys; a letter that carries one has no key of its own.
    "vi": (("ăâêô     đ", "qwertyuiopươ", "asdfghjkl", "zxcvbnm"),),
    # TIS 820 (Kedmanee), plain and shifted, without the marks of no vowel or tone.
    "th": (
        ("   ภถุึคตจขช", "ๆไำพะัีรนยบล", "ฟหกดเ้่าสวง", "ผปแอิืทมใฝ"),
        ("     ู", "  ฎฑธ ๊ณ ญฐ", "ฤฆฏโฌ ๋ษศซ", "  ฉฮ  ฒฬฦ"),
    ),
    # InScript (IS 16350), plain and shifted, without the virama, the nukta and the nasal signs: a slip onto
    # one of them would change its neighbours too.
    "hi": (
        ("", "ौैाीूबहगदजड", "ोे िुपरकतचट", "  मनवलस  य"),
        ("", "औऐआईऊभङघधझढञ", "ओएअइउफ खथछठ", "  ण  ळशष"),
    ),
}


def neighbours_of(lang: str) -> Neighbours | None:
    """Character -> what a slip may type instead; None: the language has no layout here.

    A regional variety such as `pt-BR` has its language's layout unless it has one of its own.
    """
    if casing.base_language(lang) == "zh":
        return homophones("zh")
    layout = _LAYOUTS.get(lang) or _LAYOUTS.get(casing.base_language(lang))
    if layout is None:
        return None
    small = {key: near for rows in layout for key, near in _touching(rows).items() if near}
    capital = {
        casing.upper(key, lang): tuple(casing.upper(one, lang) for one in near if one != "ß")
        for key, near in small.items()
        if casing.lower(casing.upper(key, lang), lang) == key  # not ß and not the final sigma
    }
    return {**capital, **small}


def slips(
    text: str, rng: np.random.Generator, share: float, neighbours: Neighbours, least: int = 1
) -> str:
    """`text` with about a share of the characters that have a key, at least `least`, hit another one."""
    characters = list(text)
    typed = [i for i, one in enumerate(characters) if one in neighbours]
    for i in choose(typed, share, rng, least):
        near = neighbours[characters[i]]
        characters[i] = near[rng.integers(len(near))]
    return "".join(characters)


def _touching(rows: Rows) -> Neighbours:
    keys = [
        (letter, row, offset + column)
        for row, (letters, offset) in enumerate(zip(rows, _OFFSETS, strict=True))
        for column, letter in enumerate(letters)
        if letter != " "
    ]

    def touch(one: tuple[str, int, float], other: tuple[str, int, float]) -> bool:
        rows_apart, distance = abs(one[1] - other[1]), abs(one[2] - other[2])
        # A letter never becomes a vowel sign (category M), or the other way round.
        is_same_sort = unicodedata.category(one[0])[0] == unicodedata.category(other[0])[0]
        return is_same_sort and (distance == 1 if rows_apart == 0 else rows_apart == 1 > distance)

    return {key[0]: tuple(other[0] for other in keys if touch(key, other)) for key in keys}


class KeyboardConfig(Graded):
    """Slips to a neighbouring key."""

    kind: Literal["keyboard"]

    def change(self, texts: Sequence[str], lang: str, single_words: bool) -> Change | None:
        neighbours = neighbours_of(lang) or {}
        # No character has a key in a romanised `hi-Latn`, for example.
        if neighbours.keys().isdisjoint("".join(texts)):
            return None
        least = int(not single_words)
        return partial(slips, share=self.noise_share, neighbours=neighbours, least=least)
