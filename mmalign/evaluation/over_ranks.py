"""Work that the ranks share: batches to encode, languages to measure. All ranks have the same outcome.

Without a process group, everything is done here.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TypeVar

import numpy as np
import torch

from mmalign.core import distributed
from mmalign.core.batching import length_sorted_batches
from mmalign.models.encoder import BATCH_SIZE

T = TypeVar("T")


def encode_over_ranks(
    encode: Callable[[list[int]], np.ndarray], batches: Sequence[list[int]]
) -> np.ndarray:
    """Row i is what `encode` makes of i; (n, D) float32, the same on all ranks. A collective.

    With equal processors and threads the rows do not depend on the number of ranks; with others they differ
    by rounding, below 1e-6 in float32.

    Args:
        batches: lists that hold the numbers from 0 to n - 1 once each, n > 0.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    kept = np.empty((0, 0), np.float32)
    for first in range(0, len(batches), ranks):
        turn = batches[first : first + ranks]
        # Under ZeRO 3 a call gathers weights from all ranks, so a rank without a batch makes a call too.
        mine = encode(turn[rank]) if rank < len(turn) else encode(turn[0][:1])[:0]
        gathered = distributed.gather_rows(torch.from_numpy(mine)).numpy()
        if not first:
            kept = np.empty((sum(map(len, batches)), gathered.shape[1]), np.float32)
        kept[[i for batch in turn for i in batch]] = gathered
    return kept


def encode_run(
    encode: Callable[[list[int]], np.ndarray], batches: Sequence[list[int]]
) -> tuple[int, np.ndarray]:
    """This rank's run of the rows: where it begins, and the rows. Nothing is gathered."""
    rank, ranks = distributed.rank(), distributed.world_size()
    first, last = len(batches) * rank // ranks, len(batches) * (rank + 1) // ranks
    rows = [encode(batch) for batch in batches[first:last]]
    if len(rows) < ceil(len(batches) / ranks):
        # Under ZeRO 3 all ranks make equally many calls; the row of this one is thrown away.
        rows.append(encode(batches[0][:1])[:0])
    return sum(map(len, batches[:first])), np.concatenate(rows)


def encode_texts_over_ranks(
    encode: Callable[[list[str]], np.ndarray], texts: Sequence[str], batch_size: int | None = None
) -> np.ndarray:
    """(n, D) float32, the vectors of the texts in their order. A collective."""
    # Texts of like length share a batch: little padding.
    batches = list(length_sorted_batches(map(len, texts), batch_size or BATCH_SIZE))
    return encode_over_ranks(lambda batch: encode([texts[i] for i in batch]), batches)


def map_over_ranks(costs: Mapping[str, int], measure: Callable[[str], T]) -> dict[str, T]:
    """What `measure` returns for each key of `costs`, in their order, on every rank. A collective.

    What `measure` returns is pickled.
    """
    load = [0] * distributed.world_size()
    mine = []
    # The most expensive first, each on the rank with the least work.
    for key in sorted(costs, key=lambda key: -costs[key]):
        idlest = load.index(min(load))
        load[idlest] += costs[key]
        if idlest == distributed.rank():
            mine.append(key)
    # The ranks wait for the one with the most expensive keys, however long it takes.
    of_rank = distributed.on_all(lambda: {key: measure(key) for key in mine})
    parts = distributed.gather_objects(of_rank)
    measured = {key: outcome for part in parts for key, outcome in part.items()}
    return {key: measured[key] for key in costs}
