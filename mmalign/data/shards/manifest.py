"""Shards: plain webdataset tars with an index and a manifest.

    pairs -> <folder>/00000.tar          members <key>.{jpg,png,webp}, <key>.json, <key>.txt
             <folder>/00000.index.jsonl  one line per sample: its members, `picture` and languages
             <folder>/sizes.json         samples of each tar, for readers of other projects
             <folder>/manifest.json      written last: counts, licences, sha256 of each file, the recipe;
                                         of a large set, the shards and their files are in shard_table.py's

`<key>.txt` holds the first caption, so that readers that expect one caption per image work; `<key>.json`
holds all of them. The same pairs give the same bytes.
"""

import hashlib
import json
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core import commit
from mmalign.core.batch import Pair
from mmalign.core.commit import flush, sha256_of
from mmalign.core.errors import UserError
from mmalign.data.image_formats import WRITTEN_SUFFIXES, image_suffix
from mmalign.data.shards.columns import Columns
from mmalign.data.shards.columns import Shard as Shard
from mmalign.data.shards.shard_table import (
    TABLE,
    TABLES,
    Facts,
    ShardTable,
    TableFiles,
    write_table,
)
from mmalign.data.shards.tar import Member, walk

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
TABLE_VERSION = 2  # of manifests whose shards are in a table
MOST_LISTED = 1000
"""Shards that a manifest lists itself, where people and other programs can read them."""
FIX = "make the data set again, or index its shards with `mmalign data index`"
OWN_CAPTIONS = "json:captions"
"""Where the captions are in our own shards: a list of {"lang", "text"}."""


@dataclass(frozen=True)
class Manifest:
    """What a data set folder holds."""

    name: str
    split: str
    recipe: dict[str, Any]
    recipe_sha256: str  # equal recipes need no second build
    shards: tuple[Shard, ...] | ShardTable
    captions: str  # where a sample's captions are: `txt`, or `json:FIELD` of its JSON
    refused: dict[str, dict[str, int]]  # parts of each shard that are not used, by reason
    ignored: dict[str, int]  # members that are never opened, by suffix
    files: Mapping[str, Facts]  # by the path from the folder
    sha256: str  # of the manifest file itself; it identifies the data set's exact bytes
    # Before each `mmalign data append`: sha256 of the manifest, and how many shards it had.
    earlier: tuple[tuple[str, int], ...] = ()
    grown_sha256: str | None = None  # of the file, where this is what the set was earlier

    def as_of(self, sha256: str) -> "Manifest | None":
        """The manifest with this sha256: this one, or the one that the set had before shards were appended.

        Appended shards follow the others, which stay as they were, so an earlier manifest is the first shards
        of this one. An order of samples that is made of it equals the order from before. None: there was
        never such a manifest.
        """
        if sha256 == self.sha256:
            return self
        for number, (known, count) in enumerate(self.earlier):
            if known == sha256:
                shards = self.shards
                first = shards.first(count) if isinstance(shards, ShardTable) else shards[:count]
                return replace(
                    self,
                    shards=first,
                    sha256=sha256,
                    earlier=self.earlier[:number],
                    grown_sha256=self.grown_sha256 or self.sha256,
                )
        return None

    @cached_property
    def columns(self) -> Columns:
        return (
            self.shards.columns if isinstance(self.shards, ShardTable) else Columns.of(self.shards)
        )

    @property
    def shard_bytes(self) -> np.ndarray:
        """(shards,) int64: size of the tar and the index of each."""
        if isinstance(self.shards, ShardTable):
            total_S: np.ndarray = self.shards.sizes.sum(0)
            return total_S
        sizes = [[self.files[n]["size"] for n in (one.tar, one.index)] for one in self.shards]
        return np.array(sizes, np.int64).sum(1)

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every file."""
        if isinstance(self.files, TableFiles):
            yield from self.files.file_sizes()
        else:
            yield from ((name, facts["size"]) for name, facts in self.files.items())

    @property
    def samples(self) -> int:
        return int(self.columns.sample_S.sum())

    @cached_property
    def languages(self) -> dict[str, int]:
        """Captions per language, most frequent first."""
        columns = self.columns
        total = zip(columns.languages, columns.caption_LS.sum(1).tolist(), strict=True)
        return dict(sorted(total, key=lambda item: (-item[1], item[0])))

    def only(self, numbers: Iterable[int]) -> "Manifest":
        """The same manifest with these shards alone."""
        return replace(self, shards=tuple(self.shards[number] for number in numbers))

    def part(self, shard: Shard) -> "Manifest":
        """The manifest of one shard alone."""
        # Little enough to be sent to a process for each shard.
        names = (shard.tar, shard.index)
        files = {name: self.files[name] for name in names if name in self.files}
        return replace(self, recipe={}, shards=(shard,), files=files, refused={}, ignored={})


def write_shard(path: Path, pairs: Iterable[Pair]) -> dict[str, Counter[str]]:
    """Write one webdataset tar; returns how many pairs have each of the `licenses` and `attributions`."""
    import webdataset

    licenses, attributions = Counter[str](), Counter[str]()
    with (
        path.open("wb") as file,
        # Fixed owner and time, and encoding by ourselves: nothing in the tar depends on where it is made.
        webdataset.TarWriter(
            file, user="mmalign", group="mmalign", mtime=0, encoder=False, compress=False
        ) as tar,
    ):
        for pair in pairs:
            licenses[pair.license] += 1
            if pair.attribution:
                attributions[pair.attribution] += 1
            # A reader splits the name of a member at the first dot, and webdataset at the last slash.
            assert "/" not in pair.key and "." not in pair.key, pair.key
            facts = {
                "captions": [
                    {
                        name: value
                        for name, value in asdict(caption).items()
                        if name != "field" or value
                    }
                    for caption in pair.captions
                ],
                "picture": pair.picture,
                "split": pair.split,
                "source": pair.source,
                "license": pair.license,
                "attribution": pair.attribution,
            }
            first = pair.captions[0].text if pair.captions else ""
            tar.write(
                {
                    "__key__": pair.key,
                    image_suffix(pair.image): pair.image,
                    "json": json.dumps(facts, ensure_ascii=False).encode(),
                    "txt": first.encode(),
                }
            )
    return {"licenses": licenses, "attributions": attributions}


def index_shard(path: Path) -> list[dict[str, Any]]:
    """The index of a shard that `write_shard` made, one row per sample.

    `key`, `picture`, `langs`, and `image` and `json` as `extent_of` returns them.
    """
    rows: dict[str, dict[str, Any]] = {}
    with path.open("rb") as file:
        for member in walk(file):
            # It was just written, so nothing in it is damaged.
            assert isinstance(member, Member) and member.problem is None, member
            key, _, suffix = member.name.partition(".")
            row = rows.setdefault(key, {"key": key})
            file.seek(member.offset)
            data = file.read(member.size)
            if suffix in WRITTEN_SUFFIXES:
                row["image"] = extent_of(suffix, member.offset, data)
            elif suffix == "json":
                facts = json.loads(data)
                row["json"] = extent_of(suffix, member.offset, data)
                row["picture"] = facts["picture"]
                row["langs"] = [caption["lang"] for caption in facts["captions"]]
    return list(rows.values())


def extent_of(suffix: str, offset: int, data: bytes) -> list[Any]:
    """What an index row says of a member: [suffix, offset, size, crc32]; older rows have no crc32."""
    return [suffix, offset, len(data), zlib.crc32(data)]


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a data set, without a check of its files."""
    path = folder / MANIFEST
    if not folder.is_dir() and ":/" in str(folder):  # a Path has lost one slash of `file:///data`
        raise UserError(
            f"{folder}: is a URL, which is not read here; give a folder of this machine"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such data set; make it with `mmalign data build RECIPE`")
    if not path.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST}, so it is not a finished data set; run `mmalign data build` again, or "
            "`mmalign data index` for shards that others made"
        )
    data = path.read_bytes()

    def path_of(name: str) -> Path:
        table = folder / name
        if not table.is_file() or sha256_of(table) != json.loads(data)["files"][name]["sha256"]:
            raise UserError(f"{table}: missing or damaged; {FIX}")
        return table

    return parse_manifest(data, str(path), path_of)


def write_manifest(
    folder: Path, info: dict[str, Any], files: dict[str, Facts], table: str = TABLE
) -> None:
    """Write the manifest of a data set, after its other files.

    Args:
        info: what it says; `shards` is a list of `Shard.to_json`. More than `MOST_LISTED` are written to a
            table beside it.
        files: what `flush` returned for each file.
        table: its name.
    """
    rows = info["shards"]
    if len(rows) > MOST_LISTED:
        shards = [Shard(**row) for row in rows]
        write_table(folder / table, shards, files)
        names = {name for shard in shards for name in (shard.tar, shard.index)}
        files = {name: facts for name, facts in files.items() if name not in names}
        files[table] = flush(folder / table)
        listed = {"table": table, "count": len(rows)}
        info = {**info, "format": TABLE_VERSION, "shards": listed}
    commit.write_manifest(folder, info, MANIFEST, files)
    for other in folder.glob("shards*.safetensors"):  # of an earlier version of the data set
        if TABLES.fullmatch(other.name) and other.name not in files:
            other.unlink()


def parse_manifest(data: bytes, location: str, path_of: Callable[[str], Path]) -> Manifest:
    """The manifest of a data set from its bytes.

    Args:
        location: of their file, for messages.
        path_of: of the name of a file beside it, the path of a local one whose bytes are as listed.
    """
    try:
        tree = json.loads(data)
        files: Mapping[str, Facts] = {
            name: {"size": facts["size"], "sha256": facts["sha256"]}
            for name, facts in tree["files"].items()
        }
        shards: tuple[Shard, ...] | ShardTable
        if isinstance(tree["shards"], dict):
            shards = ShardTable(path_of(tree["shards"]["table"]))
            files = TableFiles(shards, files)
        else:
            shards = tuple(Shard(**shard) for shard in tree["shards"])
        return Manifest(
            name=tree["name"],
            split=tree["split"],
            recipe=tree["recipe"],
            recipe_sha256=tree["recipe_sha256"],
            shards=shards,
            captions=tree.get("captions", {}).get("from", OWN_CAPTIONS),
            refused=tree.get("refused", {}),
            ignored=tree.get("ignored", {}),
            files=files,
            sha256=hashlib.sha256(data).hexdigest(),
            earlier=tuple((one["to"], one["shards"]) for one in tree.get("appended", ())),
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{location}: not a manifest of mmalign shards") from None


def read_manifest(folder: Path, check_files: bool = True) -> Manifest:
    """The manifest of a data set, after the sizes of its files, if wanted, were compared with it.

    Raises:
        UserError: no data set there, an empty one, or a file that is missing or has another size.
    """
    manifest = load_manifest(folder)
    for name, size in manifest.file_sizes() if check_files else ():
        if "://" in name:  # compared when it is downloaded
            continue
        file = folder / name
        if _size(file) != size:
            raise UserError(
                f"{file}: missing or of another size than {MANIFEST} says; `mmalign data verify` says more"
            )
    if manifest.samples == 0:
        raise UserError(f"{folder}: the data set is empty")
    return manifest


def _size(path: Path) -> int | None:
    """Bytes of a file; None: there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
