"""What a FAISS benchmark's YAML may say."""

import os
from typing import Literal

import pydantic

from mmalign.core.config import Section
from mmalign.evaluation.ann.index import TRAIN_ROWS, IndexConfig
from mmalign.evaluation.measured import Measured


class FaissSet(Measured):
    shards: str
    """Folder of its shards: its captions and images are the queries and the right answers."""


class FaissConfig(Section):
    name: str
    set: FaissSet
    pool: tuple[str, ...] = ()
    """Folders of further shards: their images and captions are searched as well, and are never right."""
    indexes: tuple[IndexConfig, ...] = pydantic.Field(min_length=1)
    recall_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(default=(1, 10, 100), min_length=1)
    """Which share of the k true neighbours an index finds, at each of these k."""
    task_recall_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(
        default=(1, 5, 10), min_length=1
    )
    """Whether the right image or caption is among the first k."""
    timed_at: pydantic.PositiveInt = 10
    """Length of the lists that are timed; recommendations speak of the recall at this length."""
    queries: pydantic.PositiveInt = 1400
    """At most so many in each direction."""
    timed_queries: pydantic.PositiveInt = 500
    """At most so many of them are timed as one batch."""
    checked: pydantic.PositiveInt = 100
    """So many queries' exact search is repeated by numpy."""
    repeats: pydantic.PositiveInt = 3
    """Of each timed batch; the best and the median are reported, and advice rests on the median."""
    single_queries: pydantic.PositiveInt = 1000
    """How many queries are timed one by one; the 99th percentile rests on a hundredth of them."""
    threads: tuple[pydantic.PositiveInt | Literal["all"], ...] = pydantic.Field(
        default=(1, "all"), min_length=1
    )
    """Counts of threads to time with; the largest builds the indexes."""
    train_rows: pydantic.PositiveInt = TRAIN_ROWS
    """At most so many vectors, drawn at random from those that are searched, train an index."""
    most_seconds: pydantic.PositiveInt = 900
    """An index that takes longer in one direction is given up."""
    seed: int = pydantic.Field(default=0, ge=0)
    cache: str = "data/embeddings"
    """Folder where embeddings are kept, by model and data."""

    @pydantic.model_validator(mode="after")
    def _comparable(self) -> "FaissConfig":
        # Throughput and loss are stated against Flat, which is exact.
        labels = [index.label for index in self.indexes]
        if "Flat" not in labels:
            raise ValueError("`indexes` lacks `factory: Flat`, with which the others are compared")
        if len(set(labels)) < len(labels):
            raise ValueError("an index is listed twice; put its search parameters together")
        if len({*self.pool, self.set.shards}) <= len(self.pool):
            raise ValueError("`pool` lists a folder twice, or that of `set`; keep one")
        if self.timed_at not in self.recall_at or max(self.task_recall_at) > self.timed_at:
            raise ValueError("`timed_at` must be one of `recall_at` and reach all `task_recall_at`")
        return self

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """How many threads that is on this machine, ascending."""
        return tuple(sorted({os.cpu_count() or 1 if n == "all" else n for n in self.threads}))
