"""The rows of a comparison: each metric's values, and differences with what chance makes of them.

    values of single queries -> draws of each language -> draws of mean, worst5, families -+-> interval, p
    recorded values ------------------------------------------------------> difference ----+-> Row

A mean over languages is drawn from its languages: no result holds queries of its own for it.

Shapes: M models, R draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.results.aggregates import summed_up
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results
from mmalign.results.statistics import drawn_means, holm, interval_and_p


@dataclass(frozen=True)
class Difference:
    """A model minus the first one.

    Attributes:
        ci95: of the paired bootstrap; None where no value of single queries is known.
        p: two-sided; `p_holm` after Holm's correction over all differences of the comparison.
    """

    value: float
    ci95: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """One metric: one value per model, one difference per model but the first."""

    metric: str
    count: int
    chance: float | None
    values: tuple[float, ...]
    differences: tuple[Difference, ...]


def make_rows(
    shown: Sequence[str], names: Sequence[str], found: Sequence[Results]
) -> tuple[tuple[Row, ...], dict[bool, set[str]]]:
    """The rows of the metrics in `shown`, in this order, and how the queries of their means were drawn.

    Args:
        names: all metrics that the models have in common.
        found: the results of each model; the first is the one that the others are compared with.

    Returns:
        The rows, and under True the measures and sets where queries about one thing were drawn together in
        every language, under False those where each language's queries were drawn by themselves.
    """
    # Metrics that differ in their language only are drawn at once: a mean needs the draws of its languages.
    by_language: dict[MetricName, dict[str | None, str]] = {}
    for name in names:
        parsed = MetricName.parse(name)
        by_language.setdefault(replace(parsed, language=""), {})[parsed.language] = name
    rows: dict[str, Row] = {}
    means: dict[bool, set[str]] = {True: set(), False: set()}
    for metric, members in by_language.items():
        wanted = {lang: name for lang, name in members.items() if name in set(shown)}
        if wanted:
            drawn, is_together = _draw(members, found)
            recorded = {
                lang: np.array([one.metrics[members[lang]] for one in found]) for lang in drawn
            }
            rows |= {n: _row(lang, n, recorded, drawn, found) for lang, n in wanted.items()}
            if drawn and any(MetricName.parse(name).is_aggregate for name in wanted.values()):
                means[is_together].add(metric.prefix)
    means[False] -= means[True]
    return _with_holm([rows[name] for name in shown]), means


def _draw(
    members: Mapping[str | None, str], found: Sequence[Results]
) -> tuple[dict[str, np.ndarray], bool]:
    """Language (or `all`) -> (M, R) means in the draws; whether queries about one thing went together."""
    values, ids = {}, {}
    for lang, name in members.items():
        if all(name in one.values for one in found):
            values[str(lang)] = np.stack([one.values[name] for one in found])
            of_lang = found[0].ids.get(MetricName.parse(name).group)
            if of_lang is not None:
                ids[str(lang)] = of_lang
    is_together = bool(ids) and len(ids) == len(values)
    return drawn_means(values, ids if is_together else None), is_together


def _row(
    language: str | None,
    name: str,
    recorded: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    found: Sequence[Results],
) -> Row:
    value_M = np.array([one.metrics[name] for one in found])
    recomputed_M = summed_up(str(language), recorded)
    drawn_MR = summed_up(str(language), drawn)
    # A mean over other languages than these (a task's own choice) cannot be drawn from them.
    if recomputed_M is None or not np.allclose(recomputed_M, value_M, rtol=0, atol=1e-9):
        drawn_MR = None
    differences = []
    for model in range(1, len(found)):
        # The recorded values, not the means of the draws.
        value = float(value_M[model] - value_M[0])
        tested = () if drawn_MR is None else interval_and_p(drawn_MR[model] - drawn_MR[0])
        differences.append(Difference(value, *tested))
    chance = found[0].chance.get(name)
    return Row(name, found[0].counts[name], chance, tuple(value_M.tolist()), tuple(differences))


def _with_holm(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with `p_holm`, over all differences that have a p."""
    tested = [one for row in rows for one in row.differences if one.p is not None]
    adjusted = holm([one.p for one in tested if one.p is not None])
    p_holm = {id(one): p for one, p in zip(tested, adjusted, strict=True)}  # equal ones may repeat
    return tuple(
        replace(
            row, differences=tuple(replace(d, p_holm=p_holm.get(id(d))) for d in row.differences)
        )
        for row in rows
    )
