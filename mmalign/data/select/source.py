"""The set that is chosen from, as arrays, and the descriptions of it and of test sets.

indexes -> keys (64 bits each), captions of each sample, language of each caption
a set -> a table of `mmalign data describe` that was given, or else one that is made now -> arrays
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.parts import Part
from mmalign.data.select.describe import (
    COLUMNS,
    HASHES,
    IDENTIFIED,
    KIND,
    Options,
    describe,
    describe_by_ray,
)
from mmalign.data.select.tables import SampleKeys, facts_of, is_complete, read_table, table_files
from mmalign.data.shards.folder import Folder, open_folder, read_file
from mmalign.data.shards.manifest import MANIFEST, Manifest
from mmalign.data.shards.shard_index import keys_in, languages_in
from mmalign.data.storage.listing import check_no_secret
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig


def open_tree(name: str) -> tuple[Folder, Manifest, dict[str, Any]]:
    """A data set's folder, its manifest, and the manifest as it is written."""
    check_no_secret(name)
    folder, manifest = open_folder(name, RemoteConfig())
    # A remote folder keeps its manifest's bytes, which the cache does not.
    data = getattr(folder, "manifest", None) or read_file(folder, MANIFEST)
    return folder, manifest, json.loads(data)


@dataclass(frozen=True)
class ChosenFrom:
    """S samples with C captions, in the order of the indexes."""

    name: str
    folder: Folder
    manifest: Manifest  # with the shards of a part, if it is one
    all_languages: list[str]  # also of other parts
    tree: dict[str, Any]  # the manifest as it is written
    keys: SampleKeys
    captions_S: np.ndarray
    languages: list[str]
    language_C: np.ndarray  # positions in `languages`, uint16

    @classmethod
    def open(cls, name: str, part: Part = (0, 1)) -> "ChosenFrom":
        folder, whole, tree = open_tree(name)
        numbers = range(part[0], len(whole.shards), part[1])
        manifest = whole.only(numbers) if part[1] > 1 else whole
        number_of: dict[str, int] = {}
        counts, languages = [np.zeros(0, np.int32)], [np.zeros(0, np.uint16)]

        def keys() -> Iterable[str]:
            for shard in manifest.shards:
                langs = languages_in(folder, manifest, shard)
                counts.append(np.fromiter(map(len, langs), np.int32, len(langs)))
                codes = chain.from_iterable(langs)
                numbers = (number_of.setdefault(code, len(number_of)) for code in codes)
                languages.append(np.fromiter(numbers, np.uint16))
                yield from keys_in(folder, manifest, shard)

        sample_keys = SampleKeys(manifest, keys())
        captions_S, language_C = np.concatenate(counts), np.concatenate(languages)
        return cls(
            name,
            folder,
            manifest,
            list(whole.languages),
            tree,
            sample_keys,
            captions_S,
            list(number_of),
            language_C,
        )


@dataclass
class Descriptions:
    """Tables of `mmalign data describe`, by the data set that they describe; made where none was given."""

    source: ChosenFrom
    work: Path  # where they are kept
    tables: Sequence[str]
    processes: int
    part: Part = (0, 1)  # of the set that is chosen from; test sets are described in full
    ray: str | None = None  # address of the cluster that describes
    _known: dict[tuple[str, bool], str] = field(default_factory=dict)

    def of_set(self, column: str) -> str:
        """The table of the set that is chosen from, which has a certain column."""
        if column not in {name for name, _, _ in COLUMNS}:
            where = ", ".join(self.tables) or "there are none"
            hint = (
                "; `mmalign data describe --identify` makes it"
                if column in {c for c, _, _ in IDENTIFIED}
                else ""
            )
            raise UserError(f"columns.{column}: none of the tables has it ({where}){hint}")
        return self.table(self.source.name, self.source.manifest.sha256, near=column == "phash")

    def table(self, name: str, sha256: str, near: bool) -> str:
        """The table of a data set; `near`: how its images look must be known."""
        if (sha256, near) not in self._known:
            part = self.part if name == self.source.name else (0, 1)
            of_part = f"-{part[0]}-of-{part[1]}" if part[1] > 1 else ""
            kept = str(self.work / f"{sha256[:16]}{of_part}.parquet")
            given = (one for one in (*self.tables, kept) if _describes(one, sha256, near, part))
            table = next(given, None)
            if table is None:
                say(
                    f"{shown(name)}: is described first, in {kept} (as `mmalign data describe` does)"
                )
                options = Options(near=near, processes=self.processes)
                if self.ray is None:
                    describe(name, Path(kept), options, part)
                else:
                    describe_by_ray(name, Path(kept), options, self.ray)
                table = kept
            self._known[sha256, near] = table
        return self._known[sha256, near]

    def against(self, name: str, near: bool) -> tuple[Manifest, list[Any]]:
        """The manifest of another data set, and its table in batches."""
        manifest = open_folder(name, RemoteConfig())[1]
        table = self.table(name, manifest.sha256, near)
        return manifest, [b for file in table_files(table) for b in read_table(file, HASHES)]


def _describes(table: str, sha256: str, near: bool, part: Part) -> bool:
    """Whether a table is of a certain data set, or of this part of it, and (`near`) says how images look."""
    path = Path(table)
    if not path.exists():
        return False
    facts = [facts_of(file) for file in table_files(table)]
    if not all(one.get("kind") == KIND and one.get("data_sha256") == sha256 for one in facts):
        return False
    if near and not all(one["near"] for one in facts):
        return False
    return [one["part"] for one in facts] == [list(part)] or is_complete(facts)
