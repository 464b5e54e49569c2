"""How an epoch is laid out: its draws, cut into groups, visits of shards and windows. Arithmetic, no data.

    draws of each shard, shards in the order of the groups -> the draws of an epoch: 0 ... N - 1
    group g of C  the ceil(N / C) draws from floor(g N / C) on: its shards, of the first and last one a part
    visits        a shard is visited once, or, if it holds samples that are drawn more often, several times at
                  equal distances, each time for an equal part of its draws
    windows       the visits that are shuffled together; each window has the composition of its group

All groups have equally many draws, so none runs out before another, and together they have the draws that one
group would have: the mixture is exact over the groups together. If C does not divide N, fewer than C draws,
at the cuts, are of both neighbouring groups. A shard at a cut is of both groups. The idea of canonical groups
is that of MosaicML Streaming's canonical nodes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Visits that are shuffled together: of each, the place of its shard, and which of its draws."""

    place_V: np.ndarray
    first_V: np.ndarray
    last_V: np.ndarray  # exclusive


@dataclass(frozen=True)
class GroupEpoch:
    """An epoch of one group."""

    windows: list[Window]
    ends_W: np.ndarray  # draws of all windows up to and with each one


def deal(count: int, hands: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int64: the hand of each of `count` shards, of `hands` in a row at most one."""
    # Sets are often sorted, by language for example; each hand then has the composition of the complete data.
    dealt = [rng.permutation(hands) for _ in range(0, count, hands)]
    return np.concatenate(dealt)[:count]


def lay_out(
    ends_S: np.ndarray,
    passes_S: np.ndarray,
    group: int,
    groups: int,
    shuffle_shards: int,
    seed: tuple[int, ...],
) -> GroupEpoch:
    """The windows of one group.

    Args:
        ends_S: (shards + 1,) int64, draws of all shards before each place, and of all.
        passes_S: (shards,) int64, how often a shard is visited if it has so many draws.
        shuffle_shards: visits of a window, on average at most.
        seed: of this epoch; the same for all groups, whose windows belong together.
    """
    total, shards = int(ends_S[-1]), len(passes_S)
    start = group * total // groups
    stop = start - (-total // groups)
    # At the ends of the epoch also shards without a draw: they count for the number of windows.
    first = int(np.searchsorted(ends_S, start, side="right")) - 1 if group else 0
    last = int(np.searchsorted(ends_S, stop, side="left")) if group < groups - 1 else shards
    place_K = np.arange(first, last)
    begin_K = np.maximum(start - ends_S[place_K], 0)
    draws_K = np.minimum(stop, ends_S[place_K + 1]) - ends_S[place_K] - begin_K
    pass_K = np.clip(passes_S[place_K], 1, np.maximum(draws_K, 1))
    windows = -(-int(pass_K.sum()) // shuffle_shards)
    time_K = _times(len(place_K), windows, group, groups, seed)
    # Visit v of P is at (time + v) / P.
    shard_V = np.repeat(np.arange(len(place_K)), pass_K)
    visit_V = np.arange(len(shard_V)) - np.repeat(np.cumsum(pass_K) - pass_K, pass_K)
    pass_V, draws_V = pass_K[shard_V], draws_K[shard_V]
    window_V = ((time_K[shard_V] + visit_V) / pass_V * windows).astype(np.int64)
    first_V = begin_K[shard_V] + draws_V * visit_V // pass_V
    last_V = begin_K[shard_V] + draws_V * (visit_V + 1) // pass_V
    ends = np.cumsum(np.bincount(window_V, minlength=windows))
    parts = np.split(np.argsort(window_V, kind="stable"), ends[:-1])
    # Few shards with many visits may leave windows without one.
    made = [Window(place_K[shard_V[v]], first_V[v], last_V[v]) for v in parts if len(v)]
    return GroupEpoch(made, np.cumsum([int((one.last_V - one.first_V).sum()) for one in made]))


def _times(count: int, windows: int, group: int, groups: int, seed: tuple[int, ...]) -> np.ndarray:
    """(count,) float64 in [0, 1): when in the epoch each shard of a group is visited."""
    # Each window gets one of every W neighbouring shards, as in `deal`, and so do the windows that the groups
    # read at one time, taken together: the C shards of one place are 1 / C apart. For this the epoch
    # has C cells of M = W / C slots. Of M neighbouring shards each is in another slot, of cells drawn at
    # random, and group g is g cells later than the first group.
    slots = max(1, round(windows / groups))
    slot_K = deal(count, slots, np.random.default_rng(seed))
    if groups == 1:
        return (slot_K + 0.5) / slots
    rng = np.random.default_rng((*seed, 1))
    cells = np.tile(np.arange(groups), (slots, 1))
    times = []
    for first in range(0, count, groups * slots):
        slot_H = slot_K[first : first + groups * slots]
        cell_H = rng.permuted(cells, axis=1)[slot_H, np.arange(len(slot_H)) // slots]
        # A random part of a slot, because slots and windows may have different lengths.
        shifted_H = (cell_H + group) % groups * slots + slot_H + rng.random()
        times.append(shifted_H / (groups * slots))
    return np.concatenate(times)


def spread(repeats_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws,) int64: samples of a shard, each as often as it is drawn, its repeats at equal distances."""
    # Repeat k of r stands at (k + phase) / r, with a random phase for each sample.
    sample_D = np.repeat(np.arange(len(repeats_R)), repeats_R)
    repeat_D = np.arange(len(sample_D)) - np.repeat(np.cumsum(repeats_R) - repeats_R, repeats_R)
    at_D = (repeat_D + rng.random(len(repeats_R))[sample_D]) / repeats_R[sample_D]
    return sample_D[np.argsort(at_D, kind="stable")]
