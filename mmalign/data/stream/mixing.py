"""How often each language and each data set is drawn, from the manifests' counts alone.

    captions of each language and set -> weight of a caption: temperature, then floor and cap
                                         -> weight of a sample, of a shard; planned share of each language

A language's share is its part of the draws that choose an image's first caption. If
`data.captions_per_image` is 1 these are all draws; further captions of an image are in its other languages.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.core.errors import UserError
from mmalign.core.languages import bounded_shares, caption_weights
from mmalign.data.shards.manifest import Manifest, Shard
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

    @property
    def is_even(self) -> bool:
        """Whether every image occurs once in an epoch."""
        return self.weights is None and len(set(self.set_weights)) == 1

    def shard_weight(self, number: int, shard: Shard, usable: int) -> float:
        """Weight of a shard of set `number` that has so many usable samples."""
        if self.weights is None:
            return self.set_weights[number] * usable
        # From the counts alone: indexes are read only for the window in use.
        drawn = (self.weights.get(lang, 0.0) * n for lang, n in shard.languages.items())
        return self.set_weights[number] * sum(drawn)

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
    set_weights = tuple(entry.weight for entry in config.train)
    # Temperature and bounds apply to what is drawn, so the captions of a set of weight 2 count twice.
    drawn = {
        lang: sum(w * m.languages.get(lang, 0) for w, m in zip(set_weights, manifests, strict=True))
        for lang in counts
    }
    if not config.weighs_languages:
        return Mixture(counts, None, _as_shares(drawn), set_weights)
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
