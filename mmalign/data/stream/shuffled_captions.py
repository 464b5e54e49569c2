"""Captions dealt anew among the images of a set: the control of a run that aligns languages through images.

    sample of an image, language of a caption -> the sample whose caption in that language the image gets

Each language is dealt by itself. If all captions of an image moved together, their languages would still
meet in one image, only in a wrong one, and the control would keep the pivot that it has to remove. Every
image keeps the languages of its captions, and every caption one wrong image in all epochs. Texts, images,
loss and how often each is seen are those of the run that it is compared with.
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.order import SHUFFLED

_STREAM = 8  # of the seed's random streams; `order.py` has those before


class ShuffledCaptions:
    """One permutation per set and language, from the seed alone; the first use of a set reads its indexes."""

    def __init__(self, sets: Sequence[ShardSet], seed: int) -> None:
        self._sets, self._seed = sets, seed
        # Of each set, by language: samples in ascending order, and the one that each gets its captions from.
        self._partners: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def partner(self, number: int, sample: int, language: str) -> int:
        """The sample of set `number` whose captions in a language the image of `sample` gets.

        Another one, unless no other sample has captions in the language.
        """
        if number not in self._partners:
            self._partners[number] = self._deal(number)
        sample_n, partner_n = self._partners[number][language]
        return int(partner_n[np.searchsorted(sample_n, sample)])

    def _deal(self, number: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        samples: dict[str, list[int]] = defaultdict(list)
        first = 0
        for shard in range(len(self._sets[number].manifest.shards)):
            languages = self._sets[number].languages_in(shard)
            for sample, langs in enumerate(languages, first):
                for lang in set(langs):
                    samples[lang].append(sample)
            first += len(languages)
        dealt = {}
        for lang, having in samples.items():
            sample_n = np.array(having)
            key = (self._seed, SHUFFLED, number, zlib.crc32(lang.encode()))
            # One cycle through all samples: no image keeps its own captions.
            cycle_n = np.random.default_rng(key).permutation(len(sample_n))
            partner_n = np.empty_like(sample_n)
            partner_n[cycle_n] = sample_n[np.roll(cycle_n, 1)]
            dealt[lang] = (sample_n, partner_n)
        return dealt
