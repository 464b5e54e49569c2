"""The shards of a large data set as columns in a file beside its manifest, memory-mapped.

    shards, size and sha256 of their files -> write_table -> shards.safetensors
    open_table -> ShardTable: columns, mapped, so that the processes of a host share their pages
                  number -> Shard, made when it is asked for
                  name of a tar or index -> size and sha256, by binary search

A start reads the columns that it needs and makes no object per shard: as JSON and objects, 200,000 shards
with 100 languages take gigabytes in each process. The format is that of safetensors, the tensors are

    counts      (3, S) int64      samples, captions, samples with a caption (-1: not counted)
    languages   (L, S) int32      captions in each language; the codes are in the metadata, as JSON
    sizes       (2, S) int64      bytes of the tar and of the index
    sha256      (2, S, 32) uint8  of the tar and of the index
    file, path  (bytes) uint8     `Shard.file` and `Shard.path` one after another; an empty path is None
    file_ends, path_ends          (S,) int64, where each ends
    by_tar, by_index              (S,) int64, the shards in the order of these names in UTF-8
"""

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.commit import replacing
from mmalign.data.shards.columns import Columns, Shard

TABLE = "shards.safetensors"
TABLES = re.compile(r"shards(-\d+)?\.safetensors")
"""Its names: that of a set that was appended to has the number of shards."""
Facts = dict[str, Any]
"""`size` in bytes and `sha256` of a file."""


def write_table(path: Path, shards: Sequence[Shard], files: Mapping[str, Facts]) -> None:
    """Write the shards and what `files` says of the tar and the index of each, atomically."""
    from safetensors.numpy import save_file

    columns = Columns.of(shards)
    facts = [[files[shard.tar], files[shard.index]] for shard in shards]
    digests = bytes.fromhex("".join(one["sha256"] for two in facts for one in two))
    file, file_ends = _join(shard.file for shard in shards)
    where, path_ends = _join(shard.path or "" for shard in shards)
    numbers = range(len(shards))
    tensors = {
        "counts": np.stack([columns.sample_S, columns.caption_S, columns.captioned_S]),
        "languages": columns.caption_LS,
        "sizes": np.array([[one["size"] for one in two] for two in facts], np.int64).T,
        "sha256": np.frombuffer(digests, np.uint8).reshape(-1, 2, 32).swapaxes(0, 1),
        "file": file,
        "file_ends": file_ends,
        "path": where,
        "path_ends": path_ends,
        "by_tar": np.array(sorted(numbers, key=lambda n: _encode(shards[n].tar)), np.int64),
        "by_index": np.array(sorted(numbers, key=lambda n: _encode(shards[n].index)), np.int64),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {"languages": json.dumps(columns.languages)})


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # names of files may hold half of a surrogate pair


def _join(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [_encode(name) for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


class ShardTable:
    """The shards in a table.

    Args:
        count: so many of the first ones; None: all.

    Raises:
        ValueError, KeyError: the file is not such a table.
    """

    def __init__(self, path: Path, count: int | None = None) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self.count = path, count
        try:
            # Of its frameworks, only this one maps the file instead of copying it.
            with safe_open(path, framework="pt") as tensors:
                names = tensors.keys()
                found = {name: tensors.get_tensor(name).numpy() for name in names}
                languages = tuple(json.loads(tensors.metadata()["languages"]))
        except (SafetensorError, TypeError) as error:
            raise ValueError(str(error)) from None
        for array in found.values():
            array.flags.writeable = False
        sample_S, caption_S, captioned_S = found["counts"]
        self.columns = Columns(sample_S, caption_S, captioned_S, languages, found["languages"])
        self.sizes, self._sha256 = found["sizes"], found["sha256"]
        self._names = [(found[name], found[f"{name}_ends"]) for name in ("file", "path")]
        self._by_tar, self._by_index = found["by_tar"], found["by_index"]
        shards = len(self.columns.sample_S)
        ends = [one[:, -1:] for one in (self.sizes, self.columns.caption_LS)]
        shapes = [one.shape for one in (*ends, self._sha256, self._by_tar, self._by_index)]
        count = min(1, shards)
        if shapes != [(2, count), (len(languages), count), (2, shards, 32), (shards,), (shards,)]:
            raise ValueError("columns of different lengths")
        if self.count is not None:
            # Names are still found among those of all shards.
            self.columns, self.sizes = self.columns.first(self.count), self.sizes[:, : self.count]

    def __reduce__(self) -> Any:  # another process maps the file itself
        return ShardTable, (self.path, self.count)

    def first(self, count: int) -> "ShardTable":
        """The first shards alone, with the columns that a table of them alone would have."""
        return ShardTable(self.path, count)

    def __len__(self) -> int:
        return len(self.columns.sample_S)

    def __iter__(self) -> Iterator[Shard]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Shard:
        columns = self.columns
        counts_L = columns.caption_LS[:, number]
        languages = {columns.languages[row]: int(counts_L[row]) for row in np.flatnonzero(counts_L)}
        captioned = int(columns.captioned_S[number])
        return Shard(
            self._name(0, number),
            int(columns.sample_S[number]),
            int(columns.caption_S[number]),
            languages,
            self._name(1, number) or None,
            None if captioned < 0 else captioned,
        )

    def _name(self, kind: int, number: int) -> str:
        data, ends = self._names[kind]
        start = int(ends[number - 1]) if number else 0
        return bytes(data[start : int(ends[number])]).decode("utf-8", "surrogatepass")

    def _tar(self, number: int) -> str:
        return self._name(1, number) or self._name(0, number)

    def _index(self, number: int) -> str:
        return self._name(0, number).removesuffix(".tar") + ".index.jsonl"

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every tar, then of every index."""
        for name_of, sizes in zip((self._tar, self._index), self.sizes.tolist(), strict=True):
            yield from zip(map(name_of, range(len(self))), sizes, strict=True)

    def facts(self, name: str) -> Facts:
        """Of a tar or an index; a KeyError if there is none of this name."""
        kind = 0
        number = _find(self._by_tar, self._tar, name)
        if number is None:
            kind, number = 1, _find(self._by_index, self._index, name)
        if number is None:
            raise KeyError(name)
        sha256 = self._sha256[kind, number].tobytes().hex()
        return {"size": int(self.sizes[kind, number]), "sha256": sha256}


def _find(order: np.ndarray, name_of: Callable[[int], str], name: str) -> int | None:
    """The number of this name, by binary search in the sorted order of all."""
    place = bisect.bisect_left(order, _encode(name), key=lambda n: _encode(name_of(int(n))))
    number = int(order[place]) if place < len(order) else None
    return number if number is not None and name_of(number) == name else None


class TableFiles(Mapping[str, Facts]):
    """The files of a data set: those of its table, and others."""

    def __init__(self, table: ShardTable, others: Mapping[str, Facts]) -> None:
        self._table, self._others = table, others

    def __getitem__(self, name: str) -> Facts:
        return self._others[name] if name in self._others else self._table.facts(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.file_sizes())

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every file, without a search for each."""
        yield from ((name, facts["size"]) for name, facts in self._others.items())
        yield from self._table.file_sizes()

    def __len__(self) -> int:
        return len(self._others) + 2 * len(self._table)
