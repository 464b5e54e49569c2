"""The global order: which sample is at which position; a pure function of (data, weights, seed, epoch).

    manifests -> samples of each shard --- an epoch ---> all sets' shards, dealt to windows of at most
                                                         `shuffle_shards` -> the samples of a window, permuted
    position -> epoch, position in it -> window (by counts) -> sample

An epoch needs in memory the counts of shards and the order of two windows, however large the data. Without
weights every usable image occurs once in an epoch. With weights, sample i is expected n_i times; systematic
sampling (one random offset for the complete epoch, walked through shard by shard) draws it floor(n_i) or
ceil(n_i) times. How far the walk is at the end of each shard follows from the manifests' counts, so
dividing it into shards and windows changes no draw except by the rounding of float64.

Data that fit into one window are shuffled in full. What windows cost for larger, sorted data is measured by
benchmarks/mixing.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core import distributed
from mmalign.data.shards.reader import ShardSet, most_open
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.mixing import mix

ORDER_VERSION = 1
"""Version of the order that this module computes.

Raise it with every change after which a position means another sample (other random streams, other dealing or
sampling). A checkpoint stores it with its position, and a run must not resume there under another version. A
checkpoint without it is of version 1.
"""

# Separate random streams of one seed. Their numbers are part of the order.
_ORDER, _PICTURE, _CAPTIONS, _SHARDS, _WINDOW, _SUBSTITUTE = range(6)
FULL = "full"
NEAR_ATTEMPTS = 8
"""Substitutes from the same window, whose shards are downloaded already; later ones come from anywhere."""


@dataclass(frozen=True)
class _Epoch:
    """How an epoch is laid out."""

    windows: list[np.ndarray]  # numbers of the shards of each window, in ascending order
    ends_W: np.ndarray  # positions of all windows up to and with each one
    # Value of the walk of systematic sampling before each shard, and after the last one; None: no weights.
    edges_S: np.ndarray | None


class GlobalOrder:
    """Which sample is at which position; samples are numbered through all sets in order, usable or not."""

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
        entries = [sets[number].manifest.shards[shard] for number, shard in self._shards]
        self._first_S = np.cumsum([0, *(entry.samples for entry in entries)])
        self._first_of_set = np.cumsum([0, *(len(shard_set) for shard_set in sets)])
        self._usable_S = np.array([self._count_usable(*shard) for shard in self._shards])
        set_numbers = [number for number, _ in self._shards]
        usable = self._usable_S.tolist()
        weights = map(self.mixture.shard_weight, set_numbers, entries, usable)
        self._walk_S = np.cumsum([0.0, *weights])
        self._shuffle_shards = config.shuffle_shards
        for shard_set in sets:  # a batch can reach from one window into the next
            shard_set.starts.most = max(shard_set.starts.most, 2 * config.shuffle_shards)
            shard_set.files.most = most_open(len(sets))
        self._length = int(self._usable_S.sum())
        # Not `Recent` of methods: that cycle would keep the sets' descriptors open until it is collected.
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
        """For checkpoints: under another value, a position in the stream means other samples."""
        return FULL if self.is_full_shuffle else f"windows of {self._shuffle_shards} shards"

    @property
    def data(self) -> list[str]:
        """The sha256 of each set's manifest, which identifies its exact bytes."""
        return [shard_set.manifest.sha256 for shard_set in self.sets]

    def locate(self, sample: int) -> tuple[int, int]:
        """Number of a sample's set, and its number in the set."""
        number = int(np.searchsorted(self._first_of_set, sample, side="right")) - 1
        return number, sample - int(self._first_of_set[number])

    def sample_at(self, position: int, attempt: int = 0) -> int:
        """The sample at a position of the run, or the substitute of this attempt, counted from 1."""
        epoch, inner = divmod(position, len(self))
        ends_W = self._layout(epoch).ends_W
        if attempt:
            rng = np.random.default_rng((self.seed, _SUBSTITUTE, epoch, inner, attempt))
            window = int(np.searchsorted(ends_W, inner, side="right"))
            near = (int(ends_W[window - 1]) if window else 0, int(ends_W[window]))
            inner = int(rng.integers(*(near if attempt <= NEAR_ATTEMPTS else (0, len(self)))))
        window = int(np.searchsorted(ends_W, inner, side="right"))
        order = self._window(epoch, window)
        return int(order[inner - int(ends_W[window]) + len(order)])

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
        windows = range(len(self._layout(epoch).windows))
        return np.concatenate([self._window(epoch, window) for window in windows])

    def usable_in(self, set_number: int, shard: int) -> np.ndarray:
        """(usable samples,) int64: rows of a shard that have a caption in a wanted language."""
        languages = self.sets[set_number].languages_in(shard)
        has_one = [any(lang in self.counts for lang in langs) for langs in languages]
        return np.flatnonzero(has_one)

    def _count_usable(self, set_number: int, number: int) -> int:
        """Usable samples of a shard, from the manifest if it says it, else from the shard's index."""
        shard = self.sets[set_number].manifest.shards[number]
        wanted = shard.languages.keys() & self.counts.keys()
        if not wanted:
            return 0
        if shard.captioned is not None and len(wanted) == len(shard.languages):
            return shard.captioned
        if shard.captioned == shard.captions:  # one caption per sample
            return sum(shard.languages[lang] for lang in wanted)
        return len(self.usable_in(set_number, number))

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
        """The shards of each window, in ascending order."""
        # Of W windows each gets one of every W neighbouring shards, drawn at random. Sets are often sorted,
        # by language for example; each window then has the composition of the complete data.
        count = len(self._shards)
        number = -(-count // self._shuffle_shards)
        hands = [rng.permutation(number) for _ in range(0, count, number)]
        window_S = np.concatenate(hands)[:count]
        ends = np.cumsum(np.bincount(window_S, minlength=number))
        return np.split(np.argsort(window_S, kind="stable"), ends[:-1])

    def _window(self, epoch: int, window: int) -> np.ndarray:
        if (epoch, window) not in self._windows:
            self._windows = dict(list(self._windows.items())[-1:])
            # Announce the shards of this window, then those of the next. Before the window is made, because
            # with weights that reads every shard's index.
            for shards in self._layout(epoch).windows[window : window + 2]:
                for set_number, shard in (self._shards[number] for number in shards.tolist()):
                    self.sets[set_number].prefetch([shard])
            self._windows[epoch, window] = self._make_window(epoch, window)
        return self._windows[epoch, window]

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        layout = self._layout(epoch)
        drawn = [self._draws_of(int(shard), layout.edges_S) for shard in layout.windows[window]]
        if not self.is_full_shuffle:
            rng = np.random.default_rng((self.seed, _WINDOW, epoch, window))
        else:
            # As in versions without windows, where one generator drew the offset and the permutation.
            rng = np.random.default_rng((self.seed, _ORDER, epoch))
            if layout.edges_S is not None:
                rng.uniform()
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
        # Exactly, whatever the sum was rounded to. A slice, because a damaged shard may have no sample.
        walk_R[-1:] = end
        repeats_R = np.diff(np.floor(np.concatenate([[start], walk_R]))).astype(np.int64)
        return first + np.repeat(np.arange(len(weight_R)), repeats_R)


def open_sets(config: DataConfig) -> list[ShardSet]:
    """The data sets to train on; a UserError, on all ranks, if one is not the same on all of them."""
    sets = distributed.on_all(lambda: [ShardSet(one.path, config.remote) for one in config.train])
    # Each rank read the manifests itself, and the data may have been uploaded again meanwhile.
    distributed.must_agree([one.manifest.sha256 for one in sets], "data.train: the manifests")
    return sets
