"""Reading samples of shards by number, through the index: no tar is walked at run time.

    data set folder -> ShardSet: keys, pictures and languages of all samples in memory
    ShardSet.read(i) -> two ranged reads -> Pair

Only the members that the index names are touched, each under a cap, and nothing is unpacked.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.batch import Caption, Pair
from mmalign.data.shards import Manifest, read_manifest
from mmalign.errors import UserError

MAX_IMAGE_BYTES = 50_000_000
MAX_JSON_BYTES = 2_000_000


class ShardSet:
    """The samples of a data set, in the order of its shards.

    Attributes:
        manifest: what the folder says it holds.
        keys: of the samples.
        languages: for each sample, the language of each caption, in the order of its JSON.
        picture_ids: (samples,) int64, equal where pictures are equal, in every data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._rows: list[tuple[int, dict[str, Any]]] = []
        for number, shard in enumerate(self.manifest.shards):
            path = folder / shard.file.replace(".tar", ".index.jsonl")
            with path.open(
                "rb"
            ) as lines:  # bytes: a key may hold what text mode takes for a line end
                rows = [json.loads(line) for line in lines]
            if len(rows) != shard.samples:
                raise UserError(
                    f"{path}: has {len(rows)} samples, the manifest says {shard.samples}"
                )
            self._rows += [(number, row) for row in rows]
        self.keys: list[str] = [row["key"] for _, row in self._rows]
        self.languages: list[tuple[str, ...]] = [tuple(row["langs"]) for _, row in self._rows]
        self.picture_ids = np.array([picture_id(row["picture"]) for _, row in self._rows], np.int64)
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker opens its own files.
        return {**self.__dict__, "_descriptors": {}}

    def read(self, index: int) -> Pair:
        """Sample `index` with its encoded image and all its captions.

        Raises:
            UserError: a member is over its cap or not what the index says.
        """
        shard, row = self._rows[index]
        where = f"{self.folder / self.manifest.shards[shard].file}, sample `{row['key']}`"
        try:
            facts = json.loads(self._member(shard, row["json"], MAX_JSON_BYTES, where))
            captions = tuple(Caption(c["lang"], c["text"]) for c in facts["captions"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: its JSON member is damaged") from None
        return Pair(
            key=row["key"],
            image=self._member(shard, row["image"], MAX_IMAGE_BYTES, where),
            captions=captions,
            picture=facts["picture"],
            split=facts["split"],
            source=facts["source"],
            license=facts["license"],
            attribution=facts["attribution"],
        )

    def _member(self, shard: int, place: list[Any], most: int, where: str) -> bytes:
        suffix, offset, size = place
        if size > most:
            raise UserError(f"{where}: its .{suffix} member has {size} bytes, over {most}")
        if shard not in self._descriptors:
            path = self.folder / self.manifest.shards[shard].file
            self._descriptors[shard] = os.open(path, os.O_RDONLY)
        data = os.pread(self._descriptors[shard], size, offset)
        if len(data) != size:
            raise UserError(f"{where}: its .{suffix} member is cut off")
        return data

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}


def picture_id(picture: str) -> int:
    """A picture's identity as a signed 64-bit integer."""
    digest = hashlib.blake2b(picture.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
