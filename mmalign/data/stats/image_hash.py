"""Pictures that look alike: a hash of what they show, and all pairs of hashes that differ in few bits.

    picture -> grey, 32 x 32 -> cosine transform, 8 x 8 low frequencies -> above the median? -> 64 bits
    hashes  -> sorted by each of five sets of their bits -> those with an equal set -> pairs, distance <= 4

The hash is pHash's (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). It
hardly changes under another size, quality or format. A mirrored or much cropped picture has another hash, and
two pictures of one scene may share theirs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NO_HASH = 0
"""Of a picture without structure: half of the bits of every other hash are set."""
NEAR = 4
"""Bits of 64 in which two hashes of nearly equal pictures differ at most."""
LEAST_PIXELS = 64
"""A picture whose sides are this long, or longer, gives the hash of the full one up to a bit or two."""
METHOD = f"pHash, 64 bits, Hamming distance at most {NEAR}"
_SIDE = 32
_FLAT = 2.0  # standard deviation of grey values, of 255: noise of a JPEG, no structure

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def picture_hash(image: Image.Image) -> int:
    """64 bits of how a picture looks; NO_HASH where it shows nothing."""
    from scipy.fft import dctn

    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixel_HW = np.asarray(grey, np.float64)
    if pixel_HW.std() < _FLAT:
        return NO_HASH
    # Without the first row and column: they tell brightness and its slopes.
    low = dctn(pixel_HW, norm="ortho")[1:9, 1:9].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def near_pairs(hashes: Hashes, most: int = NEAR) -> Iterator[tuple[Places, Places, Places]]:
    """Every pair of hashes that differ in at most `most` bits, exactly once.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012, arXiv 1307.2982): of `most` + 1 sets of bits, such a
    pair agrees in at least one. Memory is linear in the number of hashes. Time is quadratic where many differ
    in one set only, so equal hashes should be joined before.

    Args:
        hashes: (N,) uint64.

    Yields:
        left and right places (P,) and distances (P,), int64; P may be 0.
    """
    masks = [
        np.uint64(sum(1 << bit for bit in range(first, 64, most + 1))) for first in range(most + 1)
    ]
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        yield from _near_neighbours(hashes[order], order, masks[: number + 1], most)


def _near_neighbours(
    hashes: Hashes, order: Places, masks: list[np.uint64], most: int
) -> Iterator[tuple[Places, Places, Places]]:
    """Near pairs that agree under the last mask, by which the hashes are sorted, and under none before it."""
    part = hashes & masks[-1]
    stops = np.append(np.flatnonzero(part[1:] != part[:-1]) + 1, len(part))
    stop = np.repeat(stops, np.diff(stops, prepend=0))
    left = np.arange(len(part))
    for step in range(1, len(part)):
        left = left[left + step < stop[left]]
        if not len(left):
            return
        difference = hashes[left] ^ hashes[left + step]
        distance = np.bitwise_count(difference)
        near = distance <= most
        for mask in masks[:-1]:
            near &= (difference & mask) != 0
        found = left[near]
        yield order[found], order[found + step], distance[near].astype(np.int64)
