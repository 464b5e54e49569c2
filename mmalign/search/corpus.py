"""Exact search over a shard set, from words to images and from an image to captions.

    shards   -> cached_set  -> EmbeddedSet            once; the next start finds it on the disk
    text     -> text tower  -> the nearest images, each with its captions
    image    -> image tower -> the nearest captions of each language

A score is the cosine of two vectors. What is found is JSON: lists of objects.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.embedding_cache import cached_set
from mmalign.evaluation.nearest import search
from mmalign.models.encoder import DualModel

Objects = list[dict[str, Any]]


class SearchIndex:
    """A model and a set of P images that it has encoded once. Any number of threads may ask."""

    def __init__(self, model: DualModel, shard_set: ShardSet, embedded: EmbeddedSet) -> None:
        self.embedded = embedded
        self.name = f"{shard_set.manifest.name}, {shard_set.manifest.split}"
        self.model_name = str(model.facts["path"])
        self.languages = embedded.languages
        self._model = model
        self._shard_set = shard_set
        self._lock = threading.Lock()  # one question at a time: a second one would share the cores
        self._captions_P: list[Objects] = [[] for _ in embedded.sample_P]
        described = zip(embedded.picture_M, embedded.language_M, embedded.texts, strict=True)
        for image, lang, text in described:
            self._captions_P[image].append({"lang": str(lang), "text": text})
        self._texts: dict[str, list[str]] = {}
        self._pools: dict[str, np.ndarray] = {}
        for lang in self.languages:
            first: dict[str, int] = {}  # the row of the first caption of each text
            for row in np.flatnonzero(embedded.language_M == lang).tolist():
                first.setdefault(embedded.texts[row], row)
            self._texts[lang] = list(first)
            # Gathered once: a copy of the captions' vectors at every question would take most of its time.
            self._pools[lang] = embedded.text_MD[list(first.values())]

    def __len__(self) -> int:
        return len(self.embedded.sample_P)

    def by_text(self, text: str, k: int) -> Objects:
        """The `k` images that are nearest to a text, the best first; fewer if the set holds fewer.

        Returns:
            For each `picture` (its number, see `read_image`), `score`, `captions` (each `lang`, `text`).
        """
        with self._lock:
            query_1D = self._model.encode_texts([text])
        return [
            {"picture": number, "score": score, "captions": self._captions_P[number]}
            for number, score in _nearest(query_1D, self.embedded.image_PD, k)
        ]

    def by_image(self, image: bytes, k: int) -> Objects:
        """The `k` captions of each language that are nearest to an encoded image; equal captions are one.

        Returns:
            For each language `lang` and `captions` (each `text`, `score`), the best first.

        Raises:
            UndecodableImage: not a JPEG, PNG or WebP image, or too large.
        """
        with self._lock:
            query_1D = self._model.encode_images([image])
        return [
            {"lang": lang, "captions": self._captions(lang, query_1D, k)} for lang in self._texts
        ]

    def _captions(self, lang: str, query_1D: np.ndarray, k: int) -> Objects:
        found = _nearest(query_1D, self._pools[lang], k)
        return [{"text": self._texts[lang][row], "score": score} for row, score in found]

    def read_image(self, number: int) -> bytes:
        """Image `number` as it is stored, 0 <= number < P."""
        return self._shard_set.read(self.embedded.sample_P[number]).image

    def examples(self, most: int) -> Objects:
        """Captions to try, each of another language, spread over the set; always the same."""
        chosen = self.languages[:: -(-len(self.languages) // most)]
        texts = [self._texts[lang] for lang in chosen]
        # Each from another part of the set.
        return [
            {"lang": lang, "text": of[len(of) * number // len(chosen)]}
            for number, (lang, of) in enumerate(zip(chosen, texts, strict=True))
        ]


def build_index(model: DualModel, shards: Path, cache: Path) -> SearchIndex:
    """Encode a shard set, or read its vectors from the folder `cache`, and warm the towers up.

    Raises:
        UserError: no data set, no captions in it, or a model without an image tower.
    """
    embedded = cached_set(model, shards, shards.resolve().name, cache).embedded
    index = SearchIndex(model, ShardSet(shards), embedded)
    # The first question of each kind takes longer, so it is asked before the page opens.
    index.by_text(embedded.texts[0], 1)
    index.by_image(index.read_image(0), 1)
    return index


def _nearest(query_1D: np.ndarray, pool_MD: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Positions in the pool and scores, the best first."""
    scores, positions = search(query_1D, pool_MD, k)
    pairs = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
    # A vector that is not numbers finds nothing: -1 stands for each position.
    return [(position, score) for position, score in pairs if position >= 0]
