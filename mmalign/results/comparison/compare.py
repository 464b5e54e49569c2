"""Models side by side: what each reached, and whether the difference is more than the chance of the queries.

    results.json + queries.npz of each model -> same data, protocol, counts? -> Comparison: one row per metric

Numbers that were measured in two ways are refused. The first model is the one that the others are compared
with (`differences.py` says how).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.results.comparison.differences import Row, make_rows
from mmalign.results.metric_names import FAMILY, MetricName
from mmalign.results.results import Results, read_results
from mmalign.results.statistics import DRAWS

_FILE = "results.json"
_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A table of models.

    Attributes:
        models: names, from their folders.
        sha256: of their weights.
        rows: aggregates over languages first.
        words: what intervals and p mean here, one sentence each.
    """

    models: tuple[str, ...]
    sha256: tuple[str, ...]
    rows: tuple[Row, ...]
    words: tuple[str, ...]


def compare(paths: Sequence[Path], suite: str | None = None, languages: bool = False) -> Comparison:
    """Compare all models with the first one, on every metric that all of them have.

    Args:
        paths: for each model a `results.json`, the folder that holds it, or a run folder.
        suite: of run folders, which suite's results; needed where there are several.
        languages: show families, single languages, pairs and layers as well, not only what sums up all.

    Raises:
        UserError: fewer than two models, no results, no metric in common, or one that was measured on
            other data, by another protocol or on another number of queries.
    """
    if len(paths) < 2:
        raise UserError("give two models or more to compare")
    files = [find_results(path, suite) for path in paths]
    found = [read_results(file) for file in files]
    names = [name for name in found[0].metrics if all(name in one.metrics for one in found)]
    if not names:
        raise UserError(
            f"{files[0]} and the others have no metric in common; use one suite for all"
        )
    for other, file in zip(found[1:], files[1:], strict=True):
        for name in names:
            _check_alike(name, found[0], other, f"{file}: `{name}`", files[0])
    rows, means = make_rows(_shown(names, languages), names, found)
    folders = [file.resolve().parent for file in files]
    runs = [(f.parents[1] if f.parent.name in ("eval", "finetune") else f).name for f in folders]
    # The paths as they were given where two folders have one name.
    models = tuple(runs if len(set(runs)) == len(runs) else map(str, paths))
    sha256 = tuple(str(one.model.get("sha256")) for one in found)
    return Comparison(models, sha256, rows, tuple(_words(models[0], rows, means, found[0])))


def find_results(path: Path, suite: str | None) -> Path:
    """The results file that a path means: itself, in its folder, or of a suite of the run.

    Raises:
        UserError: none there, or several suites and none was chosen.
    """
    if path.is_file():
        return path
    # In a run folder `results.json` is the report's, which has no values of single queries.
    if not (path / "config.yaml").is_file() and (path / _FILE).is_file():
        return path / _FILE
    measured = {file.parent.name: file for file in sorted(path.glob(f"eval/*/{_FILE}"))}
    if not measured:
        raise UserError(f"{path}: no results; measure it with `mmalign eval SUITE --model {path}`")
    if suite is None and len(measured) == 1:
        return next(iter(measured.values()))
    if suite not in measured:
        wanted = "has several suites" if suite is None else f"has no suite `{suite}`"
        raise UserError(f"{path}: {wanted}; give --suite with one of {', '.join(measured)}")
    return measured[suite]


def _shown(names: Sequence[str], languages: bool) -> list[str]:
    """The metrics of the table, aggregates first; unless `languages` only what sums up all languages."""
    ordered = sorted(map(MetricName.parse, names), key=lambda one: not one.is_aggregate)  # stable
    of_all = [
        one for one in ordered if one.is_aggregate and not str(one.language).startswith(FAMILY)
    ]
    return list(map(str, of_all if of_all and not languages else ordered))


def _check_alike(name: str, first: Results, other: Results, what: str, file: Path) -> None:
    """Stop where a metric was not measured in one and the same way."""
    parsed = MetricName.parse(name)
    data, others_data = (str(one.data.get(parsed.data, "not recorded")) for one in (first, other))
    if data != others_data:
        short = [sha256 if " " in sha256 else sha256[:12] for sha256 in (others_data, data)]
        raise UserError(
            f"{what} was measured on other data than in {file} (set `{parsed.data}`, manifest "
            f"{short[0]}, not {short[1]}); measure both on one"
        )
    if first.protocol.get(parsed.prefix) != other.protocol.get(parsed.prefix):
        raise UserError(
            f"{what} was measured by another protocol than in {file} (see `protocol` in both files); "
            "measure both with one version and one suite"
        )
    if first.counts[name] != other.counts[name]:
        raise UserError(
            f"{what} was measured on {other.counts[name]} queries, in {file} on {first.counts[name]}; "
            "measure both on the same"
        )


def _words(
    first: str, rows: Sequence[Row], means: Mapping[bool, set[str]], results: Results
) -> list[str]:
    """What the intervals and p mean, how queries were drawn, and what could not be computed or checked."""
    differences = [one for row in rows for one in row.differences]
    tested = sum(one.p is not None for one in differences)
    words = [f"Differences are to {first}."]
    if tested:
        words = [
            f"Differences are to {first}, with 95 % intervals of {DRAWS:,} paired bootstrap draws (seed 0) "
            f"and two-sided p after Holm's correction over the {tested} differences that have one.",
            "They cover the choice of queries, not what another training seed would give.",
        ]
    # p is 2 / (draws + 1) where all draws lie on one side of 0, and no smaller.
    if 2 / (DRAWS + 1) * tested > _LEVEL:
        words.append(
            f"With {tested} differences, {DRAWS:,} draws cannot show any of them at 5 %: look at fewer."
        )
    if means[True]:
        words.append(
            f"In {', '.join(sorted(means[True]))} all queries about one image were drawn together, in "
            "every language."
        )
    if means[False]:
        words.append(
            f"In {', '.join(sorted(means[False]))} the queries of each language were drawn by themselves, "
            "though they may be about the same images: intervals of means over languages may be too narrow."
        )
    if any(one.ci95 is None for one in differences):
        words.append(
            "Differences without an interval: no value of single queries was kept, or the number sums up "
            "other languages than those here."
        )
    sets = {MetricName.parse(row.metric).data for row in rows}
    if unknown := sorted(sets - results.data.keys()):
        words.append(
            f"No checksum of the data was recorded for {', '.join(unknown)}: that they are the same follows "
            "from protocol and counts alone."
        )
    return words
