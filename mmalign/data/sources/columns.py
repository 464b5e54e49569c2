"""Which columns of a table hold captions, and what they say; for every source that has columns.

    row {column: value} + CaptionColumns -> Captions

A value is a text or a list of texts; where a column tells the language, that is a code or a list of codes.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pydantic

from mmalign.core.batch import Caption
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.data.shards.lazy_pair import BadRow


class CaptionColumns(Section):
    """Either a column for each language, or a column of captions with one of languages beside it."""

    by_language: dict[str, str] = pydantic.Field(default_factory=dict)
    """The column of each language, for example {en: caption, de: caption_de}."""
    text: str | None = None
    """The column of captions in any language."""
    language: str | None = None
    """The column that tells their language (BCP-47)."""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> "CaptionColumns":
        if bool(self.by_language) == bool(self.text or self.language):
            raise ValueError("give either `by_language` or both `text` and `language`")
        if not self.by_language and not (self.text and self.language):
            raise ValueError("`text` and `language` are columns that belong together; give both")
        for code in self.by_language:
            if not is_language_code(code):
                raise ValueError(f"`by_language` has `{code}`, which is no BCP-47 language code")
        return self

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        one = [name for name in (self.text, self.language) if name]
        return [*self.by_language.values(), *one]


def check_columns(wanted: Collection[str], found: Collection[str], where: str) -> None:
    """Whether a table has the columns that a recipe names.

    Raises:
        UserError: it lacks one.
    """
    for name in wanted:
        if name not in found:
            raise UserError(
                f"{where}: has no column `{name}`; name one of {', '.join(found)} in the recipe"
            )


def read_captions(
    row: Mapping[str, Any], columns: CaptionColumns, where: str
) -> tuple[Caption, ...]:
    """The captions of a row; blank ones, and languages whose cell is empty, are left out.

    Raises:
        BadRow: no caption is left, or a cell is no text.
    """
    captions = tuple(
        Caption(lang, text.strip()) for lang, text in _texts(row, columns, where) if text.strip()
    )
    if not captions:
        raise BadRow("no caption", f"{where}: has no caption, or only blank ones")
    return captions


def _texts(
    row: Mapping[str, Any], columns: CaptionColumns, where: str
) -> Iterator[tuple[str, str]]:
    """(language, text)"""
    for lang, column in columns.by_language.items():
        for text in _list(row[column], column, where):
            yield lang, text
    if columns.text and columns.language:
        texts = _list(row[columns.text], columns.text, where)
        langs = _list(row[columns.language], columns.language, where)
        if not isinstance(row[columns.language], list):
            langs = langs * len(texts)
        if len(langs) != len(texts):
            raise BadRow(
                "language", f"{where}: has {len(texts)} captions, but {len(langs)} languages"
            )
        yield from zip(langs, texts, strict=True)


def _list(value: Any, column: str, where: str) -> list[str]:
    """The texts of a cell."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise BadRow("caption", f"{where}: `{column}` must be a text or a list of texts")
    return values
