"""Search over a shard set, from words to images and from an image to captions, by its two FAISS indexes.

    a kept index, or shards -> exact indexes in memory -> KeptIndex
    text     -> text tower  -> the nearest images, each with its captions
    image    -> image tower -> the nearest captions of each language

A score is the cosine of two vectors. What is found is JSON: lists of objects.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.models.encoder import DualModel
from mmalign.search.kept_index import KeptIndex, Row, Side

Objects = list[dict[str, Any]]


class SearchIndex:
    """A model and an index of P images. Any number of threads may ask.

    Raises:
        UserError: the index was built with another model or from other data.
    """

    def __init__(self, model: DualModel, shards: Path, index: KeptIndex) -> None:
        self._model = model
        self._index = index
        self._shard_set = ShardSet(shards)
        manifest = self._shard_set.manifest
        for name, sha256, found in (
            ("model", model.facts["sha256"], model.facts["path"]),
            ("data", manifest.sha256, shards),
        ):
            if index.facts[f"{name}_sha256"] != sha256:
                raise UserError(
                    f"{found}: not the {name} that the index was built with; give that one"
                )
        self.name = f"{manifest.name}, {manifest.split}"
        self.model_name = str(model.facts["path"])
        self.languages, self.sources = index.languages, index.sources
        self.captions = index.rows["captions"]
        self._lock = threading.Lock()  # one question at a time: a second one would share the cores
        self._captions_P: list[Objects] = [[] for _ in index.rows["images"]]
        for row in self.captions:
            for image in row["pictures"]:
                self._captions_P[image].append({"lang": row["lang"], "text": row["text"]})
        # The first question of each kind takes longer, so it is asked before the page opens.
        self.by_text(self.captions[0]["text"], 1)
        self.by_image(self.read_image(0), 1)

    def __len__(self) -> int:
        return len(self._captions_P)

    def by_text(
        self, text: str, k: int, language: str | None = None, source: str | None = None
    ) -> Objects:
        """The `k` images that are nearest to a text, the best first; fewer if the set holds fewer.

        Args:
            language, source: images with a caption in it and from it only; None: all.

        Returns:
            For each `picture` (its number, see `read_image`), `score`, `captions` (each `lang`, `text`).

        Raises:
            UserError: a language or a source that the set lacks.
        """
        with self._lock:
            query_1D = self._model.encode_texts([text])
        return [
            {"picture": number, "score": score, "captions": self._captions_P[number]}
            for number, score in self._nearest("images", query_1D, k, language, source)
        ]

    def by_image(
        self, image: bytes, k: int, language: str | None = None, source: str | None = None
    ) -> Objects:
        """The `k` captions of each language that are nearest to an encoded image; equal captions are one.

        Args:
            language, source: captions in it and from it only; None: all.

        Returns:
            For each language `lang` and `captions` (each `text`, `score`), the best first.

        Raises:
            UndecodableImage: not a JPEG, PNG or WebP image, or too large.
            UserError: a language or a source that the set lacks.
        """
        with self._lock:
            query_1D = self._model.encode_images([image])
        languages = self.languages if language is None else [language]
        return [
            {"lang": lang, "captions": self._nearest_captions(query_1D, k, lang, source)}
            for lang in languages
        ]

    def _nearest_captions(
        self, query_1D: np.ndarray, k: int, language: str, source: str | None
    ) -> Objects:
        # Every source has rows of its own, so that a text is found once per source at most.
        found = self._nearest("captions", query_1D, k * len(self.sources), language, source)
        scores: dict[str, float] = {}
        for row, score in found:
            scores.setdefault(self.captions[row]["text"], score)
        return [{"text": text, "score": score} for text, score in scores.items()][:k]

    def _nearest(
        self, side: Side, query_1D: np.ndarray, k: int, language: str | None, source: str | None
    ) -> list[tuple[int, float]]:
        """Rows and scores, the best first."""
        scores, rows = self._index.search(side, query_1D, k, language, source)
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row >= 0]

    def read_image(self, number: int) -> bytes:
        """Image `number` as it is stored, 0 <= number < P."""
        return self._shard_set.read(self._index.rows["images"][number]["sample"]).image

    def examples(self, most: int) -> Objects:
        """Captions to try, each of another language, spread over the set; always the same."""
        chosen = self.languages[:: -(-len(self.languages) // most)]
        texts: dict[str, list[Row]] = {lang: [] for lang in chosen}
        for row in self.captions:
            if row["lang"] in texts:
                texts[row["lang"]].append(row)
        # Each from another part of the set.
        return [
            {"lang": lang, "text": of[len(of) * number // len(chosen)]["text"]}
            for number, (lang, of) in enumerate(texts.items())
        ]
