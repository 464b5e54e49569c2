"""The recipe runner: one YAML file -> shards of every split, and tasks and word lists where there are any.

    recipe -> source -> pairs -> <out>/<split>/{00000.tar, ..., manifest.json}
                     -> rows  -> <out>/tasks/<task>/<split>.<lang>.tsv
                     -> words -> <out>/words/<list>.tsv

A recipe that was run already is not run again: the manifests carry its hash.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from mmalign.batch import Example, Pair
from mmalign.commit import replace_folder, temporary_folder, write_atomic, write_manifest
from mmalign.config import Section
from mmalign.data.shards import MANIFEST, Manifest, ShardWriter, read_manifest
from mmalign.data.sources import (
    emoji_scenes,
    emoji_tasks,
    emoji_words,
    flickr8k,
    iglue,
    jsonl,
    parallel_lines,
    xm3600,
)
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.flickr8k import Flickr8k
from mmalign.data.sources.iglue import Wit, XFlickrCO
from mmalign.data.sources.jsonl import Jsonl
from mmalign.data.sources.parallel_lines import Multi30k, Xtd10
from mmalign.data.sources.xm3600 import Xm3600
from mmalign.data.withhold import Withhold, choose_withheld, withheld_pairs, without_withheld
from mmalign.errors import UserError

SourceConfig = Annotated[
    EmojiScenes | Jsonl | Xm3600 | Xtd10 | Multi30k | XFlickrCO | Wit | Flickr8k,
    pydantic.Field(discriminator="kind"),
]

_READERS: dict[str, Callable[[Any, int], Iterator[Pair]]] = {
    "emoji_scenes": emoji_scenes.read_pairs,
    "jsonl": jsonl.read_pairs,
    "xm3600": xm3600.read_pairs,
    "xtd10": parallel_lines.read_xtd10,
    "multi30k": parallel_lines.read_multi30k,
    "xflickrco": iglue.read_xflickrco,
    "wit": iglue.read_wit,
    "flickr8k": flickr8k.read_pairs,
}

TASKS = "tasks"
WORDS = "words"

Table = list[tuple[str, ...]]
"""Rows of a TSV file; the first one names the columns."""

_TEXT_COLUMNS = {1: ("text",), 2: ("premise", "hypothesis")}


class RecipeConfig(Section):
    name: str
    """Name of the data set in manifests and metrics."""
    seed: int = 0
    samples_per_shard: int = pydantic.Field(default=5000, ge=1)
    source: SourceConfig
    withhold: Withhold | None = None
    """Withhold captions of training pictures and write them as the split `withheld`."""


def build(config: RecipeConfig, out: Path, force: bool = False) -> list[Manifest]:
    """Write every split below `out` and return the manifests.

    The folder appears whole or not at all.

    Args:
        force: build again over a data set that is already there.

    Raises:
        UserError: the source is broken or empty, or `out` holds something else.
    """
    recipe = config.model_dump(mode="json")
    recipe_sha256 = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    splits = _splits_in(out)
    if splits and not force:
        manifests = [read_manifest(out / split) for split in splits]
        if all(manifest.recipe_sha256 == recipe_sha256 for manifest in manifests):
            return manifests
        raise UserError(
            f"{out}: holds the data set of another recipe; name another folder with --out, or give --force"
        )
    work = temporary_folder(out.resolve())
    try:
        written = _write_splits(config, work)
        _write_tables(_task_tables(_read_tasks(config)), work / TASKS)
        _write_tables(_read_words(config), work / WORDS)
        facts = {"name": config.name, "recipe": recipe, "recipe_sha256": recipe_sha256}
        for split, shards in written.items():
            write_manifest(work / split, {**facts, "split": split, **shards}, MANIFEST)
        replace_folder(work, out.resolve())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [read_manifest(out / split) for split in written]


def _splits_in(out: Path) -> list[str]:
    """Names of the splits of a data set in `out`; none where it does not exist or is empty.

    Raises:
        UserError: `out` holds other things too: a build replaces it, and must not delete what is not ours.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    entries = sorted(path.name for path in out.iterdir()) if out.exists() else []
    splits = [name for name in entries if (out / name / MANIFEST).is_file()]
    ours = {*splits, TASKS, WORDS} if splits else set()
    strange = [name for name in entries if name not in ours]
    if strange:
        raise UserError(
            f"{out}: holds `{strange[0]}`, which is no data set; name an empty folder with --out"
        )
    return splits


def _write_splits(config: RecipeConfig, work: Path) -> dict[str, Any]:
    """Write the shards of every split below `work`; returns each split's part of the manifest."""
    writers: dict[str, ShardWriter] = {}
    for pair in _pairs_of_all_splits(config):
        if pair.split not in writers:
            writers[pair.split] = ShardWriter(work / pair.split, config.samples_per_shard)
        writers[pair.split].add(pair)
    if not writers:
        raise UserError(
            f"recipe `{config.name}`: the source has no pairs, the data set would be empty"
        )
    return {split: writer.finish() for split, writer in writers.items()}


def _pairs_of_all_splits(config: RecipeConfig) -> Iterator[Pair]:
    if config.withhold is None:
        yield from read_pairs(config)
        return

    def training_pairs() -> Iterator[Pair]:
        return (pair for pair in read_pairs(config) if pair.split == "train")

    withheld = choose_withheld(training_pairs(), config.withhold, config.seed)
    for pair in read_pairs(config):
        yield without_withheld(pair, withheld) if pair.split == "train" else pair
    yield from withheld_pairs(training_pairs(), withheld)


def read_pairs(config: RecipeConfig) -> Iterator[Pair]:
    """The pairs of the recipe's source, always in the same order."""
    return _READERS[config.source.kind](config.source, config.seed)


def _read_tasks(config: RecipeConfig) -> Iterator[tuple[str, str, Example]]:
    """(task, split, example)"""
    if isinstance(config.source, EmojiScenes):
        return emoji_tasks.read_tasks(config.source, config.seed)
    return iter(())


def _read_words(config: RecipeConfig) -> dict[str, Table]:
    if isinstance(config.source, EmojiScenes):
        return emoji_words.read_words(config.source)
    return {}


def _task_tables(rows: Iterable[tuple[str, str, Example]]) -> dict[str, Table]:
    """One table per task, split and language, the layout of SIB-200: id, label, then one text or two."""
    tables: dict[str, Table] = {}
    for task, split, row in rows:
        header = ("id", "label", *_TEXT_COLUMNS[len(row.texts)])
        table = tables.setdefault(f"{task}/{split}.{row.lang}", [header])
        table.append((row.id, str(row.target), *row.texts))
    return tables


def _write_tables(tables: dict[str, Table], folder: Path) -> None:
    """Write TSV files without quoting: no cell may hold a tab or a line break."""
    for name, rows in tables.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join("\t".join(row) + "\n" for row in rows))
