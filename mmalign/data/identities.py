"""Whether new samples have the identity (`picture`) of another image of a data set.

new indexes -> identities, sizes, checksums -> hashes -+-> equal identity, other bytes -> UserError
the set's   -> the same, a few shards at a time -------+
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.shards.manifest import FIX, MANIFEST, Facts, Manifest
from mmalign.data.shards.reader import is_content_hash, picture_id
from mmalign.data.shards.shard_index import parse_row


class _Index(NamedTuple):
    """The index of one shard."""

    path: Path
    sha256: str

    def rows(self) -> Iterator[dict[str, Any]]:
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.path}: damaged, its bytes are not those of {MANIFEST}; {FIX}")
        return (parse_row(line, str(self.path)) for line in data.split(b"\n") if line)


def _hashes(index: _Index) -> np.ndarray:
    """(3, samples) int64: of each identity; with the size of the image; with its checksum, if known, too."""
    found = []
    for row in index.rows():
        picture, facts = row["picture"], row["image"][2:]  # size and, in newer indexes, crc32
        # The hash of an image is never that of another one, however the two were resized.
        if not is_content_hash(picture):
            texts = (picture, f"{facts[:1]} {picture}", f"{facts} {picture}")
            found.append([picture_id(text) for text in texts])
    return np.array(found, np.int64).reshape(-1, 3).T


def _positions(sorted_N: np.ndarray, value_M: np.ndarray) -> np.ndarray:
    """Where those of the values are that the sorted array, which is not empty, holds."""
    position_M = np.minimum(np.searchsorted(sorted_N, value_M), len(sorted_N) - 1)
    found: np.ndarray = position_M[sorted_N[position_M] == value_M]
    return found


def check_identities(
    folder: Path, manifest: Manifest, work: Path, files: Mapping[str, Facts], processes: int
) -> None:
    """Refuse new samples that have the identity (`picture`) of an image with other bytes in a data set.

    In training, the captions of one would be positives of the other. Equal identities of equal bytes are
    right. In memory are three hashes per new sample, and the indexes of a few shards.

    Args:
        files: those of the new shards, in the folder `work`.
    """
    new = [_Index(work / n, f["sha256"]) for n, f in files.items() if n.endswith(".index.jsonl")]
    hashes = list(map_in_processes(_hashes, new, processes))
    picture_N, size_N, image_N = np.concatenate(hashes, axis=1)
    if not len(picture_N):
        return
    old = [_Index(folder / s.index, manifest.files[s.index]["sha256"]) for s in manifest.shards]
    picture_P = np.unique(picture_N)
    image_I, first_I = np.unique(np.concatenate([size_N, image_N]), return_index=True)
    known_P, same_I = np.zeros(len(picture_P), bool), np.zeros(len(image_I), bool)
    for picture_O, _, image_O in map_in_processes(_hashes, old, processes):
        known_P[_positions(picture_P, picture_O)] = True
        same_I[_positions(image_I, image_O)] = True
    # A source may have several files of one image (`same_picture_as`): one with known bytes is enough.
    same_P = np.isin(picture_P, np.tile(picture_N, 2)[first_I[same_I]])
    wrong_W = picture_P[known_P & ~same_P]
    for made in new if len(wrong_W) else ():
        # Hashes of different identities may be equal, so the texts decide.
        rows = ((row["picture"], row["key"]) for row in made.rows())
        key_of = {picture: key for picture, key in rows if picture_id(picture) in wrong_W}
        for path, row in ((one.path, row) for one in old if key_of for row in one.rows()):
            if (picture := row["picture"]) in key_of:
                raise UserError(
                    f"{path}: the set has an image of other bytes with the identity `{picture}` of the new "
                    f"sample `{key_of[picture]}` ({len(wrong_W)} such identities in all); rename the ids "
                    "(or paths) of the new images to some that the set does not have, or leave them out"
                )
