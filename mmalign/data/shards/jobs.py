"""Reading a data set shard after shard, in any number of processes: for verbs that look at every sample once.

folder, manifest -> one job per shard, small enough to be sent -> in a process: every sample, or why not
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from mmalign.core.batch import Pair
from mmalign.core.errors import raise_if_of_machine
from mmalign.data.shards.folder import Folder
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.reader import UnusableSample, read_pair
from mmalign.data.shards.shard_index import read_rows

Job = tuple[int, Folder, Manifest]
"""One shard for another process: its number, and the folder and the manifest with nothing else in them."""


def shard_jobs(folder: Folder, manifest: Manifest, numbers: Iterable[int]) -> Iterator[Job]:
    for number in numbers:
        shard = manifest.shards[number]
        yield number, folder.only((shard.tar, shard.index)), manifest.part(shard)


def read_shard(
    folder: Folder, manifest: Manifest, with_image: bool = True
) -> Iterator[tuple[dict[str, Any], Pair | UnusableSample]]:
    """The index row of every sample of a manifest's only shard, and the sample or why it cannot be used.

    Raises:
        UserError: its index is not the one that the manifest describes, or it cannot be downloaded.
    """
    (shard,) = manifest.shards
    rows = read_rows(folder, manifest, shard)
    try:
        descriptor = folder.open(shard.tar)
    except OSError as error:
        raise_if_of_machine(error)
        yield from ((row, UnusableSample("read error", str(error.strerror))) for row in rows)
        return
    try:
        for row in rows:
            try:
                yield row, read_pair(partial(os.pread, descriptor), row, manifest, with_image)
            except UnusableSample as error:
                yield row, error
    finally:
        os.close(descriptor)
