"""How often each language and each data set is drawn, from the manifests' counts.

    captions of each language and set -> weight of a caption: temperature, then floor and cap
                                         -> weight of a sample, of a shard; planned share of each language
    rate of each set / its usable images -> weight of an image

Only how many samples of a shard are usable may need its index, where it has samples with several captions and
`data.languages` leaves some out.

A language's share is its part of the draws that choose an image's first caption. If
`data.captions_per_image` is 1 these are all draws; further captions of an image are in its other languages.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.core.languages import bounded_shares, caption_weights
from mmalign.data.shards.columns import Columns
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig


@dataclass(frozen=True)
class Mixture:
    """How often languages and sets are drawn."""

    counts: dict[str, int]  # usable captions per language, over all sets
    # Of a caption of each language; None: images are drawn alike, whatever their captions.
    weights: dict[str, float] | None
    # Planned share of each language; if images are drawn alike, as if each had one caption.
    shares: dict[str, float]
    set_weights: tuple[float, ...]  # of an image of each set
    rates: tuple[float, ...] | None = None  # parts of the draws that are of each set

    @property
    def is_even(self) -> bool:
        """Whether every image occurs once in an epoch."""
        return self.weights is None and len(set(self.set_weights)) == 1

    def for_usable(self, usable: Sequence[int]) -> "Mixture":
        """The mixture where each set has so many usable images, by which its rate is divided."""
        if self.rates is None:
            return self
        weights = (rate / max(1, n) for rate, n in zip(self.rates, usable, strict=True))
        return replace(self, set_weights=tuple(weights))

    def weigh_shards(self, number: int, columns: Columns, usable_S: np.ndarray) -> np.ndarray:
        """(2, shards) float64: weights of the shards of set `number`, and of their most frequent samples."""
        total_S, most_S = np.zeros((2, len(usable_S)))
        if self.weights is None:
            total_S, most_S = usable_S.astype(np.float64), np.ones(len(usable_S))
        else:
            # From the counts alone: indexes are read only for the window in use. Language by language, so
            # that each sum is rounded as it was before there were columns.
            for lang, caption_S in zip(columns.languages, columns.caption_LS, strict=True):
                weight = self.weights.get(lang, 0.0)
                total_S += weight * caption_S
                np.maximum(most_S, weight, out=most_S, where=caption_S > 0)
            # A sample with several captions has the sum of their weights, at least on average.
            np.maximum(most_S, total_S / np.maximum(usable_S, 1), out=most_S)
        return self.set_weights[number] * np.stack([total_S, most_S])

    def sample_weights(self, languages: Sequence[tuple[str, ...]]) -> np.ndarray:
        """(samples,) float64: weight of images with captions in these languages, within their shard."""
        # A shard has thousands of samples, but few combinations of languages.
        weight_of: dict[tuple[str, ...], float] = {}
        for langs in set(languages):
            if self.weights is None:
                weight_of[langs] = float(any(lang in self.counts for lang in langs))
            else:
                weight_of[langs] = sum(self.weights.get(lang, 0.0) for lang in langs)
        return np.array([weight_of[langs] for langs in languages])

    def table(self) -> str:
        """The shares before and after, and how often an epoch draws a caption of each language."""
        total = sum(self.counts.values())
        lines = [f"{'language':<16}  {'captions':>12}  {'share':>8}  {'planned':>8}  {'times':>8}"]
        for lang, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            before, after = count / total, self.shares[lang]
            lines.append(
                f"{lang:<16}  {count:>12,}  {before:>8.2%}  {after:>8.2%}  {after / before:>7.2f}x"
            )
        return "\n".join(lines)


def mix(manifests: Sequence[Manifest], config: DataConfig) -> Mixture:
    """The mixture of data sets, one manifest for each entry of `config.train`."""
    total = Counter[str]()
    for manifest in manifests:
        total.update(manifest.languages)
    lacking = sorted(set(config.languages or ()) - set(total))
    if lacking:
        raise UserError(
            f"data.languages: `{lacking[0]}` is not in the training data; it has "
            f"{', '.join(sorted(total))}"
        )
    if not total:
        raise UserError("data.train: no image has a caption, there is nothing to train on")
    wanted = set(config.languages or total)
    counts = {lang: n for lang, n in sorted(total.items()) if lang in wanted}
    rates = config.rates
    if rates is None:
        set_weights = tuple(entry.weight for entry in config.train)
    else:  # as if each image had one caption; `for_usable` knows the images
        of_set = [sum(manifest.languages.get(lang, 0) for lang in counts) for manifest in manifests]
        if 0 in of_set:
            raise UserError(
                f"data.train: {config.train[of_set.index(0)].path} has a `rate` and no caption to draw; "
                "remove it"
            )
        set_weights = tuple(rate / n for rate, n in zip(rates, of_set, strict=True))
    # Temperature and bounds apply to what is drawn, so the captions of a set of weight 2 count twice.
    drawn = {
        lang: sum(w * m.languages.get(lang, 0) for w, m in zip(set_weights, manifests, strict=True))
        for lang in counts
    }
    if not config.weighs_languages:
        return Mixture(counts, None, _as_shares(drawn), set_weights, rates)
    weights = caption_weights(drawn, config.language_temperature or 1.0)
    shares = _as_shares({lang: weights[lang] * n for lang, n in drawn.items()})
    if config.language_floor is not None or config.language_cap is not None:
        bounded = bounded_shares(shares, config.language_floor, config.language_cap)
        weights = {lang: w * bounded[lang] / shares[lang] for lang, w in weights.items()}
        shares = bounded
    return Mixture(counts, weights, shares, set_weights)


def _as_shares(drawn: dict[str, float]) -> dict[str, float]:
    total = sum(drawn.values())
    return {lang: n / total for lang, n in drawn.items()}


def usable_rows(languages: Sequence[tuple[str, ...]], counts: Collection[str]) -> np.ndarray:
    """(usable samples,) int64: rows of a shard that have a caption in a wanted language."""
    return np.flatnonzero([any(lang in counts for lang in langs) for langs in languages])


def count_usable(sets: Sequence[ShardSet], counts: Collection[str]) -> list[np.ndarray]:
    """For each set (shards,) int64, usable samples: from the manifest if it says it, else from the index."""
    usable, unknown = [], []
    for number, shard_set in enumerate(sets):
        columns = shard_set.manifest.columns
        caption_S, captioned_S = columns.caption_S, columns.captioned_S
        wanted_S = columns.captions_in(counts)
        all_wanted_S = (wanted_S == caption_S) & (captioned_S >= 0)
        one_each_S = captioned_S == caption_S
        usable.append(np.where(all_wanted_S, captioned_S, wanted_S))
        open_S = ~(all_wanted_S | one_each_S | (wanted_S == 0))
        unknown += [(number, shard) for shard in np.flatnonzero(open_S).tolist()]
    if not unknown:
        return usable
    rank, ranks = distributed.rank(), distributed.world_size()

    def read() -> list[int]:
        return [
            len(usable_rows(sets[number].languages_in(shard), counts))
            for number, shard in unknown[rank::ranks]
        ]

    for first, found in enumerate(distributed.gather_objects(distributed.on_all(read))):
        for (number, shard), count in zip(unknown[first::ranks], found, strict=True):
            usable[number][shard] = count
    return usable
