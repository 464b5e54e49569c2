"""Language codes of publishers (FLORES-200, ISO 639-3, English names) -> BCP-47."""

import langcodes

# langcodes knows the two-letter code of each ISO 639-3 code. These are exceptions: individual languages
# that stand for their macrolanguage in the published sets (`arb` is Standard Arabic, `cmn` is Mandarin),
# and codes that langcodes would merge with another language.
_EXCEPTIONS = {
    "als": "sq", "arb": "ar", "ayr": "ay", "azj": "az", "cmn": "zh", "gaz": "om", "khk": "mn", "kmr": "ku",
    "knc": "kr", "lvs": "lv", "npi": "ne", "ory": "or", "pbt": "ps", "pes": "fa", "plt": "mg", "prs": "prs",
    "quy": "qu", "swc": "swc", "swh": "sw", "tgl": "tl", "uzn": "uz", "ydd": "yi", "zsm": "ms",
}  # fmt: skip

# The written forms of FLORES-200 that are not the usual one of their language.
_UNUSUAL = {
    "ace-Arab", "arb-Latn", "bjn-Arab", "kas-Deva", "knc-Arab", "min-Arab", "taq-Tfng", "zho-Hant",
}  # fmt: skip

# Languages that publishers (XLM-T, TyDiQA) call by their English names.
NAMES = {
    "arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "french": "fr",
    "german": "de", "hindi": "hi", "indonesian": "id", "italian": "it", "korean": "ko",
    "portuguese": "pt", "russian": "ru", "spanish": "es", "swahili": "sw", "telugu": "te",
}  # fmt: skip


def bcp47(code: str) -> str:
    """The BCP-47 code of an ISO 639-3 code, a FLORES-200 code, an English name or a BCP-47 code.

    `swa`, `swh_Latn` and `swahili` are `sw`; `zho_Hans` is `zh`, `zho_Hant` is `zh-Hant`; unknown codes stay.
    """
    # BCP-47 takes the shortest code that ISO 639 has (RFC 5646, section 2.2.1) and names a script only where
    # it is not the usual one.
    code = NAMES.get(code, code).replace("_", "-")
    language, _, rest = code.partition("-")
    is_usual_script = len(rest) == 4 and len(language) == 3 and code not in _UNUSUAL
    if len(language) == 3:  # others are BCP-47 already, or names such as Wikipedia's `simple`
        language = _EXCEPTIONS.get(language) or langcodes.standardize_tag(language)
    return f"{language}-{rest}" if rest and not is_usual_script else language
