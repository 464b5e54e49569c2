"""Writes fields.md: every field of the YAML files, with its type, default and docstring.

    python docs/fields.py

A test compares the page with what this prints.
"""

import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from mmalign.core.config import Section
from mmalign.data.select.rules import SelectConfig
from mmalign.evaluation.suite import SuiteConfig
from mmalign.study.config import StudyConfig
from mmalign.text.finetune import FinetuneConfig
from mmalign.training.run_config import RunConfig

FILES = (
    ("Run files (`mmalign train`)", RunConfig),
    ("Fine-tuning (`mmalign finetune`)", FinetuneConfig),
    ("Suites (`mmalign eval`)", SuiteConfig),
    ("Studies (`mmalign study`)", StudyConfig),
    ("Rules of `mmalign data select`", SelectConfig),
)
HEAD = """# Fields

Every field of the YAML files, written by `docs/fields.py` from the code. An unknown field, or a value of
another type, is an error that names the file and the field. A field without a default must be given.
"""


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The configuration classes that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)


def type_name(annotation: Any) -> str:
    """A type as a user writes its values."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_name(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_name, inner)))
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "fields"
    if origin is tuple and (len(inner) != 2 or inner[1] is not Ellipsis):
        return f"list of {len(inner)}"
    if origin is tuple:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return f"names with {type_name(inner[1])}"
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any"}
    return {**plain, type(None): "null", Path: "path"}.get(annotation, "text")


def default_of(field: Any) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section) or value is PydanticUndefined:
        return "see below"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def tables(config: type[Section], known: dict[type[Section], str], path: str = "") -> Iterator[str]:
    """One table per section, the file's own fields first; `known`: where a section was described before."""
    rows, inner = [], []
    for name, field in config.model_fields.items():
        name = field.alias or name
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        kind = type_name(field.annotation).replace("|", "\\|")
        rows.append(f"| `{name}` | {kind} | {default_of(field)} | {meaning} |")
        found = list(dict.fromkeys(sections_in(field.annotation)))
        inner += [(one, f"{path}{name}", len(found) > 1) for one in found]
    if rows:
        yield "\n".join(["| field | value | default | meaning |", "|---|---|---|---|", *rows])
    for one, place, is_choice in inner:
        chosen_by = one.model_fields.get("kind") if is_choice else None
        of_kind = f", kind {type_name(chosen_by.annotation)}" if chosen_by else ""
        title = f"`{place}`{of_kind}"
        if one in known:
            if known[one] != title:
                yield f"{title}: as {known[one]}"
            continue
        known[one] = title
        yield f"### {title}"
        doc = re.split(r"\n\s*\n", one.__doc__ or "")[0]
        if doc and doc != re.split(r"\n\s*\n", Section.__doc__ or "")[0]:
            yield " ".join(doc.split())
        yield from tables(one, known, f"{place}.")


def page() -> str:
    parts = [HEAD.rstrip()]
    for title, config in FILES:
        parts += [f"## {title}", *tables(config, {})]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("fields.md").write_text(page(), encoding="utf-8")
    sys.stdout.write("docs/fields.md\n")
