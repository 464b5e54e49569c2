"""What a FAISS benchmark's YAML may say."""

import itertools
import os
from typing import Literal

import pydantic

from mmalign.core.config import Section
from mmalign.evaluation.measured import Measured


class FaissSet(Measured):
    shards: str
    """Folder of its shards: its captions and images are the queries and the right answers."""


class IndexConfig(Section):
    factory: str = pydantic.Field(pattern=r"^[^/\s]+$")
    """FAISS's string for `index_factory`; the metric is the inner product."""
    search: dict[str, tuple[pydantic.PositiveInt, ...]] = pydantic.Field(default_factory=dict)
    """Search parameters by FAISS's names (`nprobe`, `efSearch`, `k_factor_rf`); all combinations."""

    train_rows: pydantic.PositiveInt | None = None
    """In place of the suite's: OPQ learns its rotation for minutes from as many vectors as others need."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Every combination, as FAISS reads it: `nprobe=16,k_factor_rf=4`."""
        named = [[f"{name}={value}" for value in values] for name, values in self.search.items()]
        return tuple(",".join(chosen) for chosen in itertools.product(*named))


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
    """Of each timed batch; the best and the median are reported."""
    single_queries: pydantic.PositiveInt = 200
    """How many queries are timed one by one."""
    threads: tuple[pydantic.PositiveInt | Literal["all"], ...] = pydantic.Field(
        default=(1, "all"), min_length=1
    )
    """Counts of threads to time with; the largest builds the indexes."""
    train_rows: pydantic.PositiveInt = 50_000
    """At most so many vectors, drawn at random from those that are searched, train an index."""
    most_seconds: pydantic.PositiveInt = 900
    """An index that takes longer in one direction is given up."""
    seed: int = pydantic.Field(default=0, ge=0)
    cache: str = "data/embeddings"
    """Folder where embeddings are kept, by model and data."""

    @pydantic.model_validator(mode="after")
    def _comparable(self) -> "FaissConfig":
        # Throughput and loss are stated against Flat, which is exact.
        factories = [index.factory for index in self.indexes]
        if "Flat" not in factories:
            raise ValueError("`indexes` lacks `factory: Flat`, with which the others are compared")
        if len(set(factories)) < len(factories):
            raise ValueError("an index is listed twice; put its search parameters together")
        if self.timed_at not in self.recall_at or max(self.task_recall_at) > self.timed_at:
            raise ValueError("`timed_at` must be one of `recall_at` and reach all `task_recall_at`")
        return self

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """How many threads that is on this machine, ascending."""
        return tuple(sorted({os.cpu_count() or 1 if n == "all" else n for n in self.threads}))
