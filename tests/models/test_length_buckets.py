"""Buckets by length: every row once, as many as asked, and no choice of edges has fewer tokens."""

from itertools import combinations

import numpy as np
import pytest

from mmalign.models.length_buckets import by_length


def tokens(buckets: list[list[int]], length_N: list[int]) -> int:
    return sum(len(rows) * max(length_N[n] for n in rows) for rows in buckets)


def fewest_tokens(length_N: list[int], count: int) -> int:
    """Over all ways to cut the sorted rows."""
    ordered = np.sort(length_N)
    cuts = combinations(range(1, len(ordered)), count - 1)
    return min(sum(len(p) * int(p[-1]) for p in np.split(ordered, cut)) for cut in cuts)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_buckets_hold_every_row_and_the_fewest_tokens(count: int) -> None:
    generator = np.random.default_rng(0)
    for rows in (1, 2, 3, 5, 9, 12):
        for longest in (1, 2, 6, 40):
            length_N = generator.integers(1, longest + 1, rows).tolist()
            buckets, position_N = by_length(length_N, count)
            assert len(buckets) == count and all(buckets)
            concatenated = [n for bucket in buckets for n in bucket]
            assert [concatenated[position] for position in position_N] == list(range(rows))
            if rows >= count:
                assert sorted(concatenated) == list(range(rows))
                assert tokens(buckets, length_N) == fewest_tokens(length_N, count)


def test_one_long_caption_does_not_lengthen_the_others() -> None:
    length_N = [5] * 40 + [6] * 20 + [64]
    buckets, _ = by_length(length_N)
    assert [60] in buckets
    assert tokens(buckets, length_N) == sum(length_N)
