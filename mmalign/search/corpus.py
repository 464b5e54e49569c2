"""Exact search over a shard set, from words to images and from an image to captions.

    shards   -> cached_set  -> EmbeddedSet            once; the next start finds it on the disk
    text     -> text tower  -> the nearest images, each with its captions
    image    -> image tower -> the nearest captions of each language

A score is the cosine of two vectors, from -1 to 1. It ranks the answers to one question; what is a high
cosine differs from model to model. What is found is JSON: lists of objects.
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
    """A model and a set of P images that it has encoded once. Any number of threads may ask.

    Attributes:
        embedded: the set as vectors.
        name: of the data set, with its split.
        model_name: the path of the model.
        languages: BCP-47 codes of the captions, sorted.
    """

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
        self._rows = {lang: _distinct_texts(embedded, lang) for lang in self.languages}
        # Gathered once: a copy of the captions' vectors at every question would take most of its time.
        self._pools = {lang: embedded.text_MD[rows_N] for lang, rows_N in self._rows.items()}

    def __len__(self) -> int:
        return len(self.embedded.sample_P)

    def by_text(self, text: str, k: int) -> Objects:
        """The `k` images that are nearest to a text, the best first; fewer if the set holds fewer.

        Returns:
            For each `picture` (its number, see `read_image`), `score`, `captions` (each `lang`, `text`).
        """
        with self._lock:
            query_1D = self._model.encode_texts([text])
        found = _nearest(query_1D, self.embedded.image_PD, k)
        return [
            {"picture": number, "score": score, "captions": self._captions_P[number]}
            for number, score in found
        ]

    def by_image(self, image: bytes, k: int) -> Objects:
        """The `k` captions of each language that are nearest to an encoded image; languages by code.

        Equal captions of several images are one.

        Returns:
            For each language `lang` and `captions` (each `text`, `score`), the best first.

        Raises:
            UndecodableImage: not a JPEG, PNG or WebP image, or too large.
        """
        with self._lock:
            query_1D = self._model.encode_images([image])
        texts, answers = self.embedded.texts, []
        for lang, rows_N in self._rows.items():
            found = _nearest(query_1D, self._pools[lang], k)
            captions = [
                {"text": texts[rows_N[position]], "score": score} for position, score in found
            ]
            answers.append({"lang": lang, "captions": captions})
        return answers

    def read_image(self, number: int) -> bytes:
        """Image `number` as it is stored, 0 <= number < P."""
        return self._shard_set.read(self.embedded.sample_P[number]).image

    def examples(self, most: int) -> Objects:
        """Captions to try, each of another language, spread over the set; always the same."""
        chosen = self.languages[:: -(-len(self.languages) // most)]
        examples: Objects = []
        for number, lang in enumerate(chosen):
            rows_N = self._rows[lang]
            row = rows_N[len(rows_N) * number // len(chosen)]  # from other parts of the set
            examples.append({"lang": lang, "text": self.embedded.texts[row]})
        return examples


def build_index(model: DualModel, shards: Path, cache: Path) -> SearchIndex:
    """Encode a shard set, or read its vectors where the cache has them, and warm the towers up.

    Args:
        shards: folder of the data set.
        cache: folder of all cached embeddings, see `embedding_cache.cached_set`.

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


def _distinct_texts(embedded: EmbeddedSet, lang: str) -> np.ndarray:
    """Row of the first caption of each text of a language, (N,) int64."""
    rows = np.flatnonzero(embedded.language_M == lang)
    first: dict[str, int] = {}
    for row in rows.tolist():
        first.setdefault(embedded.texts[row], row)
    return np.array(list(first.values()), np.int64)
