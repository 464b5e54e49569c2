"""Language codes (BCP-47) in words: the English name, the name that its speakers use, and where it starts.

    lgg-x-official -> "Lugbara, official"        ur -> "Urdu", "اردو", "rtl"

The names are Unicode's (CLDR) and, for languages that CLDR does not know, those of the registry of
language subtags (IANA); the library `langcodes` holds both. A code that neither knows names itself.
"""

from functools import lru_cache
from typing import Literal

from langcodes import Language
from langcodes.tag_parser import LanguageTagError

# Scripts in use that run from right to left (Unicode, UAX #24 and UAX #9).
_RIGHT_TO_LEFT = {"Adlm", "Arab", "Aran", "Hebr", "Mand", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"}
_UNKNOWN = "Unknown language"


@lru_cache(maxsize=4096)
def language_name(code: str) -> str:
    """The English name, with script, territory and private subtags behind it: "Portuguese, Brazil"."""
    language = _parse(code)
    if language is None:
        return code
    private = (language.private or "").removeprefix("x-").replace("-", " ")
    return ", ".join(part for part in (*language.describe().values(), private) if part)


@lru_cache(maxsize=4096)
def own_name(code: str) -> str | None:
    """The name in the language itself, None where it is not known or the same as in English."""
    language = _parse(code)
    if language is None:
        return None
    own, english = language.autonym(), language.language_name()
    return None if own.casefold() == english.casefold() else own


@lru_cache(maxsize=4096)
def direction(code: str) -> Literal["ltr", "rtl"]:
    """Which way the language is written, by the code's script or by the one that CLDR calls likely.

    A text of its own is better shown by its letters (`dir="auto"` in HTML): some languages are written
    in several scripts.
    """
    language = _parse(code)
    script = (language.script or language.maximize().script) if language else None
    return "rtl" if script in _RIGHT_TO_LEFT else "ltr"


def labelled(code: str) -> str:
    """Name and code: "Swahili (sw)"; the code alone where it has no name."""
    name = language_name(code)
    return code if name == code else f"{name} ({code})"


def _parse(code: str) -> Language | None:
    """The parsed code, None where it is no code or its language is not known."""
    try:
        language = Language.get(code, normalize=False)
    except LanguageTagError:
        return None
    return None if language.language_name().startswith(_UNKNOWN) else language
