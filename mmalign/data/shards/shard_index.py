"""The index of one shard: only the starts of its rows are in memory; a row is parsed when its sample is read.

    <shard>.index.jsonl -> bytes, compared with the manifest -> start of each line, 8 bytes per sample
                           row i: one ranged read -> JSON

A data set of a hundred million samples has about 25 GB of index: no process can hold that as Python objects.
"""

import hashlib
import itertools
import json
import os
import re
from typing import Any

import numpy as np

from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.shards.folder import Folder, read_file
from mmalign.data.shards.manifest import FIX, Manifest, Shard

_LANGUAGES = re.compile(rb'"langs": (\[[^\]]*\])')
_KEY = re.compile(rb'"key": ("(?:[^"\\]|\\.)*")')


def read_index(folder: Folder, manifest: Manifest, shard: Shard) -> bytes:
    """The bytes of a shard's index; a UserError if it is not the one that the manifest describes."""
    location = folder.location(shard.index)
    try:
        data = read_file(folder, shard.index)
    except OSError as error:
        raise_if_of_machine(error)
        raise UserError(f"{location}: cannot be read ({error.strerror}); {FIX}") from None
    facts = manifest.files.get(shard.index)
    if facts is not None and hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise UserError(f"{location}: damaged, its bytes are not those of the manifest; {FIX}")
    return data


def line_starts(data: bytes, location: str, shard: Shard) -> np.ndarray:
    """(samples + 1,) int64: where each row begins in an index, and where the last one ends."""
    # By bytes: a key may contain a character that text mode takes for the end of a line.
    ends_S = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if data and not data.endswith(b"\n"):
        ends_S = np.append(ends_S, len(data))
    if len(ends_S) != shard.samples:
        raise UserError(f"{location}: has {len(ends_S)} samples, the manifest says {shard.samples}")
    return np.concatenate([[0], ends_S])


def row_starts(folder: Folder, manifest: Manifest, number: int) -> np.ndarray:
    shard = manifest.shards[number]
    return line_starts(read_index(folder, manifest, shard), folder.location(shard.index), shard)


def parse_row(line: bytes, location: str) -> dict[str, Any]:
    """One row: `key`, `picture`, `langs`, and where the members are in the tar."""
    try:
        row: dict[str, Any] = json.loads(line)
        for name in ("key", "image", "picture", "langs"):
            row[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{location}: not an index of mmalign shards; {FIX}") from None
    return row


def read_rows(folder: Folder, manifest: Manifest, shard: Shard) -> list[dict[str, Any]]:
    location = folder.location(shard.index)
    data = read_index(folder, manifest, shard)
    starts = line_starts(data, location, shard).tolist()
    return [parse_row(data[a:b], location) for a, b in itertools.pairwise(starts)]


def languages_in(folder: Folder, manifest: Manifest, shard: Shard) -> list[tuple[str, ...]]:
    """The languages of each sample's captions, in the order of its member."""
    # Much faster than parsing the rows, and a window of shards has some 500,000. Nothing else in a row can
    # look like this: inside a string, JSON writes a quote as \".
    found = _LANGUAGES.findall(read_index(folder, manifest, shard))
    if len(found) != shard.samples:  # written by another program, with other white space
        return [tuple(row["langs"]) for row in read_rows(folder, manifest, shard)]
    parsed = {text: tuple(json.loads(text)) for text in set(found)}
    return [parsed[text] for text in found]


def keys_in(folder: Folder, manifest: Manifest, shard: Shard) -> list[str]:
    """The key of each sample, as fast as `languages_in`."""
    found = _KEY.findall(read_index(folder, manifest, shard))
    if len(found) != shard.samples:
        return [row["key"] for row in read_rows(folder, manifest, shard)]
    keys: list[str] = json.loads(b"[" + b",".join(found) + b"]")
    return keys


def read_row(descriptor: int, starts_S: np.ndarray, number: int, location: str) -> dict[str, Any]:
    start, end = int(starts_S[number]), int(starts_S[number + 1])
    return parse_row(os.pread(descriptor, end - start, start), location)
