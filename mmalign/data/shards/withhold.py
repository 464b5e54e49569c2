"""Withheld captions: how well the image pivot works, measured on data with few images.

    train pairs -> for some (picture, language): captions out of training -> the set `withheld`

An image stays in training with its other languages; its withheld captions are queries that must find it. Text
and image were never seen together, so a query that finds it was aligned through the other languages and the
image. Close variants of a language (nb and nn, zh and yue) and the captions of equal images are withheld
together.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pydantic

from mmalign.core.batch import Pair
from mmalign.core.config import Section
from mmalign.core.languages import canonical_language


class Withhold(Section):
    fraction: float = pydantic.Field(gt=0, lt=1)
    """Share of the (image, language) pairs of the training split to withhold."""
    variants: tuple[tuple[str, ...], ...] = ()
    """Groups of close languages, each withheld as one language."""


@dataclass(frozen=True)
class Withheld:
    """Which captions are withheld."""

    chosen: frozenset[tuple[str, str]]  # (picture, language group)
    group_of: dict[str, str]  # the group of each language that is in one
    # Normalised texts that stay in training: a withheld caption with such a text is no test.
    training_texts: frozenset[str]

    def keeps(self, picture: str, lang: str) -> bool:
        return (picture, self.group_of.get(lang, lang)) not in self.chosen


def choose_withheld(pairs: Iterable[Pair], config: Withhold, seed: int) -> Withheld:
    """Choose by a hash of (seed, picture, language), so that the choice depends on nothing else."""
    groups = (tuple(map(canonical_language, group)) for group in config.variants)
    group_of = {lang: group[0] for group in groups for lang in group}
    languages: dict[str, list[set[str]]] = defaultdict(list)  # picture -> languages of each image
    texts = []
    for pair in pairs:
        grouped = [(group_of.get(c.lang, c.lang), c.text) for c in pair.captions]
        languages[pair.picture].append({lang for lang, _ in grouped})
        texts += [(pair.picture, lang, text) for lang, text in grouped]
    chosen: set[tuple[str, str]] = set()
    for picture, images in languages.items():
        # Sorted, so that the choice does not depend on the order of the captions.
        for lang in sorted(set().union(*images)):
            key = f"{seed}\t{picture}\t{lang}".encode()
            number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
            # An image keeps its last caption.
            if number < config.fraction and all(image - {lang} for image in images):
                images = [image - {lang} for image in images]
                chosen.add((picture, lang))
    staying = frozenset(normalise(t) for picture, lang, t in texts if (picture, lang) not in chosen)
    return Withheld(frozenset(chosen), group_of, staying)


def without_withheld(pair: Pair, withheld: Withheld) -> Pair:
    kept = tuple(c for c in pair.captions if withheld.keeps(pair.picture, c.lang))
    return replace(pair, captions=kept)


def withheld_pairs(pairs: Iterable[Pair], withheld: Withheld) -> Iterator[Pair]:
    """The set `withheld`: each distinct training image once, with its withheld captions, possibly none."""
    # Images without a withheld caption are included: they are the pool that the queries search.
    merged: dict[str, Pair] = {}
    for pair in pairs:
        captions = tuple(
            c
            for c in pair.captions
            if not withheld.keeps(pair.picture, c.lang)
            and normalise(c.text) not in withheld.training_texts
        )
        first = merged.get(pair.picture)
        if first is None:
            merged[pair.picture] = replace(pair, captions=captions, split="withheld")
        else:
            new = tuple(c for c in captions if c not in first.captions)
            merged[pair.picture] = replace(first, captions=first.captions + new)
    return iter(merged.values())


def normalise(text: str) -> str:
    """The text without differences that a reader would not notice."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
