"""The shards of a data set, and their counts as columns.

The columns are what an order is computed from; the rows (`Shard`) are what a file is opened by.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shard:
    """One tar: its file name and what it holds."""

    file: str
    samples: int
    captions: int
    languages: dict[str, int]
    path: str | None = None  # absolute or from the manifest's folder; None: beside the manifest
    captioned: int | None = None  # samples with a caption; None: not counted, by older versions

    @property
    def tar(self) -> str:
        """The tar as the manifest's list of files names it."""
        return self.path or self.file

    @property
    def index(self) -> str:
        return self.file.removesuffix(".tar") + ".index.jsonl"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Columns:
    """Counts of every shard."""

    sample_S: np.ndarray  # int64
    caption_S: np.ndarray  # int64
    captioned_S: np.ndarray  # int64, -1: not counted
    languages: tuple[str, ...]  # sorted
    caption_LS: np.ndarray  # int32, captions in each language

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "Columns":
        languages = sorted({lang for shard in shards for lang in shard.languages})
        row_of = {lang: row for row, lang in enumerate(languages)}
        caption_LS = np.zeros((len(languages), len(shards)), np.int32)
        for column, shard in enumerate(shards):
            for lang, count in shard.languages.items():
                caption_LS[row_of[lang], column] = count
        counts = [
            (s.samples, s.captions, -1 if s.captioned is None else s.captioned) for s in shards
        ]
        sample_S, caption_S, captioned_S = np.array(counts, np.int64).reshape(-1, 3).T
        return cls(sample_S, caption_S, captioned_S, tuple(languages), caption_LS)

    def first(self, count: int) -> "Columns":
        """Of the first shards alone: what `of` makes of them."""
        sample_S, caption_S, captioned_S = (
            one[:count] for one in (self.sample_S, self.caption_S, self.captioned_S)
        )
        caption_LS = self.caption_LS[:, :count]
        rows = [row for row, counts_S in enumerate(caption_LS) if counts_S.any()]
        if len(rows) < len(self.languages):  # else no copy: the columns may be mapped and large
            caption_LS = caption_LS[rows]
        languages = tuple(self.languages[row] for row in rows)
        return Columns(sample_S, caption_S, captioned_S, languages, caption_LS)

    def captions_in(self, languages: Collection[str]) -> np.ndarray:
        """(shards,) int64: captions in any of these languages."""
        wanted = [row for row, lang in enumerate(self.languages) if lang in languages]
        total_S = np.zeros(len(self.sample_S), np.int64)
        for row in wanted:  # not one sum: that would copy the rows
            total_S += self.caption_LS[row]
        return total_S
