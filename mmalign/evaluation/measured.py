"""What the sections of all test sets, dictionaries and labelled images have in common."""

from typing import Annotated

import pydantic

from mmalign.core.config import Section
from mmalign.core.languages import canonical_language

Language = Annotated[str, pydantic.AfterValidator(canonical_language)]
SetName = Annotated[str, pydantic.Field(pattern=r"^[\w-]+$")]


class Measured(Section):
    name: SetName
    """Of the set in metric names."""
    languages: tuple[Language, ...] | None = pydantic.Field(default=None, min_length=1)
    """Captions, dictionaries or names in these languages only, in any spelling; none: all."""
