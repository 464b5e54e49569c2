"""Pictures that a data set holds twice, and pictures that two data sets share.

    rows of a set           -> equal bytes, nearly equal pictures -> counts, examples
    rows of a set, another  -> equal bytes, equal identity, nearly equal -> counts, examples

Training takes two samples for different pictures unless they share their identity (`picture` of the
index). So copies under another identity, and near twins, are each other's false negatives; and a picture of a
test set that was trained on is no test.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data.stats.image_hash import METHOD, NEAR, NO_HASH, near_pairs

MAX_EXAMPLES = 20

Rows = NDArray[np.void]
"""One entry a sample, of the type survey.ROW; `picture`, `content` and `look` are read here."""
Example = tuple[int, int, int]
"""Places of two samples and the distance of their hashes."""


def find_duplicates(rows: Rows, near: bool) -> tuple[dict[str, Any], dict[str, list[Example]]]:
    """Counts, and the places of examples by kind (`exact`, `near`).

    `exact`: samples whose bytes an earlier sample has, and how many of them under another identity; `near`:
    pictures with a twin among those of other bytes and another identity, without a hash, and the method.
    """
    _, first, inverse = np.unique(rows["content"], return_index=True, return_inverse=True)
    first_of = first[inverse]
    copies = np.flatnonzero(first_of != np.arange(len(rows)))
    other = rows["picture"][copies] != rows["picture"][first_of[copies]]
    counts: dict[str, Any] = {
        "exact": {"samples": len(copies), "under_another_identity": int(other.sum())}
    }
    named = [(int(place), int(first_of[place]), 0) for place in copies[:MAX_EXAMPLES]]
    if not near:
        return counts, {"exact": named}
    _, pictures = np.unique(rows["picture"][first], return_index=True)
    counts["near"], examples = _find_twins(rows, np.sort(first[pictures]))
    return counts, {"exact": named, "near": examples}


def _find_twins(rows: Rows, places: NDArray[np.int64]) -> tuple[dict[str, Any], list[Example]]:
    """Near twins among the samples at `places`, which all have other bytes and another identity."""
    places, flat = _with_hash(rows, places)
    hashes, first, inverse, count = np.unique(
        rows["look"][places], return_index=True, return_inverse=True, return_counts=True
    )
    twin = count > 1
    again = np.flatnonzero(twin[inverse] & (first[inverse] != np.arange(len(places))))
    examples = _Examples()
    examples.add(places[first[inverse[again]]], places[again], np.zeros(len(again), np.int64))
    pairs = 0
    for left, right, distance in near_pairs(hashes):
        twin[left] = twin[right] = True
        pairs += len(left)
        examples.add(places[first[left]], places[first[right]], distance)
    return {
        "method": METHOD,
        "pictures": int(count[twin].sum()),
        "compared": len(places),
        "without_structure": flat,
    }, examples.to_list()


def find_leaks(rows: Rows, against: Rows, near: bool) -> tuple[dict[str, Any], list[Example]]:
    """How many samples of `against` show a picture of `rows`, and examples: (place in rows, in against).

    `samples` counts each once; `exact` have equal bytes, `same_identity` are told to be equal, `near` are
    neither, but look alike.
    """
    exact, exact_place = _lookup(against["content"], rows["content"])
    told, told_place = _lookup(against["picture"], rows["picture"])
    near_distance = np.full(len(against), NEAR + 1)
    near_place = np.zeros(len(against), np.int64)
    if near:
        near_distance, near_place = _nearest(rows, against)
    alike = (near_distance <= NEAR) & ~exact & ~told
    counts: dict[str, Any] = {
        "of": len(against),
        "samples": int((exact | told | alike).sum()),
        "exact": int(exact.sum()),
        "same_identity": int(told.sum()),
    }
    if near:
        counts["near"] = {"method": METHOD, "samples": int(alike.sum())}
    place = np.where(exact, exact_place, np.where(told, told_place, near_place))
    found = np.flatnonzero(exact | told | alike)[:MAX_EXAMPLES]
    distances = np.where(alike, near_distance, 0)
    return counts, [(int(place[one]), int(one), int(distances[one])) for one in found]


def _lookup(
    wanted: NDArray[Any], known: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(whether it is known, the first place where) for each wanted value; the place is 0 where it is not."""
    values, first = np.unique(known, return_index=True)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    found = values[place] == wanted
    return found, np.where(found, first[place], 0)


def _nearest(rows: Rows, against: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of `against`: distance to the nearest picture of `rows` (over NEAR: none), and its place."""
    known, first = np.unique(rows["look"], return_index=True)
    known, first = known[known != NO_HASH], first[known != NO_HASH]
    asked, inverse = np.unique(against["look"], return_inverse=True)
    # Distance and place as one number, so that the least is the nearest.
    best = np.full(len(asked), (NEAR + 1) * len(rows), np.int64)
    for left, right, distance in near_pairs(np.concatenate([known, asked])):
        for one, two in ((left, right), (right, left)):
            across = (one < len(known)) & (two >= len(known))
            nearness = distance[across] * len(rows) + first[one[across]]
            np.minimum.at(best, two[across] - len(known), nearness)
    best[asked == NO_HASH] = (NEAR + 1) * len(rows)
    return best[inverse] // len(rows), best[inverse] % len(rows)


def _with_hash(rows: Rows, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The places of samples with a hash, and how many have none."""
    known = rows["look"][places] != NO_HASH
    return places[known], int((~known).sum())


class _Examples:
    """The pairs of least distance, MAX_EXAMPLES of them."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 3), np.int64)

    def add(self, left: Any, right: Any, distance: Any) -> None:
        if len(left):
            table = np.vstack([self._table, np.stack([left, right, distance], axis=1)])
            order = np.lexsort((table[:, 1], table[:, 0], table[:, 2]))
            self._table = table[order[:MAX_EXAMPLES]]

    def to_list(self) -> list[Example]:
        return [(int(left), int(right), int(bits)) for left, right, bits in self._table]
