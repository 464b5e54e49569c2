"""Language families: which languages are averaged together, so that a mean hides none.

A family here is a branch of the size by which papers report (Romance, Germanic, Indo-Aryan, Bantu, ...), not
a stock such as Indo-European. The branches follow Glottolog 5 (https://glottolog.org) and ISO 639-5, the
standard for groups of languages; Atlantic, Chadic, Gur, Kwa and Ubangian are meant as in common use.
Creoles are a group of their own, as in ISO 639-5, not part of the language that gave their words.
Constructed languages have no family.

Codes are ISO 639-1 where there is one, else ISO 639-3, and the few collective ones that public image-caption
sets use (`roa`).
"""

from collections.abc import Iterable
from pathlib import Path

from mmalign.core.languages import canonical_language

_ROWS = Path(__file__).with_name("language_families.tsv").read_text(encoding="utf-8").splitlines()
_MEMBERS = dict(row.split("\t") for row in _ROWS[1:])  # the first row names the columns
_FAMILY = {code: family for family, codes in _MEMBERS.items() for code in codes.split()}


def family_of(code: str) -> str | None:
    """The family of a language, for example `Romance` for `pt-BR`; None if it has none here."""
    return _FAMILY.get(canonical_language(code).split("-")[0])


def by_family(codes: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its languages among `codes`, in their order; families sorted by name."""
    members: dict[str, list[str]] = {}
    for code in codes:
        if family := family_of(code):
            members.setdefault(family, []).append(code)
    return dict(sorted(members.items()))
