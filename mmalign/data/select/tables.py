"""Side tables: facts of samples by key, in parquet or CSV; those that we write, and those of others.

    one part per shard --write_table--> <file>.parquet: `shard`, `key`, columns; one row group per shard
    <file>.parquet, .csv, or a folder of parts --read_table--> batches of rows
    batches + keys of a data set --join--> rows, and the number of the sample that each describes

A column of numbers or texts describes the sample; a column of lists has one value per caption, in the order
of its captions. A key may occur in several shards, so a table with a column `shard` is joined by both.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.commit import replacing, temporary_folder
from mmalign.core.errors import UserError, one_line
from mmalign.data.parts import interleave
from mmalign.data.shards.manifest import Manifest
from mmalign.data.sources.columns import parquet_library

KEY, SHARD = "key", "shard"
_FACTS = b"mmalign"  # in the metadata of a table's schema: what it describes, as JSON
_OPEN_PARTS = 200
_ROWS = 65_536  # that are in memory at a time
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # of small numbers over 64 bits (Fibonacci hashing)

Column = tuple[str, type, bool]
"""Name, type of a value, and whether there is one per caption."""


def write_table(
    path: Path, columns: Iterable[Column], facts: Mapping[str, Any], parts: Iterable[dict[str, Any]]
) -> int:
    """Write a parquet file, atomically; returns its number of rows.

    Args:
        facts: what was measured, for `facts_of`.
        parts: of each shard {column: values}.
    """
    arrow, parquet = parquet_library(path)
    types = {
        int: arrow.int64(),
        float: arrow.float32(),
        str: arrow.string(),
        np.uint64: arrow.uint64(),
    }
    fields = [(SHARD, arrow.string()), (KEY, arrow.string())]
    for name, kind, per_caption in columns:
        fields.append((name, arrow.list_(types[kind]) if per_caption else types[kind]))
    schema = arrow.schema(fields, metadata={_FACTS: json.dumps(dict(facts)).encode()})
    rows = 0
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for part in parts:
            table = arrow.table(part, schema=schema)
            writer.write_table(table, row_group_size=max(1, len(table)))
            rows += len(table)
    return rows


def facts_of(path: Path) -> dict[str, Any]:
    """The `facts` of a table that `write_table` made; empty for any other file."""
    if path.suffix != ".parquet" or not path.is_file():
        return {}
    arrow, parquet = parquet_library(path)
    try:
        found = (parquet.read_schema(path).metadata or {}).get(_FACTS)
        return dict(json.loads(found)) if found else {}
    except (arrow.ArrowException, OSError, ValueError, TypeError):
        return {}


def is_complete(facts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether tables with these facts are all parts of one, each once."""
    parts = sorted(tuple(one["part"]) for one in facts)
    return parts == [(number, len(facts)) for number in range(len(facts))]


def merge_tables(path: Path, parts: Sequence[str]) -> int:
    """Write one table of all its parts, as one process would have written it; returns its number of rows.

    Args:
        parts: files of `mmalign data describe` or `score` with `--part`, or folders of them.

    Raises:
        UserError: a part is missing, is there twice or is of something else.
    """
    arrow, parquet = parquet_library(path)
    files = [file for part in parts for file in table_files(part)]
    of_file = [(file, facts_of(file)) for file in files]
    for file, facts in of_file:
        if "part" not in facts:
            raise UserError(f"{file}: not written by `mmalign data describe` or `score`")
        if {**facts, "part": 0} != {**of_file[0][1], "part": 0}:
            raise UserError(
                f"{file}: is of another data set or was made with other options than {files[0]}; name the "
                "parts of one table"
            )
    of_file.sort(key=lambda one: one[1]["part"])
    if not is_complete([facts for _, facts in of_file]):
        count = of_file[0][1]["part"][1]
        found = ", ".join(f"{i}/{n}" for i, n in (facts["part"] for _, facts in of_file))
        raise UserError(f"{path}: of {count} parts there are {found}; name each part once")
    facts = {**of_file[0][1], "part": (0, 1)}
    fields = [(field.name, field.type) for field in parquet.read_schema(of_file[0][0])]
    # Parquet has another name for the values of a list than `write_table`.
    fields = [
        (name, arrow.list_(kind.value_type) if arrow.types.is_list(kind) else kind)
        for name, kind in fields
    ]
    schema = arrow.schema(fields, metadata={_FACTS: json.dumps(facts).encode()})
    counts = [parquet.read_metadata(file).num_row_groups for file, _ in of_file]
    groups = interleave(
        [[(file, g) for g in range(n)] for (file, _), n in zip(of_file, counts, strict=True)]
    )
    # A cluster makes a part per core, more than a process may have files open.
    opened = lru_cache(_OPEN_PARTS)(parquet.ParquetFile)
    rows = 0
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for file, group in groups:
            table = opened(file).read_row_group(group).cast(schema)
            writer.write_table(table, row_group_size=max(1, len(table)))
            rows += len(table)
    return rows


@contextmanager
def parts_of_table(path: Path) -> Iterator[Path]:
    """A folder beside a table for its parts, deleted at the end."""
    folder = temporary_folder(path.absolute())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table_files(name: str) -> list[Path]:
    """The files of a side table: one, or all parts in a folder."""
    path = Path(name)
    files = (
        sorted(path.glob("*.parquet")) or sorted(path.glob("*.csv")) if path.is_dir() else [path]
    )
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{name}: no such table; name a .parquet or .csv file, or a folder of them")
    if any(file.suffix not in (".parquet", ".csv") for file in files):
        raise UserError(f"{name}: not a side table; name a .parquet or .csv file")
    return files


def columns_of(file: Path) -> list[str]:
    """The names of a table's columns; a UserError if it cannot be read or has no `key`."""
    with _reading(file) as (_, parquet):
        is_parquet = file.suffix == ".parquet"
        names = parquet.read_schema(file).names if is_parquet else _open_csv(file).schema.names
    if KEY not in names:
        raise UserError(
            f"{file}: has no column `{KEY}`, the key of each sample; it has {', '.join(names)}"
        )
    return list(names)


def read_table(file: Path, columns: Iterable[str]) -> Iterator[Any]:
    """Batches of the rows of one file with `key`, `shard` if it has one, and these columns."""
    columns = set(columns)
    there = columns_of(file)
    if lacking := sorted(columns - set(there)):
        raise UserError(
            f"{file}: has no column `{lacking[0]}`; it has {', '.join(there)}; all files of a table need the "
            "same columns"
        )
    wanted = [name for name in there if name in {KEY, SHARD, *columns}]
    with _reading(file) as (_, parquet):
        if file.suffix == ".parquet":
            with parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(_ROWS, columns=wanted)
        else:
            for batch in _open_csv(file):
                yield batch.select(wanted)


class _reading:
    """Pyarrow's two modules; their errors about a file as one sentence."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.modules = parquet_library(file)

    def __enter__(self) -> tuple[Any, Any]:
        return self.modules

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, self.modules[0].ArrowException | UnicodeDecodeError):
            raise UserError(f"{self.file}: cannot be read as a table ({one_line(error)})") from None


def _open_csv(file: Path) -> Any:
    from pyarrow import csv, string

    # A key of digits is a text: `000123` is not 123.
    convert = csv.ConvertOptions(column_types={KEY: string(), SHARD: string()})
    return csv.open_csv(file, convert_options=convert)


class SampleKeys:
    """The keys of a data set's samples, as 64 bits each, and the sample that a row of a table describes.

    Args:
        manifest: of the set.
        keys: of every sample, shard after shard.
    """

    # Two of a billion keys share their 64 bits with a probability of 3 %.

    def __init__(self, manifest: Manifest, keys: Iterable[str]) -> None:
        samples = [shard.samples for shard in manifest.shards]
        # Python's hash differs from process to process, so these numbers stay in this one.
        self.hash_S = np.fromiter(map(hash, keys), np.int64, sum(samples)).view(np.uint64)
        self.shards = {shard.file: number for number, shard in enumerate(manifest.shards)}
        self.shard_S = np.repeat(np.arange(len(samples), dtype=np.int32), samples)
        self._sorted: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    def find(self, batch: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a batch that describe a sample, and the samples; a row may describe several."""
        hash_R = np.fromiter(map(hash, _texts(batch, KEY)), np.int64, len(batch)).view(np.uint64)
        by_shard = SHARD in batch.schema.names
        if by_shard:
            numbers = (self.shards.get(name, -1) for name in _texts(batch, SHARD))
            number_R = np.fromiter(numbers, np.int64, len(batch)).view(np.uint64)
            hash_R ^= number_R * SPREAD
        sorted_S, order_S = self._sort(by_shard)
        first_R = np.searchsorted(sorted_S, hash_R, "left")
        count_R = np.searchsorted(sorted_S, hash_R, "right") - first_R
        rows = np.repeat(np.arange(len(batch)), count_R)
        inner = np.arange(len(rows)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
        return rows, order_S[first_R[rows] + inner]

    def _sort(self, by_shard: bool) -> tuple[np.ndarray, np.ndarray]:
        if by_shard not in self._sorted:
            hash_S = self.hash_S
            if by_shard:
                hash_S = hash_S ^ (self.shard_S.astype(np.uint64) * SPREAD)
            order_S = np.argsort(hash_S, kind="stable")
            self._sorted[by_shard] = hash_S[order_S], order_S
        return self._sorted[by_shard]


def _texts(batch: Any, column: str) -> list[str]:
    values = batch.column(column)
    return [str(value) for value in values.to_pylist()]


def join(
    keys: SampleKeys, name: str, columns: Iterable[str]
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """(batch, rows, samples) of all files of a table; a UserError if two rows describe one sample."""
    seen_S = np.zeros(len(keys.hash_S), bool)
    for file in table_files(name):
        for batch in read_table(file, columns):
            rows, samples = keys.find(batch)
            again = seen_S[samples]
            seen_S[samples] = True
            if again.any() or len(np.unique(samples)) < len(samples):
                sorted_samples = np.sort(samples)
                twice = (
                    samples[again]
                    if again.any()
                    else sorted_samples[:-1][np.diff(sorted_samples) == 0]
                )
                row = rows[np.flatnonzero(samples == twice[0])[-1]]
                key = batch.column(KEY)[int(row)].as_py()
                raise UserError(
                    f"{file}: has two rows for the sample `{key}`; keep one, or add a column `{SHARD}` where "
                    "the keys of several shards are equal"
                )
            yield batch, rows, samples
