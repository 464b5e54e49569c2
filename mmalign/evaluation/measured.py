"""What the sections of all test sets, dictionaries and labelled images have in common."""

import pydantic

from mmalign.core.config import Section


class Measured(Section):
    name: str = pydantic.Field(pattern=r"^[\w-]+$")
    """Of the set in metric names."""
    languages: tuple[str, ...] | None = pydantic.Field(default=None, min_length=1)
    """Captions, dictionaries or names in these languages only; none: all."""
