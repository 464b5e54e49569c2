"""docs/fields.md holds the fields of the code."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from fields import page

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"


def test_the_page_of_fields_is_that_of_the_code() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "run `python docs/fields.py`"
