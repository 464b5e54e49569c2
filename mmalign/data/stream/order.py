"""The plan: which sample stands at which position of a run, a pure function of (data, weights, seed, epoch).

    manifests -> samples of each shard --- an epoch ---> all sets' shards, dealt out to windows of at most
                                                         `shuffle_shards` -> the samples of a window, permuted
    position -> epoch, place in it -> window (by counts) -> sample

What an epoch needs in memory are counts of shards and the order of two windows, however large the data.
Without weights every usable image occurs once in an epoch. With weights, sample i is expected n_i times;
systematic sampling (one random offset for the whole epoch, walked through shard by shard) draws it floor(n_i)
or ceil(n_i) times. The walk's place at the end of each shard follows from the manifests' counts, so that
dividing it among shards and windows changes no draw but for the rounding of float64.

Data that fit into one window are shuffled in full. What windows cost where a set is larger and sorted is
measured by benchmarks/mixing.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.data.shards.open_files import MOST_OPEN
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.mixing import mix

# Separate random streams of one seed.
_ORDER, _PICTURE, _CAPTIONS, _SHARDS, _WINDOW, _SUBSTITUTE = range(6)
FULL = "full"
NEAR_ATTEMPTS = 8
"""Substitutes that are sought in the same window, whose shards are at hand; later ones come from anywhere."""


@dataclass(frozen=True)
class _Epoch:
    """How an epoch is laid out.

    Attributes:
        windows: numbers of the shards of each window, in ascending order.
        ends_W: places of all windows up to and with each one.
        edges_S: where the walk of systematic sampling stands before each shard, and after the last one; None:
            no weights.
    """

    windows: list[np.ndarray]
    ends_W: np.ndarray
    edges_S: np.ndarray | None


class GlobalOrder:
    """Which sample stands at which position.

    Samples are numbered through all sets in order, usable or not; `locate` tells the set of a number.

    Attributes:
        sets: the data sets, as many as `config.train` names.
        mixture: how often languages and sets are drawn.
        counts: usable captions per language.
    """

    def __init__(self, sets: Sequence[ShardSet], config: DataConfig, seed: int) -> None:
        self.sets = sets
        self.seed = seed
        self.mixture = mix([shard_set.manifest for shard_set in sets], config)
        self.counts = self.mixture.counts
        self._shards = [
            (number, shard)
            for number, shard_set in enumerate(sets)
            for shard in range(len(shard_set.manifest.shards))
        ]
        samples = [sets[number].manifest.shards[shard].samples for number, shard in self._shards]
        self._first_S = np.cumsum([0, *samples])
        self._first_of_set = np.cumsum([0, *(len(shard_set) for shard_set in sets)])
        self._usable_S = np.array([self._count_usable(*place) for place in self._shards])
        weights = [
            self.mixture.shard_weight(number, sets[number].manifest.shards[shard], int(usable))
            for (number, shard), usable in zip(self._shards, self._usable_S, strict=True)
        ]
        self._walk_S = np.cumsum([0.0, *weights])
        self._shuffle_shards = config.shuffle_shards
        for shard_set in sets:  # a batch can reach from one window into the next
            shard_set.shards_at_hand = max(shard_set.shards_at_hand, 2 * config.shuffle_shards)
            shard_set.files.most = max(2, MOST_OPEN // len(sets))
        self._length = int(self._usable_S.sum())
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Positions of one epoch."""
        return self._length

    @property
    def is_full_shuffle(self) -> bool:
        """Whether all shards fit into one window; the order is then that of versions without windows."""
        return len(self._shards) <= self._shuffle_shards

    @property
    def shuffle(self) -> str:
        """What a checkpoint says of it: a place in the stream means other samples under another one."""
        return FULL if self.is_full_shuffle else f"windows of {self._shuffle_shards} shards"

    @property
    def data(self) -> list[str]:
        """What names the exact bytes of each set: its manifest's sha256."""
        return [shard_set.manifest.sha256 for shard_set in self.sets]

    def locate(self, sample: int) -> tuple[int, int]:
        """Number of a sample's set, and its number in the set."""
        number = int(np.searchsorted(self._first_of_set, sample, side="right")) - 1
        return number, sample - int(self._first_of_set[number])

    def sample_at(self, position: int, attempt: int = 0) -> int:
        """The sample at a position of the run, or the substitute of this attempt, counted from 1."""
        epoch, place = divmod(position, len(self))
        layout = self._layout(epoch)
        if attempt:
            rng = np.random.default_rng((self.seed, _SUBSTITUTE, epoch, place, attempt))
            start, end = self._around(layout, place) if attempt <= NEAR_ATTEMPTS else (0, len(self))
            place = int(rng.integers(start, end))
        window = int(np.searchsorted(layout.ends_W, place, side="right"))
        order = self._window(epoch, window)
        return int(order[place - int(layout.ends_W[window]) + len(order)])

    def generators(self, position: int) -> tuple[np.random.Generator, np.random.Generator]:
        """Fresh generators for the picture and for the captions at a position.

        They are two, so that a run that looks at no picture (masked language modelling) has the same captions
        as one that does. Where a picture does not decode, the two differ: the first reads that sample's own
        captions, for nothing is wrong with them, the second those of a substitute; no other position is
        touched.
        """
        epoch, place = divmod(position, len(self))
        return (
            np.random.default_rng((self.seed, _PICTURE, epoch, place)),
            np.random.default_rng((self.seed, _CAPTIONS, epoch, place)),
        )

    def order(self, epoch: int) -> np.ndarray:
        """(samples of an epoch,) int64: which sample stands at each of its places; not for large data."""
        windows = range(len(self._layout(epoch).windows))
        return np.concatenate([self._window(epoch, window) for window in windows])

    def usable_in(self, set_number: int, shard: int) -> np.ndarray:
        """(usable samples,) int64: rows of a shard that have a caption in a wanted language."""
        languages = self.sets[set_number].languages_in(shard)
        has_one = [any(lang in self.counts for lang in langs) for langs in languages]
        return np.flatnonzero(has_one)

    def _count_usable(self, set_number: int, number: int) -> int:
        """Usable samples of a shard, from the manifest where it tells, else from the shard's index."""
        shard = self.sets[set_number].manifest.shards[number]
        wanted = shard.languages.keys() & self.counts.keys()
        if not wanted:
            return 0
        if shard.captioned is not None and len(wanted) == len(shard.languages):
            return shard.captioned
        if shard.captioned == shard.captions:  # one each
            return sum(shard.languages[lang] for lang in wanted)
        return len(self.usable_in(set_number, number))

    def _around(self, layout: _Epoch, place: int) -> tuple[int, int]:
        """The places of the window that holds `place`: from the first up to the next window's."""
        window = int(np.searchsorted(layout.ends_W, place, side="right"))
        return int(layout.ends_W[window - 1]) if window else 0, int(layout.ends_W[window])

    def _layout(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            # Two epochs are enough: a batch can reach from one into the next.
            self._epochs = dict(list(self._epochs.items())[-1:])
            self._epochs[epoch] = self._make_layout(epoch)
        return self._epochs[epoch]

    def _make_layout(self, epoch: int) -> _Epoch:
        edges_S, draws_S = None, self._usable_S
        if not self.mixture.is_even:
            offset = np.random.default_rng((self.seed, _ORDER, epoch)).uniform()
            edges_S = self._walk_S / self._walk_S[-1] * len(self) + offset
            edges_S[-1] = len(self) + offset  # exactly, whatever the sum was rounded to
            draws_S = np.diff(np.floor(edges_S)).astype(np.int64)
        windows = self._deal(np.random.default_rng((self.seed, _SHARDS, epoch)))
        ends_W = np.cumsum([draws_S[window].sum() for window in windows])
        return _Epoch(windows, ends_W, edges_S)

    def _deal(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The shards of each window, in ascending order.

        Of W windows each gets one of every W neighbouring shards, drawn at random. Sets are often sorted (by
        source, by language); a window is then made up like the whole, and not as chance would have it.
        """
        count = len(self._shards)
        number = -(-count // self._shuffle_shards)
        hands = [rng.permutation(number) for _ in range(0, count, number)]
        window_S = np.concatenate(hands)[:count]
        ends = np.cumsum(np.bincount(window_S, minlength=number))
        return np.split(np.argsort(window_S, kind="stable"), ends[:-1])

    def _announce(self, epoch: int, window: int) -> None:
        """Tell the sets which shards come next: those of this window, then those of the next one."""
        windows = self._layout(epoch).windows[window : window + 2]
        for place in (place for shards in windows for place in shards.tolist()):
            set_number, shard = self._shards[place]
            self.sets[set_number].prefetch([shard])

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """(places of a window,) int64: which sample stands at each."""
        if (epoch, window) not in self._windows:
            self._windows = dict(list(self._windows.items())[-1:])
            # First: with weights, making the window reads every shard's index.
            self._announce(epoch, window)
            self._windows[epoch, window] = self._make_window(epoch, window)
        return self._windows[epoch, window]

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        layout = self._layout(epoch)
        drawn = [self._draws_of(int(shard), layout.edges_S) for shard in layout.windows[window]]
        if not self.is_full_shuffle:
            rng = np.random.default_rng((self.seed, _WINDOW, epoch, window))
        else:
            rng = np.random.default_rng((self.seed, _ORDER, epoch))
            if layout.edges_S is not None:
                rng.uniform()  # it was the offset
        return rng.permutation(np.concatenate(drawn))

    def _draws_of(self, shard: int, edges_S: np.ndarray | None) -> np.ndarray:
        """The samples of a shard, each as often as this epoch draws it."""
        set_number, number = self._shards[shard]
        first = int(self._first_S[shard])
        if edges_S is None:
            if self._usable_S[shard] == self._first_S[shard + 1] - first:
                return np.arange(first, self._first_S[shard + 1])
            return first + self.usable_in(set_number, number)
        weight_R = self.mixture.sample_weights(self.sets[set_number].languages_in(number))
        start, end = edges_S[shard], edges_S[shard + 1]
        walk_R = start + np.cumsum(weight_R) / max(weight_R.sum(), 1e-300) * (end - start)
        walk_R[-1:] = (
            end  # exactly, whatever the sum was rounded to; a damaged shard may hold no sample
        )
        repeats_R = np.diff(np.floor(np.concatenate([[start], walk_R]))).astype(np.int64)
        return first + np.repeat(np.arange(len(weight_R)), repeats_R)


def open_sets(config: DataConfig) -> list[ShardSet]:
    """The data sets to train on.

    Raises:
        UserError: one is no finished data set, is empty, or is not the same on all ranks.
    """
    sets = [ShardSet(entry.path, config.remote) for entry in config.train]
    # Each rank fetched the manifests itself, and somebody may have uploaded others meanwhile.
    found = distributed.gather_objects([shard_set.manifest.sha256 for shard_set in sets])
    if any(hashes != found[0] for hashes in found):
        raise UserError(
            "data.train: the ranks found different manifests; start again once the upload is done"
        )
    return sets
