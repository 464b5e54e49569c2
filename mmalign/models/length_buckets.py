"""Captions in buckets of similar length, each of which is encoded without most of its padding.

    length_N -> by_length -> the rows of each bucket, and where each row stands in the concatenated buckets

The tokens that are computed are, for each bucket, its rows times its longest row. The edges are those with
the fewest such tokens, found by dynamic programming over the distinct lengths.
"""

from collections.abc import Sequence

import numpy as np

# More would save little, and each is a pass of its own with smaller matrices: with captions of a median of 14
# tokens, four buckets compute 1.25 times the tokens that there are, six 1.14 times, and both take the same
# time (`benchmarks/text_lengths.py --counts 6`).
BUCKETS = 4


def by_length(length_N: Sequence[int], count: int = BUCKETS) -> tuple[list[list[int]], list[int]]:
    """Exactly `count` buckets, also of fewer rows: under ZeRO 3 all ranks must call the tower as often.

    Args:
        length_N: tokens of each row, at least one row.

    Returns:
        The rows of each bucket, and for each row its position in the concatenated buckets. A row occurs
        twice where there are too few.
    """
    lengths = np.asarray(length_N)
    order = lengths.argsort(kind="stable")
    ends = _edges(lengths[order], count)
    buckets = [part.tolist() for part in np.split(order, ends) if len(part)]
    while len(buckets) < count:
        # Nothing to gain by length: the largest bucket is halved.
        largest = max(range(len(buckets)), key=lambda n: len(buckets[n]))
        rows = buckets.pop(largest)
        half = len(rows) // 2
        buckets[largest:largest] = [rows[:half], rows[half:]] if half else [rows, rows]
    position_of = {n: place for place, n in enumerate(n for rows in buckets for n in rows)}
    return buckets, [position_of[n] for n in range(len(lengths))]


def _edges(sorted_N: "np.ndarray[tuple[int], np.dtype[np.int64]]", count: int) -> list[int]:
    # Where the rows, in ascending length, are cut into at most `count` buckets with the fewest tokens.
    length_U, count_U = np.unique(sorted_N, return_counts=True)
    start_U = count_U.cumsum() - count_U
    rows_UU = (start_U + count_U)[None] - start_U[:, None]
    # Tokens of a bucket from one distinct length (rows) to another (columns), infinite where it ends first.
    tokens_UU = np.where(rows_UU > 0, rows_UU * length_U[None], np.inf)
    # The fewest tokens of all rows up to each length, in so many buckets, and where the last of these begins.
    fewest_U, begins = tokens_UU[0], []
    for _ in range(min(count, len(length_U)) - 1):
        before_UU = np.concatenate([[np.inf], fewest_U[:-1]])[:, None] + tokens_UU
        begins.append(before_UU.argmin(0))
        fewest_U = before_UU.min(0)
    ends, last = [], len(length_U) - 1
    for begin_U in reversed(begins):
        begin = int(begin_U[last])
        ends.append(int(start_U[begin]))
        last = begin - 1
    return ends[::-1]
