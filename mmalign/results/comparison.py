"""Models side by side: what each reached, and whether the difference is more than the chance of the queries.

    results.json + queries.npz of each model -> same data, protocol, counts? -> rows -> Comparison
        values of single queries -> draws of each language -> of mean, worst5, families -+-> interval, p
        recorded values ------------------------------------------------> difference ----+-> Row
    Comparison -> table of the terminal; .md, .csv or .json

Numbers that were measured in two ways are refused. All other models are compared with the first.

Shapes: M models, R draws.
"""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mmalign.core.commit import check_writable, write_atomic, write_json
from mmalign.core.console import say
from mmalign.core.errors import UserError, printable
from mmalign.results.aggregates import count_items, mean_over, summed_up
from mmalign.results.metric_names import FAMILY, OF_CORRECT_ROWS, PROBE, MetricName
from mmalign.results.protocol import difference as protocol_difference
from mmalign.results.results import QUERIES, Results, read_results, without_nan, writing
from mmalign.results.statistics import (
    DRAWS,
    LEVEL,
    UNTESTED,
    Part,
    Significance,
    drawn_means,
    holm,
    interval_and_p,
    seed_part,
    t_test,
)

_FILE = "results.json"
SUFFIXES = (".json", ".csv", ".md")


@dataclass(frozen=True)
class Difference:
    """A model minus the first one.

    Attributes:
        ci95: of the paired bootstrap over queries, with several seeds of both; None where no value of single
            queries is known, or nothing varies.
        p: two-sided; `p_holm` after Holm's correction over all differences of the comparison.
        note: `UNTESTED` where queries are known, but nothing varies.
    """

    value: float
    ci95: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One metric: one value per model, one difference per model but the first."""

    metric: str
    count: int
    chance: float | None
    values: tuple[float, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """A table of models, aggregates over languages first; `words` say what intervals and p mean here."""

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
    names = [
        name
        for name in found[0].metrics
        if all(name in one.metrics for one in found)
        and MetricName.parse(name).metric not in OF_CORRECT_ROWS
    ]
    if not names:
        raise UserError(
            f"{files[0]} and the others have no metric in common; use one suite for all"
        )
    for other, file in zip(found[1:], files[1:], strict=True):
        for name in names:
            _check_alike(name, found[0], other, f"{file}: `{name}`", files[0])
    rows, means = _make_rows(_shown(names, languages), names, found)
    folders = [file.resolve().parent for file in files]
    runs = [(f.parents[1] if f.parent.name in ("eval", "finetune") else f).name for f in folders]
    # The paths as they were given where two folders have one name.
    models = tuple(runs if len(set(runs)) == len(runs) else map(str, paths))
    sha256 = tuple(str(one.model.get("sha256")) for one in found)
    return Comparison(models, sha256, rows, tuple(_words(models[0], rows, means, found)))


def find_results(path: Path, suite: str | None) -> Path:
    """The results file that a path means: itself, in its folder, or of a suite of the run.

    Raises:
        UserError: none there, or several suites and none was chosen.
    """
    if path.is_file():
        return path
    # In a run folder `results.json` is the report's, which has no values of single queries; the folder of a
    # fine-tuning has a configuration too, and such values.
    is_measured = (path / QUERIES).is_file() or not (path / "config.yaml").is_file()
    if is_measured and (path / _FILE).is_file():
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
    """The metrics of the table, aggregates first; unless `languages` only what is of no single language."""
    ordered = sorted(map(MetricName.parse, names), key=lambda one: not one.is_aggregate)  # stable
    of_all = [
        one
        for one in ordered
        if (one.is_aggregate and not str(one.language).startswith(FAMILY)) or one.measure == PROBE
    ]
    return list(map(str, of_all if of_all and not languages else ordered))


def _check_alike(name: str, first: Results, other: Results, what: str, file: Path) -> None:
    """Stop where a metric was not measured in one and the same way."""
    parsed = MetricName.parse(name)
    data, others_data = (str(one.data.get(parsed.data, "not recorded")) for one in (first, other))
    difference = None
    if data != others_data:
        short = [sha256 if " " in sha256 else sha256[:12] for sha256 in (others_data, data)]
        difference = (
            f"on other data than in {file} (`{parsed.data}`, manifest {short[0]}, not {short[1]})"
        )
    elif field := protocol_difference(
        other.protocol.get(parsed.prefix), first.protocol.get(parsed.prefix)
    ):
        difference = f"by another protocol than in {file} ({field})"
    elif first.counts[name] != other.counts[name]:
        difference = f"on {other.counts[name]} queries, in {file} on {first.counts[name]}"
    if difference:
        raise UserError(
            f"{what} was measured {difference}; measure both with one version and suite"
        )


def _make_rows(
    shown: Sequence[str], names: Sequence[str], found: Sequence[Results]
) -> tuple[tuple[Row, ...], dict[bool, set[str]]]:
    """The rows of the metrics in `shown`, and how the queries of their means were drawn.

    That is under True the measures and sets where queries about one thing were drawn together in every
    language, under False those where each language's queries were drawn by themselves.
    """
    # Metrics that differ in their language only are drawn at once: a mean needs the draws of its languages.
    by_language: dict[MetricName, dict[str, str]] = {}
    for name in names:
        parsed = MetricName.parse(name)
        by_language.setdefault(replace(parsed, language=""), {})[str(parsed.language)] = name
    rows: dict[str, Row] = {}
    means: dict[bool, set[str]] = {True: set(), False: set()}
    for metric, members in by_language.items():
        wanted = {lang: name for lang, name in members.items() if name in set(shown)}
        if wanted:
            drawn, is_together = _draw(members, found)
            rows |= {
                n: _row(lang, n, {part: members[part] for part in drawn}, drawn, found)
                for lang, n in wanted.items()
            }
            if drawn and any(MetricName.parse(name).is_aggregate for name in wanted.values()):
                means[is_together].add(metric.prefix)
    means[False] -= means[True]
    adjusted = iter(holm([d.p for n in shown for d in rows[n].differences if d.p is not None]))
    for name in shown:
        differences = rows[name].differences
        corrected = (d if d.p is None else replace(d, p_holm=next(adjusted)) for d in differences)
        rows[name] = replace(rows[name], differences=tuple(corrected))
    return tuple(rows[name] for name in shown), means


def _draw(
    members: Mapping[str, str], found: Sequence[Results]
) -> tuple[dict[str, np.ndarray], bool]:
    """Language (or `all`) -> (M, R) means in the draws; whether queries about one thing went together."""
    values, ids = {}, {}
    for lang, name in members.items():
        if all(name in one.values for one in found):
            # Of several seeds their mean; what the seeds add is not drawn, see `_tested`.
            of_models = [np.atleast_2d(one.values[name]).mean(0) for one in found]
            of_rows = [of_model for one in found if (of_model := one.ids_of(name)) is not None]
            if len(of_rows) == len(found):
                orders = [np.argsort(one, kind="stable") for one in of_rows]
                ids[lang] = of_rows[0][orders[0]]
                for one, order in zip(of_rows, orders, strict=True):
                    if not np.array_equal(one[order], ids[lang]):
                        raise UserError(
                            f"`{name}` was measured on other rows; measure all on one set"
                        )
                of_models = [one[order] for one, order in zip(of_models, orders, strict=True)]
            values[lang] = np.stack(of_models)
    is_together = bool(ids) and len(ids) == len(values)
    return drawn_means(values, ids if is_together else None), is_together


def _row(
    language: str,
    name: str,
    names: Mapping[str, str],
    drawn: Mapping[str, np.ndarray],
    found: Sequence[Results],
) -> Row:
    value_M = np.array([one.metrics[name] for one in found])
    if wanted := mean_over(found[0], MetricName.parse(name)):
        names = {lang: names[lang] for lang in wanted if lang in names}
        drawn = {lang: drawn[lang] for lang in names}
    # A mean is drawn from its languages: no result holds queries of its own for it.
    recomputed_M = summed_up(
        language, {lang: np.array([one.metrics[n] for one in found]) for lang, n in names.items()}
    )
    drawn_MR = summed_up(language, drawn)
    # A mean over other languages than these (a task's own choice) cannot be drawn from them.
    if recomputed_M is None or not np.allclose(recomputed_M, value_M, rtol=0, atol=1e-9):
        drawn_MR = None  # nor can one that is not a number
    differences = []
    for model in range(1, len(found)):
        # The recorded values, not the means of the draws.
        value = float(value_M[model] - value_M[0])
        if drawn_MR is None:
            differences.append(Difference(value))
            continue
        seeds = [_seeds(language, names, found[one]) for one in (0, model)]
        items = count_items(found[0], name) or found[0].counts[name]
        tested = _tested(value, drawn_MR[model] - drawn_MR[0], seeds, items)
        differences.append(
            Difference(value, *tested) if tested else Difference(value, note=UNTESTED)
        )
    chance = found[0].chance.get(name)
    return Row(name, found[0].counts[name], chance, tuple(value_M.tolist()), tuple(differences))


def _seeds(language: str, names: Mapping[str, str], results: Results) -> np.ndarray:
    """(S,) the metric with each seed of a model, recomputed from the values of single queries."""
    of_parts = {lang: np.atleast_2d(results.values[n]).mean(1) for lang, n in names.items()}
    mean_S = summed_up(language, of_parts)
    assert mean_S is not None
    return mean_S


def _tested(
    value: float, difference_R: np.ndarray, seeds: Sequence[np.ndarray], items: int
) -> Significance | None:
    """By the draws of queries alone; with several seeds by the variances of queries and of seeds."""
    repeated = [seed_part(one_S) for one_S in seeds if len(one_S) > 1]
    if not repeated:
        return interval_and_p(difference_R)
    drawn = Part(float(np.nanvar(difference_R)), items - 1)
    return t_test(value, [*repeated, drawn] if items > 1 else repeated)


def _words(
    first: str, rows: Sequence[Row], means: Mapping[bool, set[str]], found: Sequence[Results]
) -> list[str]:
    """What the intervals and p mean, how queries were drawn, and what could not be computed or checked."""
    differences = [one for row in rows for one in row.differences]
    tested = sum(one.p is not None for one in differences)
    unknown = sorted({MetricName.parse(row.metric).data for row in rows} - found[0].data.keys())
    seeds = {len(one.model.get("seeds") or [None]) for one in found}
    together, apart = (", ".join(sorted(means[one])) for one in (True, False))
    if_said = {
        f"Differences are to {first}.": not tested,
        f"Differences are to {first}, with 95 % intervals of {DRAWS:,} paired bootstrap draws (seed 0) "
        f"and two-sided p after Holm's correction over the {tested} differences that have one.": tested,
        "They cover the choice of queries, not what another training seed would give.": tested
        and seeds == {1},
        "Of models with several seeds they cover the choice of queries and of seeds: the variances of both "
        "are added (quantiles of Student's t, weighted as by Cochran and Cox).": tested
        and seeds != {1},
        # p is 2 / (draws + 1) where all draws lie on one side of 0, and no smaller.
        f"With {tested} differences, {DRAWS:,} draws cannot show any of them at 5 %: look at fewer.": (
            2 / (DRAWS + 1) * tested > LEVEL
        ),
        f"In {together} all queries about one image were drawn together, in every language.": together,
        f"In {apart} the queries of each language were drawn by themselves, though they may be about the "
        "same images: intervals of means over languages may be too narrow.": apart,
        "Differences without an interval: no value of single queries was kept, or the number sums up "
        "other languages than those here.": any(not (one.ci95 or one.note) for one in differences),
        f"`{UNTESTED}`: every query differs by the same, so nothing says how others would differ.": any(
            one.note for one in differences
        ),
        f"No checksum of the data was recorded for {', '.join(unknown)}: that they are the same follows "
        "from protocol and counts alone.": unknown,
    }
    return [sentence for sentence, is_said in if_said.items() if is_said]


def show(comparison: Comparison) -> None:
    """Print the table and the sentences about it; as Markdown where there is no terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(printable(markdown(comparison), keep="\n")))
    else:
        say(markdown(comparison))


def check_target(path: Path) -> None:
    """Stop before any work if `write_comparison` could not write this file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: give --out a file that ends in {', '.join(SUFFIXES)}")
    check_writable(path)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON, CSV or Markdown, by the file's suffix."""
    check_target(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_json(path, without_nan(asdict(comparison)))
        else:
            as_text = csv_text if path.suffix == ".csv" else markdown
            write_atomic(path, as_text(comparison))


def markdown(comparison: Comparison) -> str:
    """A Markdown table, and the sentences below it."""
    first, *others = comparison.models
    titles = ["metric", "n", "chance", first, *(t for o in others for t in (o, f"{o} - {first}"))]
    rule = ["---", *["---:"] * (len(titles) - 1)]
    # A bar within a cell would end it.
    lines = [
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        for cells in (titles, rule, *map(_cells, comparison.rows))
    ]
    return "\n".join([*lines, "", *comparison.words, ""])


def csv_text(comparison: Comparison) -> str:
    """One line per metric, numbers in full; what is not known is empty."""
    first, *others = comparison.models
    suffixes = ("", ", low", ", high", ", p", ", p (Holm)")
    of_others = [f"{other} - {first}{suffix}" for other in others for suffix in suffixes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "count", "chance", *comparison.models, *of_others])
    for row in comparison.rows:
        parts = ((d.value, *(d.ci95 or (None, None)), d.p, d.p_holm) for d in row.differences)
        numbers = [number for part in parts for number in part]
        writer.writerow([row.metric, row.count, row.chance, *row.values, *numbers])
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    chance = "" if row.chance is None else f"{row.chance:.4f}"
    cells = [row.metric, f"{row.count:,}", chance, f"{row.values[0]:.4f}"]
    for value, one in zip(row.values[1:], row.differences, strict=True):
        words = f"{one.value:+.4f}"
        if one.ci95 is not None and one.p_holm is not None:
            low, high = one.ci95
            # More digits would depend on the draws.
            p = "p < 0.001" if one.p_holm < 0.001 else f"p = {one.p_holm:.3f}"
            words += f" ({low:+.4f} to {high:+.4f}), {p}"
        elif one.note:
            words += f", {one.note}"
        cells += [f"{value:.4f}", words]
    return cells
