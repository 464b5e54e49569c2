"""What a FAISS benchmark's YAML may say."""

import itertools
import os
import re
from typing import Any, Literal

import pydantic

from mmalign.core.config import Section
from mmalign.evaluation.measured import Measured


def faiss_reason(error: BaseException) -> str:
    """FAISS's message in one line, without its position in FAISS's source."""
    text = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split()))
    return text or type(error).__name__


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

    @pydantic.model_validator(mode="after")
    def _faiss_knows_it(self) -> "IndexConfig":
        import faiss

        for name, values in self.search.items():
            if name.removeprefix("quantizer_") == "efConstruction":
                raise ValueError(
                    f"`search.{name}` is used while an index is built, after which it changes nothing; "
                    "take it out"
                )
            if len(set(values)) < len(values):
                raise ValueError(f"`search.{name}` lists a value twice; keep one")
        space: Any = faiss.ParameterSpace()  # its signatures know only one of the overloads
        # Millions of lists would take memory for a trial.
        small = re.sub(r"(IVF|IMI2x)\d+", r"\g<1>4", self.factory)
        # The width of the vectors is not known yet, and product quantizers need one that they divide.
        for width in (960, 1024):
            try:
                index = faiss.index_factory(width, small, faiss.METRIC_INNER_PRODUCT)
                for name in self.search:
                    space.set_index_parameter(index, name, 1)
                break
            except RuntimeError as error:
                if "could not parse" in str(error) or "could not set" in str(error):
                    raise ValueError(
                        f"`{self.factory}` is not what FAISS knows ({faiss_reason(error)}); fix it"
                    ) from None
        return self

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
        if len({*self.pool, self.set.shards}) <= len(self.pool):
            raise ValueError("`pool` lists a folder twice, or that of `set`; keep one")
        if self.timed_at not in self.recall_at or max(self.task_recall_at) > self.timed_at:
            raise ValueError("`timed_at` must be one of `recall_at` and reach all `task_recall_at`")
        return self

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """How many threads that is on this machine, ascending."""
        return tuple(sorted({os.cpu_count() or 1 if n == "all" else n for n in self.threads}))
