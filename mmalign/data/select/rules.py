"""The rules of `mmalign data select`: which samples and captions of a data set are chosen."""

from typing import Literal

import pydantic

from mmalign.core.config import Section, Seed


class Bound(Section):
    """What a value of a column must be; each bound that is given must hold."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    min: float | int | None = None
    max: float | int | None = None
    among: tuple[str | int | float, ...] | None = pydantic.Field(default=None, alias="in")
    """Written as `in`: the values that are chosen."""

    @pydantic.model_validator(mode="after")
    def _some(self) -> "Bound":
        if self.min is None and self.max is None and self.among is None:
            raise ValueError("give `min`, `max` or `in`")
        return self


class Repeats(Section):
    images: Literal["exact", "near"] | None = None
    """`exact`: equal bytes; `near`: or a perceptual hash that differs in at most 4 of 64 bits."""
    texts: bool = False
    """Equal captions, apart from case, width of letters and white space."""


class Leaks(Repeats):
    against: tuple[str, ...] = pydantic.Field(min_length=1)
    """Data sets, usually test sets, of which no image (and no caption, with `texts`) may be chosen."""
    images: Literal["exact", "near"] | None = "near"


class Balance(Section):
    words: dict[str, str] = pydantic.Field(default_factory=dict)
    """A word list for each language: a UTF-8 file with one word or phrase per line."""
    most: pydantic.PositiveInt | dict[str, pydantic.PositiveInt] = 20_000
    """Captions of a word that are kept, on average; one number, or one for each language of `words`."""
    others: Literal["remove", "keep"] = "remove"
    """What happens to a caption that has none of the words of its language."""
    captions_per_language: pydantic.PositiveInt | None = None
    """Captions of each language that are kept, drawn at random."""
    seed: Seed = 0

    @pydantic.model_validator(mode="after")
    def _some(self) -> "Balance":
        if not self.words and self.captions_per_language is None:
            raise ValueError("give `words` or `captions_per_language`")
        if isinstance(self.most, dict) and self.most.keys() != self.words.keys():
            raise ValueError("`most` must be one number, or name the languages of `words`")
        return self


class SelectConfig(Section):
    tables: tuple[str, ...] = ()
    """Side tables: parquet or CSV files with a column `key`, or folders of their parts."""
    columns: dict[str, Bound] = pydantic.Field(default_factory=dict)
    """Bounds of columns of the side tables, or of `mmalign data describe`: `{clip_score: {min: 0.28}}`. A
    sample, or a caption where the table has a value for each, is chosen if all hold."""
    missing: Literal["remove", "keep"] = "remove"
    """What happens to a sample or caption without a value."""
    languages: tuple[str, ...] | None = None
    """Choose captions in these languages only."""
    leaks: Leaks | None = None
    duplicates: Repeats | None = None
    """Repeats within the set are removed: the first of its order stays."""
    balance: Balance | None = None
    """Caps of frequent words and languages, among what all other rules have left."""
