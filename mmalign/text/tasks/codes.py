"""Language codes of publishers (FLORES-200, ISO 639-3, English names) -> BCP-47."""

from typing import Annotated

from pydantic import AfterValidator

from mmalign.core.languages import canonical_language, likely_script

# `canonical_language` knows the two-letter code of each ISO 639-3 code. These are exceptions: individual
# languages that stand for their macrolanguage in the published sets (`arb` is Standard Arabic, `cmn` is
# Mandarin), and codes that it would merge with another language.
_EXCEPTIONS = {
    "als": "sq", "arb": "ar", "ayr": "ay", "azj": "az", "cmn": "zh", "gaz": "om", "khk": "mn", "kmr": "ku",
    "knc": "kr", "lvs": "lv", "npi": "ne", "ory": "or", "pbt": "ps", "pes": "fa", "plt": "mg", "prs": "prs",
    "quy": "qu", "swc": "swc", "swh": "sw", "tgl": "tl", "uzn": "uz", "ydd": "yi", "zsm": "ms",
}  # fmt: skip

# The written forms of FLORES-200 and Belebele that are not the usual one of their language.
_UNUSUAL = {
    "ace-Arab", "arb-Latn", "ben-Latn", "bjn-Arab", "hin-Latn", "kas-Deva", "knc-Arab", "min-Arab",
    "npi-Latn", "sin-Latn", "taq-Tfng", "urd-Latn", "zho-Hant",
}  # fmt: skip

# Languages that publishers (XLM-T, TyDiQA) call by their English names.
NAMES = {
    "arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "french": "fr",
    "german": "de", "hindi": "hi", "indonesian": "id", "italian": "it", "korean": "ko",
    "portuguese": "pt", "russian": "ru", "spanish": "es", "swahili": "sw", "telugu": "te",
}  # fmt: skip


def bcp47(code: str) -> str:
    """The BCP-47 code of an ISO 639-3 code, a FLORES-200 code, an English name or a BCP-47 code.

    `swa`, `swh_Latn`, `SW` and `swahili` are `sw`; `zho_Hans` is `zh`, `zho_Hant` and `zh_hant` are
    `zh-Hant`, `iw` is `he`; unknown codes stay.
    """
    # BCP-47 takes the shortest code that ISO 639 has (RFC 5646, section 2.2.1) and names a script only where
    # it is not the usual one.
    code = NAMES.get(code.lower(), code).replace("_", "-")
    language, _, rest = code.partition("-")
    is_usual_script = len(rest) == 4 and len(language) == 3 and code not in _UNUSUAL
    language = _EXCEPTIONS.get(language.lower(), language)
    code = f"{language}-{rest}" if rest and not is_usual_script else language
    # Published sets and their languages' sizes say `tl`, `prs` and `swc`, where CLDR has other codes.
    return code if code in _EXCEPTIONS.values() else canonical_language(code)


def bcp47_of_locale(locale: str) -> str:
    """The language of a locale, without its region: `en-US` is `en`, `zh-TW` is `zh-Hant`.

    For sets with one locale per language, so that one name of a language serves all sets.
    """
    language, script = locale.partition("-")[0], likely_script(locale)
    return bcp47(language if script == likely_script(language) else f"{language}-{script}")


# A language in a configuration, whatever its spelling.
Language = Annotated[str, AfterValidator(bcp47)]
