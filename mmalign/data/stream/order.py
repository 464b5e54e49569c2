"""The global order: which sample is at which position; a pure function of data, mixture, groups, seed, epoch.

    manifests -> shards, dealt to `groups` once --- an epoch ---> draws of each group, in windows of about
                                                                  `shuffle_shards` shards (layout.py)
                                                                  -> the draws of a window, permuted
    position p -> group p mod C, its draw p div C -> epoch, window (by counts) -> sample

Every batch has equally many positions of each group, so ranks that read whole groups, or whole parts of one,
see the same batches however many they are, and read only the shards of their groups. An epoch has
C * ceil(N / C) positions for N usable images; layout.py says what they hold.

An epoch needs in memory the counts of shards and, for each group that is read, the order of two windows,
however large the data. Without weights every usable image occurs once in an epoch. With weights, sample i is
expected n_i times; systematic sampling (one random offset for the complete epoch, walked through shard by
shard) draws it floor(n_i) or ceil(n_i) times. How far the walk is at the end of each shard follows from the
manifests' counts, so dividing it into groups and windows changes no draw except by the rounding of float64.
Repeats of a sample are at equal distances in the epoch of its group. For this its shard is visited again, as
often as its most frequent sample is drawn, up to `MOST_VISITS` times. A visit that needs less than half of a
remote shard reads the samples by range.

Data that fit into one window are shuffled in full. What windows cost for larger, sorted data is measured by
benchmarks/mixing.py.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mmalign.core import distributed
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.shards.folder import LocalFolder, open_files
from mmalign.data.shards.reader import ShardSet
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.layout import GroupEpoch, Window, deal, lay_out, spread
from mmalign.data.stream.mixing import count_usable, mix, usable_rows

ORDER_VERSION = 2
"""Version of the order that this module computes.

Raise it with every change after which a position means another sample (other random streams, other dealing or
sampling). A checkpoint stores it with its position, and a run goes on with the version that it began with. A
checkpoint without it is of version 1. Version 1 visits each shard once in an epoch, so that all repeats of a
sample are in one window; without weights, or in one window, the two are equal.
"""

# Separate random streams of one seed. Their numbers are part of the order.
_ORDER, _PICTURE, _CAPTIONS, _SHARDS, _WINDOW, _SUBSTITUTE, _GROUPS, _REPEATS, SHUFFLED = range(9)
FULL = "full"
NEAR_ATTEMPTS = 8
"""Substitutes from the same window, whose shards are downloaded already; later ones come from its group."""
MOST_VISITS = 32
"""Visits of a shard in an epoch. They bound what is read again; 32 spread repeats over 97 % of an epoch."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class _Epoch:
    """The draws of an epoch; shards in the order of the groups."""

    ends_S: np.ndarray  # (shards + 1,) draws before each shard, and of all
    # Value of the walk of systematic sampling before each shard, and after the last one; None: no weights.
    edges_S: np.ndarray | None
    groups: dict[int, GroupEpoch] = field(default_factory=dict)


class Visit(NamedTuple):
    """A shard in a window."""

    set: int
    shard: int  # number in the set
    draws: int
    by_range: bool  # whether its samples are read alone, while it is not on this machine


class GlobalOrder:
    """Which sample is at which position; samples are numbered through all sets in order, usable or not.

    Made on all ranks at once: where the manifests do not say how many samples of a shard are usable, each
    rank reads a part of the indexes.

    Raises:
        UserError: a language is not in the data, nothing can be used, or there are more groups than shards.
    """

    def __init__(self, sets: Sequence[ShardSet], config: DataConfig, seed: int) -> None:
        self.sets, self.seed, self.groups = sets, seed, config.groups
        # A run that goes on with an older version sets it before the first use.
        self.version = ORDER_VERSION
        manifests = [shard_set.manifest for shard_set in sets]
        columns = [manifest.columns for manifest in manifests]
        self.mixture = mix(manifests, config)
        self.counts = self.mixture.counts
        usable = count_usable(sets, self.counts)
        self.mixture = self.mixture.for_usable([int(usable_S.sum()) for usable_S in usable])
        self._usable_S = np.concatenate(usable)
        self._first_shard = _sums([len(usable_S) for usable_S in usable])  # of each set
        self._first_S = _sums(np.concatenate([one.sample_S for one in columns]))
        self._first_of_set = _sums([len(shard_set) for shard_set in sets])
        used, shards = int(self._usable_S.sum()), len(self._usable_S)
        if self.groups > min(used, shards):
            raise UserError(
                f"data.groups: {self.groups} groups of {shards} shards with {used} usable images; every "
                "group needs a shard of its own, give fewer groups"
            )
        self._shuffle_shards = config.shuffle_shards
        self._group_length = -(-used // self.groups)
        rng = np.random.default_rng((seed, _GROUPS))
        # (shards,) number of the shard at each place in the order of the groups
        self._shard_S = np.argsort(deal(shards, self.groups, rng), kind="stable")
        weighed = map(self.mixture.weigh_shards, range(len(sets)), columns, usable)
        weight_2S = np.concatenate(list(weighed), axis=1)[:, self._shard_S]
        self._walk_S = _sums(weight_2S[0])
        most_S = np.ceil(weight_2S[1] / self._walk_S[-1] * used).astype(np.int64)
        self._visits_S = np.clip(most_S, 1, MOST_VISITS)
        self.will_read(1)
        # Not `Recent` of methods: that cycle would keep the sets' descriptors open until it is collected.
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[int, dict[tuple[int, int], np.ndarray]] = {}

    def __len__(self) -> int:
        """Positions of one epoch."""
        return self._group_length * self.groups

    def will_read(self, groups: int) -> None:
        """Say how many groups are read here: the starts of so many windows' index rows stay in memory."""
        for shard_set in self.sets:  # a batch can reach from one window into the next
            most = 2 * self._shuffle_shards * groups
            shard_set.starts.most = max(shard_set.starts.most, most)

    @property
    def is_full_shuffle(self) -> bool:
        """Whether all shards are in one window; the order is then that of versions without windows."""
        return self.groups == 1 and len(self._shard_S) <= self._shuffle_shards

    @property
    def shuffle(self) -> str:
        """For checkpoints: under another value, a position in the stream means other samples."""
        of_group = f" in each of {self.groups} groups" if self.groups > 1 else ""
        windows = f"windows of {self._shuffle_shards} shards{of_group}"
        return FULL if self.is_full_shuffle else windows

    @property
    def data(self) -> list[str]:
        """The sha256 of each set's manifest, which identifies its exact bytes."""
        return [shard_set.manifest.sha256 for shard_set in self.sets]

    def locate(self, sample: int) -> tuple[int, int]:
        """Number of a sample's set, and its number in the set."""
        number = int(np.searchsorted(self._first_of_set, sample, side="right")) - 1
        return number, sample - int(self._first_of_set[number])

    def positions(self, step: int, batch_size: int, rows: range) -> list[int]:
        """Positions of rows of the global batch `step`, whose rows are ordered by group."""
        of_group = batch_size // self.groups
        first = step * batch_size
        return [first + row % of_group * self.groups + row // of_group for row in rows]

    def sample_at(self, position: int, attempt: int = 0) -> int:
        """The sample at a position of the run, or the substitute of this attempt, counted from 1."""
        epoch, inner = divmod(position, len(self))
        draw, group = divmod(inner, self.groups)
        ends_W = self._group_epoch(epoch, group).ends_W
        if attempt:
            rng = np.random.default_rng((self.seed, _SUBSTITUTE, epoch, inner, attempt))
            window = int(np.searchsorted(ends_W, draw, side="right"))
            near = (int(ends_W[window - 1]) if window else 0, int(ends_W[window]))
            draw = int(rng.integers(*(near if attempt <= NEAR_ATTEMPTS else (0, int(ends_W[-1])))))
        window = int(np.searchsorted(ends_W, draw, side="right"))
        order = self._window(epoch, group, window)
        return int(order[draw - int(ends_W[window]) + len(order)])

    def generators(self, position: int) -> tuple[np.random.Generator, np.random.Generator]:
        """New generators for the image and for the captions at a position."""
        epoch, inner = divmod(position, len(self))
        # Two, so that a run that uses no images (masked language modelling) has the same captions as one that
        # does, but for the images that do not decode: only the second replaces these samples.
        return (
            np.random.default_rng((self.seed, _PICTURE, epoch, inner)),
            np.random.default_rng((self.seed, _CAPTIONS, epoch, inner)),
        )

    def order(self, epoch: int) -> np.ndarray:
        """(samples of an epoch,) int64: which sample is at each of its positions; not for large data."""
        groups = []
        for group in range(self.groups):
            windows = range(len(self._group_epoch(epoch, group).windows))
            groups.append(np.concatenate([self._window(epoch, group, w) for w in windows]))
        return np.stack(groups, axis=1).ravel()

    def visits(self, epoch: int, group: int) -> list[list[Visit]]:
        """The shards that each window of a group reads."""
        return [self._visits_of(one) for one in self._group_epoch(epoch, group).windows]

    def _visits_of(self, window: Window) -> list[Visit]:
        shard_V = self._shard_S[window.place_V]
        samples_V = self._first_S[shard_V + 1] - self._first_S[shard_V]
        draws_V = window.last_V - window.first_V
        # Of a shard that is visited often, each time for a part of its samples, only these are downloaded.
        by_range_V = 2 * draws_V < samples_V if self._spreads else np.zeros(len(draws_V), bool)
        numbers = zip(window.place_V.tolist(), draws_V.tolist(), by_range_V.tolist(), strict=True)
        return [Visit(*self._find(place), draws, ranged) for place, draws, ranged in numbers]

    def _find(self, place: int) -> tuple[int, int]:
        shard = int(self._shard_S[place])
        number = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
        return number, shard - int(self._first_shard[number])

    def _epoch(self, epoch: int) -> _Epoch:
        return _keep(self._epochs, epoch, lambda: self._make_epoch(epoch))

    def _make_epoch(self, epoch: int) -> _Epoch:
        usable_S = self._usable_S[self._shard_S]
        if self.mixture.is_even:
            return _Epoch(_sums(usable_S), None)
        used = int(usable_S.sum())
        offset = np.random.default_rng((self.seed, _ORDER, epoch)).uniform()
        edges_S = self._walk_S / self._walk_S[-1] * used + offset
        edges_S[-1] = used + offset  # exactly, whatever the sum was rounded to
        return _Epoch(np.floor(edges_S).astype(np.int64), edges_S)

    def _group_epoch(self, epoch: int, group: int) -> GroupEpoch:
        laid_out = self._epoch(epoch)
        if group not in laid_out.groups:
            once = np.ones_like(self._visits_S)
            visits_S = self._visits_S if self._spreads else once
            laid_out.groups[group] = lay_out(
                laid_out.ends_S,
                visits_S,
                group,
                self.groups,
                self._shuffle_shards,
                (self.seed, _SHARDS, epoch),
            )
        return laid_out.groups[group]

    @property
    def _spreads(self) -> bool:
        return self.version > 1 and not self.is_full_shuffle and not self.mixture.is_even

    def _key(self, group: int) -> tuple[int, ...]:
        return (group,) if self.groups > 1 else ()  # as in versions without groups

    def _window(self, epoch: int, group: int, window: int) -> np.ndarray:
        made = self._windows.setdefault(group, {})
        return _keep(made, (epoch, window), lambda: self._make_window(epoch, group, window))

    def _make_window(self, epoch: int, group: int, window: int) -> np.ndarray:
        # Announce the shards of this window, then those of the next. Before the window is made, because
        # with weights that reads every shard's index.
        windows = self._group_epoch(epoch, group).windows[window : window + 2]
        for visit in (visit for one in windows for visit in self._visits_of(one)):
            self.sets[visit.set].prefetch([visit.shard], visit.by_range)
        visits = zip(windows[0].place_V, windows[0].first_V, windows[0].last_V, strict=True)
        drawn = [self._draws_of(int(place), epoch)[a:b] for place, a, b in visits]
        if not self.is_full_shuffle:
            rng = np.random.default_rng((self.seed, _WINDOW, epoch, window, *self._key(group)))
        else:
            # As in versions without windows, where one generator drew the offset and the permutation.
            rng = np.random.default_rng((self.seed, _ORDER, epoch))
            if not self.mixture.is_even:
                rng.uniform()
        return rng.permutation(np.concatenate(drawn))

    def _draws_of(self, place: int, epoch: int) -> np.ndarray:
        """The samples of a shard, each as often as this epoch draws it."""
        set_number, number = self._find(place)
        shard, edges_S = int(self._shard_S[place]), self._epoch(epoch).edges_S
        first, last = self._first_S[shard : shard + 2].tolist()
        if edges_S is None:
            if self._usable_S[shard] == last - first:
                return np.arange(first, last)
            return first + usable_rows(self.sets[set_number].languages_in(number), self.counts)
        weight_R = self.mixture.sample_weights(self.sets[set_number].languages_in(number))
        start, end = edges_S[place], edges_S[place + 1]
        walk_R = start + np.cumsum(weight_R) / max(weight_R.sum(), 1e-300) * (end - start)
        # Exactly, whatever the sum was rounded to. A slice, because a damaged shard may have no sample.
        walk_R[-1:] = end
        repeats_R = np.diff(np.floor(np.concatenate([[start], walk_R]))).astype(np.int64)
        if self._spreads:
            rng = np.random.default_rng((self.seed, _REPEATS, epoch, shard))
            return first + spread(repeats_R, rng)
        return first + np.repeat(np.arange(len(weight_R)), repeats_R)


def _keep(made: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a key; the two made last are kept, because a batch can reach from one into the next."""
    if key not in made:
        for old in list(made)[:-1]:
            del made[old]
        made[key] = make()
    return made[key]


def _sums(values: ArrayLike) -> np.ndarray:
    """(n + 1,) sums of the values before each one, and of all."""
    sums: np.ndarray = np.concatenate([[0], np.asarray(values)]).cumsum()
    return sums


def open_sets(config: DataConfig, as_of: Sequence[str] = ()) -> list[ShardSet]:
    """The data sets to train on; a UserError, on all ranks, if one is not the same on all of them.

    Args:
        as_of: of a run that goes on, `GlobalOrder.data`: shards that were appended to a set since then are
            left out, so that the run's order stays what it was.
    """
    known = as_of if len(as_of) == len(config.train) else [None] * len(config.train)
    files = open_files()
    # One rank looks whether the files are there: from all ranks, these are the most requests of a start.
    look = distributed.is_main()
    sets = distributed.on_all(
        lambda: [
            ShardSet(one.path, config.remote, look, files, sha256)
            for one, sha256 in zip(config.train, known, strict=True)
        ]
    )
    for one in sets:
        if one.manifest.grown_sha256 is not None:
            say(
                f"{one.folder}: the run goes on with its {len(one.manifest.shards):,} shards, without "
                "those that were appended since it began"
            )
    # Of each group that this host reads, the window that is read and the next one. Slow workers still read
    # the one before, but less and less.
    here = config.groups * distributed.local_world_size() / distributed.world_size()
    _check_cache(sets, config.remote, 2 * config.shuffle_shards * max(1, math.ceil(here)))
    # Each rank read the manifests itself, and the data may have been uploaded again meanwhile.
    distributed.must_agree([one.manifest.sha256 for one in sets], "data.train: the manifests")
    return sets


def _check_cache(sets: Sequence[ShardSet], remote: RemoteConfig, shards: int) -> None:
    """A UserError, with the size that would do, if the cache cannot hold the `shards` largest at URLs."""
    at_urls = [one.manifest.shard_bytes for one in sets if not isinstance(one.folder, LocalFolder)]
    size_S = np.sort(np.concatenate([np.zeros(0, np.int64), *at_urls]))[-shards:]
    needed = size_S.sum() / 2**30
    if needed > remote.cache_gib:
        raise UserError(
            f"data.remote.cache_gib: {remote.cache_gib:g} GiB cannot hold the {len(size_S)} "
            f"shards of two windows; set it to {math.ceil(needed * 1000) / 1000:g}, or lower "
            "data.shuffle_shards"
        )
