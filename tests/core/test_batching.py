"""Batches of like length give every row back in its place."""

import numpy as np

from mmalign.core.batching import batched, encode_sorted, length_sorted_batches


def test_batches_keep_order_and_lose_nothing() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []


def test_the_shortest_come_first_and_equal_lengths_keep_their_order() -> None:
    assert list(length_sorted_batches([3, 1, 2, 1], 3)) == [[1, 3, 2], [0]]


def test_rows_come_back_in_the_order_of_the_texts() -> None:
    seen: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.array([[len(text), ord(text[0])] for text in texts])

    rows = encode_sorted(encode, ["ccc", "a", "bb"], size=2, width=2)
    assert seen == [["a", "bb"], ["ccc"]]
    assert rows.tolist() == [[3, ord("c")], [1, ord("a")], [2, ord("b")]]
