"""Configuration: a YAML file, dotted overrides, strict types, and errors that say what to change.

    YAML 1.2 file -> plain tree -> overrides `a.b=value` -> pydantic sections -> frozen config

The sections themselves are defined beside the code that they configure. One YAML file describes a complete
run: files do not inherit from each other.
"""

import difflib
import importlib
import io
import math
import pkgutil
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import pydantic
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from mmalign.core.errors import UserError, one_line

_MOST_NODES = 1_000_000  # of a file: entries and mappings, with its aliases written out


class Section(BaseModel):
    """A part of a configuration: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),  # pydantic would warn of fields such as `model_type`
    )


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is listed twice, which would count its result twice; keep one")
    return seeds


Seed = Annotated[int, pydantic.Field(ge=0)]
Seeds = Annotated[
    tuple[Seed, ...],
    pydantic.Field(min_length=1),
    pydantic.AfterValidator(_differ),
]
"""Seeds whose results are averaged."""

T = TypeVar("T", bound=Section)


def kinds_beside(module: str, method: str) -> Any:
    """The type of a field that holds one of the sections of a folder, by its `kind`.

    They are the sections with a literal `kind` and this method in all modules of the folder of `module`, the
    `__name__` of the caller, which is among them with what it has defined so far.
    """
    package = module.rpartition(".")[0]
    found: list[type[Section]] = []
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        name = f"{package}.{info.name}"
        found += [
            section
            for section in vars(importlib.import_module(name)).values()
            if getattr(section, "__module__", None) == name
            if _sections_in(section) and _tag_of(section) and hasattr(section, method)
        ]
    union: Any = Union[tuple(found)]  # noqa: UP007, because it is made of a list
    return Annotated[union, pydantic.Field(discriminator="kind")]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML 1.2 file holds.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        tree = _load(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML ({one_line(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of `key: value` lines")
    return tree


def _load(text: str) -> Any:
    """What a YAML 1.2 text says; YAML 1.1 would read the language code `no` as false, `1e-3` as a string.

    Raises:
        ValueError: it is not valid.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # ruamel raises many kinds of errors, for a date that does not exist
        raise ValueError(one_line(error)) from None
    if _count(tree, {}) > _MOST_NODES:
        raise ValueError("an alias (`*name`) contains itself, or repeats too much; write it out")
    return tree


def _count(node: Any, known: dict[int, float]) -> float:
    """Nodes of a tree with its aliases written out; infinite if one contains itself."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted: who meets it meanwhile is inside it
        values = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_count(value, known) for value in values)
    return known[id(node)]


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
    """Set one dotted `key=value`, making the mappings on its way; `0` is a list's first entry."""
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UserError(f"override `{override}`: write it as `section.key=value`")
    try:
        value = _load(text) if text else None
    except ValueError:
        raise UserError(f"override `{override}`: the value is not valid YAML") from None
    apply_override_value(tree, dotted, value)


def apply_override_value(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the field `dotted` to a value, as `apply_override` does."""
    names = dotted.split(".")
    node: Any = tree
    for depth, name in enumerate(names):
        key: str | int = name
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            key = int(name)
        elif not isinstance(node, dict):
            is_list = isinstance(node, list)
            what = f"a list of {len(node)}, counted from 0" if is_list else "not a section"
            raise UserError(f"override `{dotted}`: `{'.'.join(names[:depth])}` is {what}")
        if depth == len(names) - 1:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


def validate(cls: type[T], tree: Any, where: str) -> T:
    """The section that `tree` describes, or a UserError that names the field in `where`."""
    try:
        # YAML has lists, the sections have tuples, and strict types do not convert one into the other.
        return cls.model_validate(_prepared(tree, where))
    except pydantic.ValidationError as failure:
        raise UserError(_explain(cls, failure, where)) from None


def _prepared(tree: Any, where: str, *path: object) -> Any:
    if isinstance(tree, dict):
        return {key: _prepared(value, where, *path, key) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(_prepared(value, where, *path, n) for n, value in enumerate(tree))
    field = ".".join(map(str, path))
    if isinstance(tree, int) and abs(tree) >= 2**63:  # torch and numpy have no larger ones
        raise UserError(f"{where}: `{field}` is over the largest integer of 64 bits; lower it")
    # Also where a section keeps a part as it is, such as the methods of a study.
    if isinstance(tree, float) and not math.isfinite(tree):
        raise UserError(f"{where}: `{field}` is {tree}: input should be a finite number")
    return tree


def _explain(cls: type[Section], failure: pydantic.ValidationError, where: str) -> str:
    errors = failure.errors()
    # An unknown key comes first: where a name is misspelled, the right one is missing as well.
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        above, sections = _follow(cls, path[:-1])
        known = sorted({name for section in sections for name in section.model_fields})
        field = ".".join([*above, path[-1]])
        return f"{where}: unknown key `{field}`; {_suggest(path[-1], known)}"
    shown, sections = _follow(cls, path)
    field = ".".join(shown)
    if error["type"] == "missing":
        return f"{where}: `{field}` is missing; add it"
    tags = [tag for tag in map(_tag_of, sections) if tag]
    if error["type"] == "union_tag_not_found":
        return f"{where}: `{field}.kind` is missing; add one of {', '.join(tags)}"
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        return f"{where}: `{field}.kind` is `{tag}`; {_suggest(tag, tags)}"
    shown_input = one_line(repr(error["input"]), 100)
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "tuple_type":
        message = f"must be a list, also of one entry: `{field}: [{shown_input}]`"
    elif error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "must be a section of `key: value` lines"
    subject = f"`{field}`" if field else "the file"
    given = "" if error["type"] == "value_error" else f" is {shown_input}"
    return f"{where}: {subject}{given}: {message.replace('tuple', 'list')}"


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"


def _follow(cls: Any, path: list[str]) -> tuple[list[str], list[type[Section]]]:
    """The path as a user writes it, and the sections that may be at its end.

    Pydantic's path also names the tag of a union after its field; that one is left out.
    """
    written = []
    sections = _sections_in(cls)
    for part in path:
        below = [s.model_fields[part].annotation for s in sections if part in s.model_fields]
        tagged = [s for s in sections if _tag_of(s) == part]
        if below:
            sections = [found for annotation in below for found in _sections_in(annotation)]
        elif tagged:
            sections = tagged
            continue
        written.append(part)
    return written, sections


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Section) else []
    return [found for part in typing.get_args(annotation) for found in _sections_in(part)]


def _tag_of(section: type[Section]) -> str | None:
    kind = section.model_fields.get("kind")
    values = typing.get_args(kind.annotation) if kind else ()
    return values[0] if values else None
