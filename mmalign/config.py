"""Configuration: a YAML file, dotted overrides, strict types, and errors a person can act on.

    YAML 1.2 file -> plain tree -> overrides `a.b=value` -> pydantic sections -> frozen config

The sections themselves live beside the code that they configure (`RunConfig` in training/, ...); this
module knows none of them. One YAML file is one whole run: files do not inherit from each other. YAML 1.2
is needed because YAML 1.1 reads the language code `no` as false and `1e-3` as a string.
"""

import difflib
import io
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mmalign.errors import UserError


class Section(BaseModel):
    """A part of a configuration: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


T = TypeVar("T", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML 1.2 file holds.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of `key: value` lines")
    return tree


def write_yaml(tree: dict[str, Any]) -> str:
    """The tree as YAML text; keys keep their order."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(tree, text)
    return text.getvalue()


def load_config(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, apply the overrides and validate.

    Args:
        cls: the section that the file describes.
        overrides: dotted assignments such as `optimizer.lr=5e-4`; the value is read as YAML.

    Raises:
        UserError: one sentence with the file, the field, what is wrong and the nearest known name.
    """
    tree = read_yaml(path)
    for override in overrides:
        apply_override(tree, override)
    return validate(cls, tree, str(path))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted `key=value` in `tree`, making the mappings on its way."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"override `{override}`: write it as `section.key=value`")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise UserError(f"override `{override}`: the value is not valid YAML") from None
    *parents, last = dotted.split(".")
    for depth, name in enumerate(parents):
        if not isinstance(tree, dict):
            raise UserError(
                f"override `{override}`: `{'.'.join(parents[:depth])}` is not a section"
            )
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
    if isinstance(tree, list) and last.isdigit() and int(last) < len(tree):
        tree[int(last)] = value  # type: ignore[index]
    elif isinstance(tree, dict):
        tree[last] = value
    else:
        raise UserError(f"override `{override}`: `{'.'.join(parents)}` is not a section")


def validate(cls: type[T], tree: Any, where: str) -> T:
    """The section that `tree` describes, or a UserError that names the field in `where`."""
    try:
        # Through JSON rules: YAML has lists, the sections have tuples; numbers stay strict.
        return cls.model_validate(_lists_to_tuples(tree))
    except pydantic.ValidationError as failure:
        raise UserError(_explain(cls, failure, where)) from None


def _lists_to_tuples(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _lists_to_tuples(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(_lists_to_tuples(value) for value in tree)
    return tree


def _explain(cls: type[Section], failure: pydantic.ValidationError, where: str) -> str:
    """The first complaint of pydantic as one sentence of ours."""
    errors = failure.errors()
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in error["loc"]]
    field = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _known_fields(cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        if near:
            return f"{where}: unknown key `{field}`; did you mean `{near[0]}`?"
        return f"{where}: unknown key `{field}`; known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: `{field}` is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    place = f"`{field}`" if field else "the file"
    if error["type"] == "value_error":
        return f"{where}: {place}: {message}"
    return f"{where}: {place} is {error['input']!r}: {message}"


def _known_fields(cls: Any, path: list[str]) -> list[str]:
    """Names of the fields of the section at `path` below `cls`, through unions and tuples."""
    sections = _sections_in(cls)
    for part in path:
        below = [s.model_fields[part].annotation for s in sections if part in s.model_fields]
        if below:
            sections = [found for annotation in below for found in _sections_in(annotation)]
        # A part that is no field is an index of a list or the tag of a union: stay, but narrow by tag.
        else:
            sections = [s for s in sections if _tag_of(s) == part] or sections
    return sorted({name for section in sections for name in section.model_fields})


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Section) else []
    return [found for part in typing.get_args(annotation) for found in _sections_in(part)]


def _tag_of(section: type[Section]) -> str | None:
    kind = section.model_fields.get("kind")
    values = typing.get_args(kind.annotation) if kind else ()
    return values[0] if values else None
