"""Pictures that look alike are found, all of them and no others, and so is what two sets share."""

import io
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

from mmalign.data.stats.duplicates import (
    NEAR,
    NO_HASH,
    Rows,
    find_duplicates,
    find_leaks,
    image_hash,
    near_pairs,
)
from mmalign.data.stats.survey import ROW


def picture(seed: int, side: int = 256) -> Image.Image:
    """Soft random shapes."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def again(image: Image.Image, quality: int) -> Image.Image:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded)


def apart(one: Image.Image, two: Image.Image) -> int:
    return (image_hash(one) ^ image_hash(two)).bit_count()


def test_size_and_quality_hardly_change_the_hash_and_another_picture_does() -> None:
    for seed in range(10):
        assert apart(picture(seed), again(picture(seed), 40)) <= NEAR
        assert apart(picture(seed), picture(seed).resize((90, 90))) <= NEAR
        assert apart(picture(seed), picture(seed + 100)) > 3 * NEAR


def test_a_picture_that_shows_nothing_has_no_hash() -> None:
    assert image_hash(Image.new("RGB", (50, 40), "white")) == NO_HASH
    assert image_hash(picture(0)) != NO_HASH


def pairs_of(asked: np.ndarray, known: np.ndarray | None = None) -> list[tuple[int, ...]]:
    found = [np.stack(columns, axis=1) for columns in near_pairs(asked, known)]
    return sorted(map(tuple, np.concatenate([np.zeros((0, 3), int), *found]).tolist()))


@pytest.mark.parametrize("mask", [2**64 - 1, 0xFFF, 0x1084210842108421])
def test_every_near_pair_is_found_once(mask: int) -> None:
    rng = np.random.default_rng(0)
    far = rng.integers(0, 2**64, 300, np.uint64, endpoint=False)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (3, 300), np.uint64))
    hashes = np.concatenate([far, far ^ flips]) & np.uint64(mask)
    distance = np.bitwise_count(hashes[:400, None] ^ hashes)
    expected = [(i, j, int(distance[i, j])) for i, j in np.argwhere(distance <= NEAR).tolist()]
    assert len(expected) > 400
    assert pairs_of(hashes[:400], hashes) == expected
    within = {(min(i, j), max(i, j)): bits for i, j, bits in pairs_of(hashes[:400])}
    assert within == {(i, j): bits for i, j, bits in expected if i < j < 400}
    assert len(pairs_of(hashes[:400])) == len(within)


def test_few_hashes_have_no_pairs() -> None:
    none, one = np.zeros(0, np.uint64), np.ones(1, np.uint64)
    assert pairs_of(none, none) == pairs_of(none, one) == pairs_of(one, none) == []
    assert pairs_of(one, one) == [(0, 0, 0)]


def rows_of(samples: Iterable[tuple[int, int, int]]) -> Rows:
    """Rows of (identity, bytes, hash)."""
    rows = np.zeros(len(list(samples)), ROW)
    for name, column in zip(
        ("picture", "content", "look"), zip(*samples, strict=True), strict=True
    ):
        rows[name] = column
    return rows


FAR = 2**64 - 1
HELD = [
    (1, 11, 0xFF),
    (2, 12, FAR),
    (1, 11, 0xFF),  # a copy that is told
    (3, 12, FAR),  # a copy that is not
    (4, 14, 0xFE),  # near the first
    (1, 15, 0xFC),  # near the first too, but told to be the same
    (6, 16, NO_HASH),
    (7, 17, NO_HASH),
]


def test_copies_and_twins_are_counted_apart() -> None:
    counts, examples = find_duplicates(rows_of(HELD), near=True)
    assert counts["exact"] == {"samples": 2, "under_another_identity": 1}
    assert examples["exact"] == [(2, 0, 0), (3, 1, 0)]
    near = counts["near"]
    assert (near["pictures"], near["compared"], near["without_structure"]) == (2, 3, 2)
    assert [(set(pair[:2]), pair[2]) for pair in examples["near"]] == [({0, 4}, 1)]
    assert "near" not in find_duplicates(rows_of(HELD), near=False)[0]


def test_equal_hashes_of_other_bytes_are_twins() -> None:
    counts, examples = find_duplicates(rows_of([(1, 1, 5), (2, 2, 5), (3, 3, FAR)]), near=True)
    assert counts["near"]["pictures"] == 2
    assert examples["near"] == [(0, 1, 0)]


def test_what_a_test_set_shares_is_counted_once_and_named() -> None:
    asked = rows_of(
        [
            (90, 12, FAR),  # equal bytes
            (4, 91, 2**63),  # told to be equal
            (92, 92, 0xF8),  # 2 bits from 0xFC... and 3 from 0xFF
            (93, 93, 0xAAAA << 30),  # new
            (94, 94, NO_HASH),  # shows nothing: alike to nothing
        ]
    )
    counts, examples = find_leaks(rows_of(HELD), asked, near=True)
    assert (counts["of"], counts["samples"]) == (5, 3)
    assert (counts["exact"], counts["same_identity"], counts["near"]["samples"]) == (1, 1, 1)
    assert examples == [(1, 0, 0), (4, 1, 0), (5, 2, 1)]
    counts, examples = find_leaks(rows_of(HELD), asked, near=False)
    assert (counts["samples"], "near" in counts, len(examples)) == (2, False, 2)
