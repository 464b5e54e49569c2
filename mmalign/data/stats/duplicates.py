"""Images that a data set contains twice, and images that two data sets share.

    image           -> grey, 32 x 32 -> cosine transform, 8 x 8 low frequencies > median? -> 64 bits
    rows of one set -> equal bytes, similar images                 -> counts, examples
    rows of two     -> equal bytes, equal identity, similar images -> counts, examples

Training treats two samples as different images unless they share their identity (`picture` of the index). So
copies and near duplicates under different identities are each other's false negatives, and a test image that
was trained on tests nothing.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Hash of an image without structure. No other image has it: half of the bits of every other hash are set.
NO_HASH = 0
NEAR = 4  # bits of 64, in which two hashes of similar images differ at most
# An image may be decoded down to sides of this length: its hash then changes by a bit or two at most.
LEAST_PIXELS = 64
METHOD = f"pHash, 64 bits, Hamming distance at most {NEAR}"
MAX_EXAMPLES = 20

# One entry per sample, of the type survey.ROW; `picture`, `content` and `look` are read here.
Rows = NDArray[np.void]
Positions = NDArray[np.int64]
# Positions of two samples, and the distance of their hashes.
Example = tuple[int, int, int]


def image_hash(image: Image.Image) -> int:
    """64 bits of how an image looks; NO_HASH if it shows nothing.

    pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). Another size,
    quality or format hardly changes it. A mirrored or strongly cropped image has another hash, and two images
    of one scene may share theirs.
    """
    from scipy.fft import dctn

    grey_HW = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    if grey_HW.std() < 2:  # of 255: that much comes from the noise of a JPEG
        return NO_HASH
    # Without the first row and column, which describe the brightness and its slopes.
    low = dctn(grey_HW, norm="ortho")[1:9, 1:9].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def near_pairs(
    asked: NDArray[np.uint64], known: NDArray[np.uint64] | None = None
) -> Iterator[tuple[Positions, Positions, Positions]]:
    """All pairs of an asked and a known hash that differ in at most NEAR bits, each exactly once.

    Memory is about 90 bytes per hash, however many pairs there are. Time is quadratic where many hashes are
    equal, so these should be joined before. (Sorting takes a sixth of the time of a table per block, as
    `faiss.IndexBinaryMultiHash` has it: benchmarks/selection.py.)

    Args:
        known: without it, the pairs are those of two asked hashes.

    Yields:
        positions in `asked`, positions in `known`, distances, each (P,); P may be 0.
    """
    # Of NEAR + n blocks of bits, two hashes that differ in NEAR bits agree in n at least. So each choice of n
    # blocks is a sort key, and every pair is among the neighbours of equal keys for one choice at least
    # (Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling", section 3).
    sorted_of = asked if known is None else known
    number = NEAR + (3 if len(sorted_of) > 2**24 else 2)
    edges = [64 * i // number for i in range(number + 1)]
    blocks = [2**high - 2**low for low, high in pairwise(edges)]
    masks = [np.uint64(sum(some)) for some in combinations(blocks, number - NEAR)]
    for turn, mask in enumerate(masks):
        order = np.argsort(sorted_of & mask)
        hashes = sorted_of[order]
        key = hashes & mask
        if known is None:
            query, position = order[:-1], np.arange(1, len(order))
        else:
            query = np.arange(len(asked))
            position = np.searchsorted(key, asked & mask)
        while len(query):
            inside = position < len(key)
            query, position = query[inside], position[inside]
            bits = asked[query] ^ hashes[position]
            same = bits & mask == 0
            query, position, bits = query[same], position[same], bits[same]
            distance = np.bitwise_count(bits).astype(np.int64)
            found = distance <= NEAR
            for earlier in masks[:turn]:  # they agreed under this one as well
                found &= bits & earlier != 0
            yield query[found], order[position[found]], distance[found]
            position = position + 1


def find_duplicates(rows: Rows, near: bool) -> tuple[dict[str, Any], dict[str, list[Example]]]:
    """Counts, and the positions of examples by kind (`exact`, `near`).

    `exact`: samples with the bytes of an earlier sample, and how many of them have another identity; `near`:
    images with a similar one of other bytes and another identity, images without a hash, and the method.
    """
    _, first, inverse = np.unique(rows["content"], return_index=True, return_inverse=True)
    first_of = first[inverse]
    copies = np.flatnonzero(first_of != np.arange(len(rows)))
    other = rows["picture"][copies] != rows["picture"][first_of[copies]]
    counts: dict[str, Any] = {
        "exact": {"samples": len(copies), "under_another_identity": int(other.sum())}
    }
    examples = {"exact": [(int(i), int(first_of[i]), 0) for i in copies[:MAX_EXAMPLES]]}
    if near:
        # One sample for each content and each identity: only images that training tells apart.
        _, pictures = np.unique(rows["picture"][first], return_index=True)
        counts["near"], examples["near"] = _find_similar(rows, np.sort(first[pictures]))
    return counts, examples


def _find_similar(rows: Rows, samples: Positions) -> tuple[dict[str, Any], list[Example]]:
    """Similar images among `samples`, which all have different bytes and identities."""
    structured = rows["look"][samples] != NO_HASH
    flat = int((~structured).sum())
    samples = samples[structured]
    hashes, first, inverse, count = np.unique(
        rows["look"][samples], return_index=True, return_inverse=True, return_counts=True
    )
    similar = count > 1
    again = np.flatnonzero(first[inverse] != np.arange(len(samples)))
    found = np.stack([samples[first[inverse[again]]], samples[again], 0 * again], axis=1)
    found = _nearest_examples(found)
    for one, two, distance in near_pairs(hashes):
        similar[one] = similar[two] = True
        left, right = np.minimum(one, two), np.maximum(one, two)
        pairs = np.stack([samples[first[left]], samples[first[right]], distance], axis=1)
        found = _nearest_examples(np.vstack([found, pairs]))
    counts = {
        "method": METHOD,
        "pictures": int(count[similar].sum()),
        "compared": len(samples),
        "without_structure": flat,
    }
    return counts, [(int(left), int(right), int(bits)) for left, right, bits in found]


def _nearest_examples(pairs: Positions) -> Positions:
    """The MAX_EXAMPLES of (left, right, distance) with the smallest distance, in a fixed order."""
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))[:MAX_EXAMPLES]]


def find_leaks(rows: Rows, against: Rows, near: bool) -> tuple[dict[str, Any], list[Example]]:
    """How many samples of `against` show an image of `rows`, and examples: (position in rows, in against).

    `samples` counts each once; `exact` have equal bytes, `same_identity` are declared to be equal, and `near`
    are neither, but look alike.
    """
    exact, exact_position = _look_up(against["content"], rows["content"])
    same, same_position = _look_up(against["picture"], rows["picture"])
    distance, near_position = np.full(len(against), NEAR + 1), np.zeros(len(against), np.int64)
    if near:
        distance, near_position = _nearest(rows, against)
    alike = (distance <= NEAR) & ~exact & ~same
    leaked = exact | same | alike
    counts: dict[str, Any] = {
        "of": len(against),
        "samples": int(leaked.sum()),
        "exact": int(exact.sum()),
        "same_identity": int(same.sum()),
    }
    if near:
        counts["near"] = {"method": METHOD, "samples": int(alike.sum())}
    position = np.where(exact, exact_position, np.where(same, same_position, near_position))
    distance = np.where(alike, distance, 0)
    found = np.flatnonzero(leaked)[:MAX_EXAMPLES]
    return counts, [(int(position[one]), int(one), int(distance[one])) for one in found]


def _look_up(wanted: NDArray[Any], known: NDArray[Any]) -> tuple[NDArray[np.bool_], Positions]:
    """For each wanted value: whether it is known, and the first position where it is (else 0)."""
    values, first = np.unique(known, return_index=True)
    position = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    found = values[position] == wanted
    return found, np.where(found, first[position], 0)


def _nearest(rows: Rows, against: Rows) -> tuple[Positions, Positions]:
    """For each of `against`: distance to the nearest image of `rows` (over NEAR: none), and its position."""
    known, first = np.unique(rows["look"], return_index=True)
    known, first = known[known != NO_HASH], first[known != NO_HASH]
    asked, inverse = np.unique(against["look"], return_inverse=True)
    # Distance and position as one number: the smallest is the nearest, and the first of the nearest.
    best = np.full(len(asked), (NEAR + 1) * len(rows), np.int64)
    for query, position, distance in near_pairs(asked, known):
        np.minimum.at(best, query, distance * len(rows) + first[position])
    best[asked == NO_HASH] = (NEAR + 1) * len(rows)
    return best[inverse] // len(rows), best[inverse] % len(rows)
