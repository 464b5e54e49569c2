"""The recipe runner: one YAML file -> shards of every split, and text tasks where the source has them.

    recipe -> source -> pairs -> <out>/<split>/{00000.tar, ..., manifest.json}
                     -> rows  -> <out>/tasks/<task>/<split>.<lang>.tsv

A recipe that was run already is not run again: the manifests carry its hash.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from mmalign.batch import Pair, TaskRow
from mmalign.commit import replace_folder, temporary_folder, write_atomic, write_manifest
from mmalign.config import Section
from mmalign.data.shards import MANIFEST, Manifest, ShardWriter, read_manifest
from mmalign.data.sources import emoji_scenes, jsonl
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.jsonl import Jsonl
from mmalign.data.withhold import Withhold, choose_withheld, withheld_pairs, without_withheld
from mmalign.errors import UserError

SourceConfig = Annotated[EmojiScenes | Jsonl, pydantic.Field(discriminator="kind")]

TASKS = "tasks"


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
        _write_tasks(_read_tasks(config), work / TASKS)
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
    ours = {*splits, TASKS} if splits else set()
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
    if isinstance(config.source, EmojiScenes):
        return emoji_scenes.read_pairs(config.source, config.seed)
    return jsonl.read_pairs(config.source, config.seed)


def _read_tasks(config: RecipeConfig) -> Iterator[TaskRow]:
    if isinstance(config.source, EmojiScenes):
        return emoji_scenes.read_tasks(config.source, config.seed)
    return iter(())


def _write_tasks(rows: Iterator[TaskRow], folder: Path) -> None:
    """One TSV file per split and language, in SIB-200's layout: id, label, text, no quoting."""
    files: dict[Path, list[str]] = defaultdict(lambda: ["id\tlabel\ttext"])
    for row in rows:
        path = folder / row.task / f"{row.split}.{row.lang}.tsv"
        files[path].append(f"{row.id}\t{row.label}\t{row.text}")
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "\n".join(lines) + "\n")
