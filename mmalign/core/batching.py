"""Batches of similar length: little padding, and the rows come back in the order in which they were given.

texts -> indices sorted by length -> lists of `size` indices -> encode -> rows put back in order
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values in lists of `size`; the last may be shorter."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


def length_sorted_batches(lengths: Iterable[int], size: int) -> Iterator[list[int]]:
    """Indices of the values, shortest first, in lists of `size`; equal lengths keep their order."""
    known = list(lengths)
    return batched(sorted(range(len(known)), key=known.__getitem__), size)


def encode_sorted(
    encode: Callable[[list[T]], np.ndarray],
    texts: Sequence[T],
    size: int,
    width: int,
    length: Callable[[T], int] = len,  # type: ignore[assignment]
) -> np.ndarray:
    """(n, width) float32: one row per text, in the order given; `encode` gets `size` texts per call."""
    rows = np.zeros((len(texts), width), np.float32)
    for chunk in length_sorted_batches(map(length, texts), size):
        rows[chunk] = encode([texts[i] for i in chunk])
    return rows
