"""One FAISS index as a configuration describes it: checked, made, trained and filled.

    IndexConfig -> new_index (parameters of building are set) -> fill (train, add) -> set_parameters -> search

The benchmark and `mmalign index` build with these functions, so that what is kept is what was measured.
"""

import itertools
import re
from typing import Any

import numpy as np
import pydantic

from mmalign.core.config import Section

TRAIN_ROWS = 50_000


def faiss_reason(error: BaseException) -> str:
    """FAISS's message in one line, without its position in FAISS's source."""
    text = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split()))
    return text or type(error).__name__


class IndexConfig(Section):
    factory: str = pydantic.Field(pattern=r"^[^/\s]+$")
    """FAISS's string for `index_factory`; the metric is the inner product."""
    build: dict[str, pydantic.PositiveInt] = pydantic.Field(default_factory=dict)
    """Parameters that FAISS uses while it adds vectors: `{efConstruction: 200}`."""
    search: dict[str, tuple[pydantic.PositiveInt, ...]] = pydantic.Field(default_factory=dict)
    """Search parameters by FAISS's names (`nprobe`, `efSearch`, `k_factor_rf`); all combinations."""

    train_rows: pydantic.PositiveInt | None = None
    """In place of the suite's: OPQ learns its rotation for minutes from as many vectors as others need."""
    dims: pydantic.PositiveInt | None = None
    """Index the first so many dimensions, re-normalised (`objective.dims`); none: all."""

    @pydantic.model_validator(mode="after")
    def _faiss_knows_it(self) -> "IndexConfig":
        import faiss

        for name, values in self.search.items():
            if _is_of_building(name):
                raise ValueError(
                    f"`search.{name}` is used while an index is built, after which it changes nothing; "
                    f"give `build: {{{name}: {values[0]}}}`, and list the index once per value"
                )
            if len(set(values)) < len(values):
                raise ValueError(f"`search.{name}` lists a value twice; keep one")
        for name in self.build:
            if not _is_of_building(name):
                raise ValueError(
                    f"`build.{name}` is not used while an index is built; known is `efConstruction`, and "
                    "parameters of the search belong under `search`"
                )
        space: Any = faiss.ParameterSpace()  # its signatures know only one of the overloads
        # Millions of lists would take memory for a trial.
        small = re.sub(r"(IVF|IMI2x)\d+", r"\g<1>4", self.factory)
        # The width of the vectors is not known yet, and product quantizers need one that they divide.
        for width in (960, 1024):
            try:
                index = faiss.index_factory(width, small, faiss.METRIC_INNER_PRODUCT)
                for name in (*self.build, *self.search):
                    space.set_index_parameter(index, name, 1)
                break
            except RuntimeError as error:
                if "could not parse" in str(error) or "could not set" in str(error):
                    raise ValueError(
                        f"`{self.factory}` is not what FAISS knows ({faiss_reason(error)}); fix it"
                    ) from None
        return self

    @property
    def label(self) -> str:
        """What tells it from other indexes of a benchmark: `HNSW32,Flat efConstruction=200 dims=64`."""
        dims = f"dims={self.dims}" if self.dims else ""
        return " ".join(filter(None, (self.factory, self.building, dims)))

    @property
    def building(self) -> str:
        """The parameters of building, as FAISS reads them."""
        return ",".join(f"{name}={value}" for name, value in self.build.items())

    @property
    def settings(self) -> tuple[str, ...]:
        """Every combination, as FAISS reads it: `nprobe=16,k_factor_rf=4`."""
        named = [[f"{name}={value}" for value in values] for name, values in self.search.items()]
        return tuple(",".join(chosen) for chosen in itertools.product(*named))


def _is_of_building(name: str) -> bool:
    return name.removeprefix("quantizer_") == "efConstruction"


def new_index(config: IndexConfig, width: int) -> Any:
    """The empty index for vectors of so many dimensions; RuntimeError: FAISS refuses it."""
    import faiss

    index = faiss.index_factory(width, config.factory, faiss.METRIC_INNER_PRODUCT)
    # Before the first vector is added: afterwards they would change nothing.
    set_parameters(index, config.building)
    return index


def set_parameters(index: Any, setting: str) -> None:
    """Set what `IndexConfig.building` or one of its `settings` says; empty: nothing."""
    import faiss

    space: Any = faiss.ParameterSpace()
    if setting:
        space.set_index_parameters(index, setting)


def training_rows(pool_MD: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the vectors, drawn at random and in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pool_MD))[:most])
    # No copy where all are trained on: memory is measured.
    return pool_MD if len(chosen) == len(pool_MD) else pool_MD[chosen]
