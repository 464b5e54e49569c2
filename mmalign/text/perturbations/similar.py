"""Characters that are mistaken for one another, for words that are too short for random edits.

    Han (simplified Chinese, Japanese)   characters of the same or the next reading
    Hangul                               syllables that differ in one letter (jamo)
    kana                                 with and without voicing marks, small and large, the other kana
    Thai                                 consonants of one sound (Royal Institute's RTGS transcription)

GB 2312 and JIS X 0208 sort the common characters of their first level by reading (pinyin; mostly on'yomi), so
neighbours there are homophones or nearly so: the wrong choice from the list of an input method. Python's
codecs hold both orders. Most misspellings of Chinese are of this kind (Liu et al. 2011, ACM TALIP 10(2)).
"""

import unicodedata
from functools import lru_cache

_APART = 3  # places in the order of readings; about nine characters share a syllable of pinyin
# Codec, and the rows of the first level, which are sorted by reading.
_READINGS = {"zh": ("gb2312", range(16, 56)), "ja": ("euc_jp", range(16, 48))}
_HANGUL = 0xAC00
_LEADS, _VOWELS, _TAILS = 19, 21, 28  # Unicode chapter 3.12; tail 0 is none
_MARKS = ("", "\N{COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK}", "\u309a")
_SMALL = "ぁあぃいぅうぇえぉおっつゃやゅゆょよゎわァアィイゥウェエォオッツャヤュユョヨヮワ"
_THAI = ("ขคฆ", "ชฌ", "ฎด", "ฏต", "ฐฑฒถทธ", "ณน", "ผพภ", "ฝฟ", "ญย", "ลฬ", "ศษส", "หฮ")


def similar(character: str, lang: str) -> tuple[str, ...]:
    """What a grapheme cluster is mistaken for; empty where nothing is known.

    Args:
        lang: the base language: `ja` reads Han in its own way, all others as Chinese.
    """
    base, marks = character[:1], character[1:]  # a Thai consonant carries vowels and tones
    return tuple(one + marks for one in _others(base, lang))


def _others(base: str, lang: str) -> tuple[str, ...]:
    if base in _THAI_GROUPS:
        return tuple(one for one in _THAI_GROUPS[base] if one != base)
    if "가" <= base <= "힣":
        return _other_syllables(base)
    if "ぁ" <= base <= "ヶ":
        return _other_kana(base)
    return homophones("ja" if lang == "ja" else "zh").get(base, ())


@lru_cache
def homophones(lang: str) -> dict[str, tuple[str, ...]]:
    """Common character -> its neighbours in the order of readings, of `zh` or `ja`."""
    codec, rows = _READINGS[lang]
    codes = (bytes((row + 0xA0, cell + 0xA0)) for row in rows for cell in range(1, 95))
    order = "".join(code.decode(codec, errors="ignore") for code in codes)
    return {
        one: tuple(order[max(0, i - _APART) : i] + order[i + 1 : i + 1 + _APART])
        for i, one in enumerate(order)
    }


def _other_syllables(syllable: str) -> tuple[str, ...]:
    rest, tail = divmod(ord(syllable) - _HANGUL, _TAILS)
    lead, vowel = divmod(rest, _VOWELS)
    letters = [
        *((one, vowel, tail) for one in range(_LEADS)),
        *((lead, one, tail) for one in range(_VOWELS)),
        *((lead, vowel, one) for one in range(_TAILS)),
    ]
    others = (chr(_HANGUL + (a * _VOWELS + b) * _TAILS + c) for a, b, c in letters)
    return tuple(one for one in others if one != syllable)


def _other_kana(kana: str) -> tuple[str, ...]:
    base = unicodedata.normalize("NFD", kana)[0]
    voiced = (unicodedata.normalize("NFC", base + mark) for mark in _MARKS)
    found = [one for one in voiced if len(one) == 1]
    if base in _SMALL:
        found.append(_SMALL[_SMALL.index(base) ^ 1])
    # Hiragana and katakana are in one order, 96 code points apart.
    found.append(chr(ord(kana) + (0x60 if kana <= "ゖ" else -0x60)))
    return tuple(one for one in found if one != kana)


_THAI_GROUPS = {one: group for group in _THAI for one in group}
