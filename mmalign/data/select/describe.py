"""`mmalign data describe`: one row of facts per sample, in a side table that `data select` reads.

    data set -> shards, one process each -> of every sample sizes, hashes, facts of captions -> <file>.parquet

Reading images is what takes long, so it is done once, and any number of selections are made of the table.
Samples that cannot be used have no row.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.console import track
from mmalign.core.ray_tasks import map_parts
from mmalign.core.workers import map_in_processes
from mmalign.data.identify import identifier, script_share
from mmalign.data.parts import Part
from mmalign.data.select.tables import (
    KEY,
    SHARD,
    Column,
    merge_tables,
    parts_of_table,
    write_table,
)
from mmalign.data.shards.folder import open_folder
from mmalign.data.shards.jobs import Job, read_shard, shard_jobs
from mmalign.data.shards.reader import UnusableSample
from mmalign.data.shards.withhold import normalise
from mmalign.data.stats.survey import look
from mmalign.data.storage.remote import RemoteConfig

KIND = "describe"
PICTURE, CONTENT, PHASH, TEXT_HASH = "picture", "content_hash", "phash", "text_hash"
HASHES = (CONTENT, PHASH, PICTURE, TEXT_HASH)
COLUMNS: list[Column] = [
    (PICTURE, int, False),  # its identity: equal where the data set says that images are equal
    (CONTENT, np.uint64, False),  # of its bytes
    # How it looks (stats/duplicates.py); 0: it has no structure, or was not decoded.
    (PHASH, np.uint64, False),
    ("width", int, False),  # in pixels, upright
    ("height", int, False),
    ("bytes", int, False),
    ("source", str, False),
    ("license", str, False),
    ("language", str, True),
    ("characters", int, True),
    (TEXT_HASH, np.uint64, True),  # of the normalised text
    ("script_share", float, True),  # of its letters, those in the usual script of its language
]
IDENTIFIED: list[Column] = [
    ("identified_language", str, True),
    ("language_confidence", float, True),  # of the identifier, 0 to 1
]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    near: bool = True  # how images look, for which every image is decoded
    identify: str | None = None  # a language identifier (identify.py); None: no identification
    processes: int = 1  # shards that are read at once


@dataclass(frozen=True)
class Described:
    """What was written."""

    samples: int
    unusable: dict[str, int]  # samples without a row, by reason


def describe(
    name: str | os.PathLike[str], out: Path, options: Options, part: Part = (0, 1)
) -> Described:
    """Write the table of the data set in a folder or at a URL, or of a part of its shards."""
    folder, manifest = open_folder(name, RemoteConfig())
    if options.identify is not None:
        identifier(options.identify)  # fails before any shard is read
    numbers = range(part[0], len(manifest.shards), part[1])
    done = map_in_processes(
        partial(_describe_shard, options), shard_jobs(folder, manifest, numbers), options.processes
    )
    unusable = Counter[str]()

    def parts() -> Iterator[dict[str, Any]]:
        for columns, reasons in track(done, "shards", len(numbers)):
            unusable.update(reasons)
            yield columns

    columns = COLUMNS + (IDENTIFIED if options.identify else [])
    facts = {
        "kind": KIND,
        "data_sha256": manifest.sha256,
        "part": part,
        # Not how many processes there were: parts may have been made on different machines.
        "near": options.near,
        "identify": options.identify,
    }
    samples = write_table(out, columns, facts, parts())
    return Described(samples, dict(unusable.most_common()))


def describe_by_ray(
    name: str | os.PathLike[str], out: Path, options: Options, address: str
) -> Described:
    """As `describe`, in parts that are tasks of the Ray cluster at an address."""
    with parts_of_table(out) as folder:
        done = map_parts(partial(_describe_part, name, folder, options), address)
        samples = merge_tables(out, [str(folder)])
    unusable = sum((Counter(one.unusable) for one in done), Counter[str]())
    return Described(samples, dict(unusable.most_common()))


def _describe_part(
    name: str | os.PathLike[str], folder: Path, options: Options, part: Part
) -> Described:
    # A task is one core's.
    return describe(name, folder / f"{part[0]}.parquet", replace(options, processes=1), part)


def _describe_shard(options: Options, job: Job) -> tuple[dict[str, Any], Counter[str]]:
    """The columns of the rows of one shard, and the reasons of samples without a row."""
    _, folder, manifest = job
    identify = identifier(options.identify) if options.identify else None
    columns: dict[str, list[Any]] = defaultdict(list)
    reasons = Counter[str]()
    for index_row, pair in read_shard(folder, manifest):
        try:
            if isinstance(pair, UnusableSample):
                raise pair
            width, height, size, _, _, picture, content, phash = look(pair, options.near)[1]
        except UnusableSample as error:
            reasons[error.reason] += 1
            continue
        texts = [caption.text for caption in pair.captions]
        row = {
            SHARD: manifest.shards[0].file,
            KEY: index_row["key"],
            PICTURE: picture,
            CONTENT: content,
            PHASH: phash,
            "width": width,
            "height": height,
            "bytes": size,
            "source": pair.source,
            "license": pair.license,
            "language": [caption.lang for caption in pair.captions],
            "characters": list(map(len, texts)),
            TEXT_HASH: list(map(text_hash, texts)),
            "script_share": [script_share(c.text, c.lang) for c in pair.captions],
        }
        if identify is not None:
            found = list(map(identify, texts))
            row["identified_language"] = [code for code, _ in found]
            row["language_confidence"] = [confidence for _, confidence in found]
        for column, value in row.items():
            columns[column].append(value)
    if not columns:  # a table of no rows has all columns too
        names = [SHARD, KEY, *(c for c, _, _ in COLUMNS + (IDENTIFIED if identify else []))]
        columns = {column: [] for column in names}
    return dict(columns), reasons


def text_hash(text: str) -> int:
    """64 bits of the text without differences that a reader would not notice."""
    digest = hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
