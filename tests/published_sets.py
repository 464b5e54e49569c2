"""Small copies of published data sets in their layout on disk, and the data built from them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image

from mmalign.core.batch import Pair
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.reader import ShardSet


def write_pictures(folder: Path, names: Iterable[str]) -> None:
    """JPEGs with these names, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(make_image(number, "JPEG"))


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def replace_line(path: Path, number: int, line: str) -> None:
    """Replace line `number`, counted from 1."""
    lines = path.read_text(encoding="utf-8").splitlines()
    write_lines(path, [*lines[: number - 1], line, *lines[number:]])


def recipe_of(kind: str, *folders: Path) -> RecipeConfig:
    source = {"kind": kind, "folders": [str(folder) for folder in folders]}
    return validate(RecipeConfig, {"name": kind, "source": source}, "x.yaml")


def build_and_read(out: Path, kind: str, *folders: Path) -> dict[str, list[Pair]]:
    """The pairs of each split, written to shards and read back."""
    build(recipe_of(kind, *folders), out)
    pairs = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        shard_set = ShardSet(folder)
        pairs[folder.name] = [shard_set.read(i) for i in range(len(shard_set))]
        shard_set.close()
    return pairs


def captions_of(pair: Pair) -> dict[str, list[str]]:
    """The texts of each language, in their order."""
    texts: dict[str, list[str]] = {}
    for caption in pair.captions:
        texts.setdefault(caption.lang, []).append(caption.text)
    return texts


def refusal(out: Path, kind: str, *folders: Path) -> str:
    """The error message of a build that fails; checks that it leaves no files."""
    with pytest.raises(UserError) as caught:
        build(recipe_of(kind, *folders), out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)
