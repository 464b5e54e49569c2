"""`results.json`: a number with its count, its interval, its chance level and its protocol.

    {"suite", "model", "metrics": {name: value}, "counts": {name: n}, "ci95": {name: [low, high]},
     "chance": {name: value}, "protocol": {measure: words}, "data": {set: sha256}, "environment",
     "baselines": {name: Results}}

Beside it stands `queries.npz` with the value of every single query where there are such: two models are
compared query by query (`comparison/`). Metrics that differ in their last part only have the same queries.

Metric names are flat: `retrieval/<set>/<lang>/text_to_image/recall@1`,
`alignment/<set>/<lang>-<lang>/bitext@1`, `text/<task>/<lang>/<perturbation or clean>/accuracy`; `mean` in
the place of a language is the mean over the languages. Every metric has a count.
"""

import importlib.metadata
import json
import platform
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.code_version import VERSION
from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.results.statistics import bootstrap_interval, seed_interval

QUERIES = "queries.npz"
_IDS = "/ids"  # behind what a group of metrics has in common: the ids of its queries


@dataclass
class Results:
    """The outcome of one suite on one model.

    Attributes:
        model: `path`, `sha256` of the weights and whatever else tells which model it was.
        counts: for each metric, how many queries or examples it was measured on.
        data: for each set, the sha256 of its manifest.
        values: for metrics of single queries their values, uint8 if all are 0 or 1, else float32.
        ids: for metrics without their last part, int32, what each query is about: a picture in several
            languages has one id.
    """

    suite: str
    model: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ci95: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, "Results"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # No fields: they are no part of the JSON, and a copy with other metrics must not keep them.
        self.values: dict[str, np.ndarray] = {}
        self.ids: dict[str, np.ndarray] = {}

    def add(
        self,
        name: str,
        hits: np.ndarray | float,
        count: int | None = None,
        chance: float | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        """Record a metric.

        Args:
            hits: one value (0/1) a query, from which mean, count and interval follow, or the value.
            count: needed where `hits` is the value itself.
            ids: (n,) whole numbers below 2^31, what each query is about; equal ids are one thing (a
                picture), in every language of the set.
        """
        if isinstance(hits, np.ndarray):
            self.metrics[name], self.counts[name] = float(hits.mean()), len(hits)
            self.ci95[name] = bootstrap_interval(hits)
            self.values[name] = _small(hits)
            if ids is not None:
                self.ids[group_of(name)] = ids.astype(np.int32)
        else:
            assert count is not None, name
            self.metrics[name], self.counts[name] = float(hits), count
        if chance is not None:
            self.chance[name] = chance

    def merge(self, other: "Results") -> None:
        """Take over the measurements of another suite on the same model."""
        for name in ("metrics", "counts", "ci95", "chance", "protocol", "data", "values", "ids"):
            getattr(self, name).update(getattr(other, name))
        for name, baseline in other.baselines.items():
            if name in self.baselines:
                self.baselines[name].merge(baseline)
            else:
                self.baselines[name] = baseline

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all, and the values of its queries beside it."""
        missing = [name for name in self.metrics if name not in self.counts]
        assert not missing, f"metrics without a count: {missing}"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The values of other results must not stand beside these, not even for a moment.
        queries = path.with_name(QUERIES)
        queries.unlink(missing_ok=True)
        write_json(path, asdict(self))
        if self.values:
            arrays: dict[str, Any] = {f"{group}{_IDS}": ids for group, ids in self.ids.items()}
            arrays.update(self.values)
            temporary = path.with_name(f".{QUERIES}.tmp")
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)
            temporary.replace(queries)


def group_of(name: str) -> str:
    """What the metrics of the same queries have in common: the name without its last part."""
    return name.rpartition("/")[0]


def read_results(path: Path) -> Results:
    """The results in a file, with the values of their queries if these stand beside it.

    Raises:
        UserError: no such file, not results, or values that belong to other results.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `mmalign eval` and `mmalign finetune` write it")
    try:
        results = _from_tree(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: not a results file of mmalign") from None
    queries = path.with_name(QUERIES)
    if queries.is_file():
        _read_queries(queries, results)
    return results


def _read_queries(path: Path, results: Results) -> None:
    """Add values and ids to results."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: damaged; measure again, or remove it") from None
    for name, array in held.items():
        if name.endswith(_IDS):
            results.ids[name.removesuffix(_IDS)] = array
        elif results.counts.get(name) != len(array) or not np.isclose(
            array.mean(dtype=np.float64), results.metrics[name], atol=1e-6, equal_nan=True
        ):
            raise UserError(
                f"{path}: not of the results beside it (`{name}` differs); measure again, or remove it"
            )
        else:
            results.values[name] = array


def _small(values: np.ndarray) -> np.ndarray:
    """The values in as few bytes as they need here."""
    return values.astype(np.uint8 if np.isin(values, (0, 1)).all() else np.float32)


def _from_tree(tree: dict[str, Any]) -> Results:
    baselines = {name: _from_tree(inner) for name, inner in tree.pop("baselines", {}).items()}
    ci95 = {name: (low, high) for name, (low, high) in tree.pop("ci95", {}).items()}
    return Results(**tree, ci95=ci95, baselines=baselines)


def mean_over_seeds(runs: Sequence[Results]) -> Results:
    """The mean of each metric over runs that differ in nothing but their seed.

    With two runs or more the interval is Student's t over the seeds (95 %); it says how much the seed
    matters, and nothing about other texts. A single run stays as it is.
    """
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    values = {name: [run.metrics[name] for run in runs] for name in first.metrics}
    protocol = {
        name: f"Mean of {len(runs)} seeds; the interval covers these seeds only. {words}"
        for name, words in first.protocol.items()
    }
    seeds = [run.model.get("seed") for run in runs]
    return replace(
        first,
        model={**first.model, "seeds": seeds},
        metrics={name: float(np.mean(drawn)) for name, drawn in values.items()},
        ci95={name: seed_interval(drawn) for name, drawn in values.items()},
        protocol=protocol,
        baselines={},
    )


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("torch", "transformers", "timm", "open_clip_torch", "deepspeed", "faiss-cpu")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "mmalign": VERSION,  # of the code that runs, installed or not
        **{name: importlib.metadata.version(name) for name in packages},
    }
