"""`results.json`: a number with its count, its interval, its chance level and its protocol.

    {"suite", "model", "metrics": {name: value}, "counts": {name: n}, "ci95": {name: [low, high]},
     "chance": {name: value}, "protocol": {measure: fields}, "data": {set: sha256}, "environment",
     "baselines": {name: Results}}

Beside it is `queries.npz` with the value of every single query, for metrics that have one per query: two
models are compared query by query (`comparison.py`). Names are those of `metric_names.py`.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.code_version import VERSION, code_version
from mmalign.core.commit import write_json
from mmalign.core.errors import UserError, describe_os_error
from mmalign.results.metric_names import MetricName
from mmalign.results.protocol import HOW, Protocol
from mmalign.results.statistics import bootstrap_interval

QUERIES = "queries.npz"
_IDS = "/ids"  # behind the name of a group of metrics: the ids of its queries


@dataclass
class Results:
    """The outcome of one suite on one model.

    Attributes:
        model: `path`, `sha256` of the weights and whatever else identifies the model.
        counts: for each metric, how many queries or examples it was measured on.
        protocol: for each `MetricName.prefix`, how it was measured (`protocol.py`).
        data: for each set, the sha256 of its manifest, of a text task that of the tested rows.
        values: for metrics of single queries their values, (n,); of several seeds (S, n).
        ids: by `MetricName.group`, or by the metric where its rows are others, (n,) whole numbers: what each
            query is about. An image has one id in all languages, and so have the translations of a text.
    """

    suite: str
    model: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ci95: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Protocol] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, "Results"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Not fields: they are not part of the JSON, and a copy with other metrics must not keep them.
        self.values: dict[str, np.ndarray] = {}
        self.ids: dict[str, np.ndarray] = {}

    def add(
        self,
        metric: MetricName | str,
        hits: np.ndarray | float,
        count: int | None = None,
        chance: float | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        """Record a metric.

        Args:
            hits: one value (0/1) per query, from which mean, count and interval follow, or the value.
            count: needed where `hits` is the value itself.
            ids: (n,) whole numbers, what each query is about.
        """
        name = str(metric)
        if isinstance(hits, np.ndarray):
            self.metrics[name], self.counts[name] = float(hits.mean()), len(hits)
            # A single query, or several about one thing, cannot tell how much others would differ.
            if (units := len(hits if ids is None else np.unique(ids))) > 1:
                repeat = ids if units < len(hits) else None
                self.ci95[name] = bootstrap_interval(hits, repeat)
            # Most are hits and misses: a byte each is enough.
            is_binary = np.isin(hits, (0, 1)).all()
            self.values[name] = hits.astype(np.uint8 if is_binary else np.float32)
        else:
            assert count is not None, name
            self.metrics[name], self.counts[name] = float(hits), count
        if ids is not None:
            is_short = np.abs(ids).max(initial=0) < 2**31  # numbers of images, not hashes
            ids = ids.astype(np.int32 if is_short else np.int64)
            of_group = self.ids.setdefault(MetricName.parse(name).group, ids)
            if not np.array_equal(of_group, ids):
                self.ids[name] = ids
        if chance is not None:
            self.chance[name] = chance

    def ids_of(self, metric: str) -> np.ndarray | None:
        """What each query of a metric is about, (n,); None where that was not recorded."""
        return self.ids.get(metric, self.ids.get(MetricName.parse(metric).group))

    def merge(self, other: "Results") -> None:
        """Take over the measurements of another suite on the same model."""
        for name in ("metrics", "counts", "ci95", "chance", "protocol", "data", "values", "ids"):
            getattr(self, name).update(getattr(other, name))
        for name, baseline in other.baselines.items():
            if self.baselines.setdefault(name, baseline) is not baseline:
                self.baselines[name].merge(baseline)

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all, and the values of its queries beside it."""
        missing = self.metrics.keys() - self.counts.keys()
        assert not missing, f"metrics without a count: {missing}"
        queries, temporary = path.with_name(QUERIES), path.with_name(f".{QUERIES}.tmp")
        written = path.with_name(f".{path.name}.new")
        arrays: dict[str, Any] = {f"{group}{_IDS}": ids for group, ids in self.ids.items()}
        arrays |= self.values
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Before anything is replaced: on a full disk what was there stays.
                with temporary.open("wb") as file:  # given a path, numpy would add a suffix to it
                    np.savez_compressed(file, **arrays)
                write_json(written, without_nan(asdict(self)))
                # The values of other results must never be found beside these.
                queries.unlink(missing_ok=True)
                written.replace(path)
                if arrays:
                    temporary.replace(queries)
            finally:
                temporary.unlink(missing_ok=True)
                written.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses in the block is a UserError that names the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise UserError(describe_os_error(error)) from None


def without_nan(tree: Any) -> Any:
    """The tree with null in place of NaN and infinity, which JSON does not know."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_results(path: Path) -> Results:
    """The results in a file, with the values of their queries if these are beside it.

    Raises:
        UserError: no such file, not results, or values that belong to other results.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `mmalign eval` and `mmalign finetune` write it")
    try:
        results = _from_tree(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: not a results file of mmalign") from None
    path = path.with_name(QUERIES)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = dict(arrays)
    except FileNotFoundError:
        return results
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: damaged; measure again, or remove it") from None
    for name, array in held.items():
        if name.endswith(_IDS):
            results.ids[name.removesuffix(_IDS)] = array
        elif results.counts.get(name) != array.shape[-1] or not np.isclose(
            array.mean(dtype=np.float64), results.metrics[name], atol=1e-6, equal_nan=True
        ):
            raise UserError(
                f"{path}: not of the results beside it (`{name}`); measure again, or remove it"
            )
        else:
            results.values[name] = array
    return results


def _from_tree(tree: dict[str, Any]) -> Results:
    baselines = {name: _from_tree(inner) for name, inner in tree.pop("baselines", {}).items()}
    ci95 = {
        name: (_number(low), _number(high)) for name, (low, high) in tree.pop("ci95", {}).items()
    }
    tree["protocol"] = {
        name: {HOW: one} if isinstance(one, str) else dict(one)
        for name, one in tree.get("protocol", {}).items()
    }
    for part in ("metrics", "chance"):
        tree[part] = {name: _number(value) for name, value in tree.get(part, {}).items()}
    return Results(**tree, ci95=ci95, baselines=baselines)


def _number(value: float | None) -> float:
    return math.nan if value is None else value + 0.0  # a TypeError where it is no number


def ids_of_names(names: Iterable[str]) -> np.ndarray:
    """(n,) int64, one number per name, the same in every process."""
    # Eight bytes: of 4 million names two are equal by chance once in two million times.
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in names)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("torch", "transformers", "timm", "open_clip_torch", "deepspeed")
    versions = {}
    # FAISS's packages for GPUs take the place of the first.
    for name in (*packages, "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "mmalign": VERSION,  # of the code that runs, installed or not
        "commit": code_version()["commit"],
        **versions,
    }
