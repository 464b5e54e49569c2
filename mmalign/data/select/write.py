"""The index and the manifest of chosen samples; no tar is opened.

    Choice -> rows of every shard's index -> <out>/<shard>.index.jsonl -> <out>/manifest.json, last

The manifest names the tars by their path from `<out>`, or by their URL.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.commit import flush, sha256_of
from mmalign.core.console import track
from mmalign.data.select.choice import Choice
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.source import ChosenFrom
from mmalign.data.select.tables import table_files
from mmalign.data.shards.folder import LocalFolder
from mmalign.data.shards.manifest import FORMAT_VERSION, Facts, Manifest, Shard, write_manifest
from mmalign.data.shards.shard_index import line_starts, parse_row, read_index
from mmalign.data.storage.remote import is_remote
from mmalign.data.storage.remote import join as join_url

Chosen = tuple[dict[str, Any], dict[str, Facts]]
"""A shard with chosen samples as a manifest lists it, and its files."""


def write_indexes(source: ChosenFrom, choice: Choice, out: Path) -> list[Chosen | None]:
    """Write the index of the chosen samples of every shard; None: the shard has none."""
    manifest = source.manifest
    sample_S, caption_C = choice.sample_S, choice.caption_C
    written: list[Chosen | None] = []
    first = 0
    for shard in track(manifest.shards, "shards", len(manifest.shards)):
        rows = np.flatnonzero(sample_S[first : first + shard.samples])
        index = out / shard.index
        if len(rows):
            index.write_bytes(b"".join(_lines(source, choice, caption_C, shard, first, rows)))
            path = _path_of(source, shard, out)
            new = _counted(source, choice, caption_C, replace(shard, path=path), first + rows)
            files = {new.tar: manifest.files[shard.tar], new.index: flush(index)}
            written.append((new.to_json(), files))
        else:
            index.unlink(missing_ok=True)
            written.append(None)
        first += shard.samples
    return written


def write_chosen(
    manifest: Manifest,
    tree: dict[str, Any],
    recipe: dict[str, Any],
    out: Path,
    written: Iterable[Chosen | None],
    removed: dict[str, dict[str, int]],
) -> None:
    """Write the manifest.

    Args:
        manifest, tree: of the set that was chosen from, all of it, and as it is written.
        recipe: as `recipe_of` says it.
        written: of all shards, in order.
    """
    chosen = [one for one in written if one is not None]
    files = {name: facts for _, of_shard in chosen for name, facts in of_shard.items()}
    recipe = {**recipe, "from": manifest.recipe}
    write_manifest(
        out,
        {
            "name": manifest.name,
            "split": manifest.split,
            "recipe": recipe,
            "recipe_sha256": hashlib.sha256(
                json.dumps(recipe, sort_keys=True).encode()
            ).hexdigest(),
            "format": FORMAT_VERSION,
            "captions": {**tree.get("captions", {}), "from": manifest.captions},
            "selected_from": {"manifest_sha256": manifest.sha256, "samples": manifest.samples},
            "removed": removed,
            # Of the set that was chosen from: no index says which sample has which.
            **{name: tree[name] for name in ("licenses", "attributions") if name in tree},
            "shards": [shard for shard, _ in chosen],
        },
        files,
    )


def recipe_of(config: SelectConfig) -> dict[str, Any]:
    """The rules, and the bytes of the tables by which was chosen."""
    rules = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    tables = {
        f"{table}/{file.name}": sha256_of(file)
        for table in config.tables
        for file in table_files(table)
    }
    return {"select": rules, "tables": tables}


def _lines(
    source: ChosenFrom,
    choice: Choice,
    caption_C: np.ndarray,
    shard: Shard,
    first: int,
    rows: np.ndarray,
) -> Iterator[bytes]:
    """The rows of a new index; one of which some captions are not chosen names the others by their number."""
    location = source.folder.location(shard.index)
    data = read_index(source.folder, source.manifest, shard)
    starts = line_starts(data, location, shard).tolist()
    captions, of_row = choice.captions_of(first + rows)
    kept = np.split(caption_C[captions], np.cumsum(of_row[:-1]))
    is_complete = (
        np.bincount(np.repeat(np.arange(len(rows)), of_row), ~caption_C[captions], len(rows)) == 0
    )
    for row, complete, chosen in zip(rows.tolist(), is_complete.tolist(), kept, strict=True):
        line = data[starts[row] : starts[row + 1]]
        if complete:
            yield line if line.endswith(b"\n") else line + b"\n"
            continue
        facts = parse_row(line, location)
        numbers = np.flatnonzero(chosen).tolist()
        before = facts.get("captions") or range(len(chosen))  # it may have been chosen from before
        facts["captions"] = [before[number] for number in numbers]
        facts["langs"] = [facts["langs"][number] for number in numbers]
        yield json.dumps(facts, ensure_ascii=False).encode() + b"\n"


def _counted(
    source: ChosenFrom, choice: Choice, caption_C: np.ndarray, shard: Shard, samples: np.ndarray
) -> Shard:
    captions, of_sample = choice.captions_of(samples)
    kept = caption_C[captions]
    numbers = np.bincount(source.language_C[captions[kept]], minlength=len(source.languages))
    languages = {code: n for code, n in zip(source.languages, numbers.tolist(), strict=True) if n}
    captioned = len(np.unique(np.repeat(samples, of_sample)[kept]))
    return replace(
        shard,
        samples=len(samples),
        captions=int(kept.sum()),
        languages=dict(sorted(languages.items())),
        captioned=captioned,
    )


def _path_of(source: ChosenFrom, shard: Shard, out: Path) -> str:
    """Where a tar lies, as the new manifest names it."""
    folder = source.folder
    if is_remote(shard.tar):
        return shard.tar
    if not isinstance(folder, LocalFolder):
        return join_url(folder.url, shard.tar)
    if shard.path is not None and Path(shard.path).is_absolute():
        return shard.path
    # Relative, so that both sets can be moved together.
    return Path(os.path.relpath((folder.path / shard.tar).resolve(), out.resolve())).as_posix()
