"""The rows of a comparison: each metric's values, and differences with what chance makes of them.

    values of single queries -> draws of each language -> draws of mean, worst5, families -+-> interval, p
    recorded values ------------------------------------------------------> difference ----+-> Row

A mean over languages is drawn from its languages: no result holds queries of its own for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.results.language_families import family_of
from mmalign.results.metric_names import FAMILY, MEAN, WORST5, is_aggregate
from mmalign.results.results import Results, group_of
from mmalign.results.statistics import drawn_means, holm, interval_and_p

_WORST = 5


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
    """One metric: a value for each model, a difference for each but the first."""

    metric: str
    count: int
    chance: float | None
    values: tuple[float, ...]
    differences: tuple[Difference, ...]


def parts_of(name: str) -> tuple[str, str, str]:
    """`<measure>/<subject>`, the language or what stands in its place, and the rest of the name."""
    measure, subject, *rest = name.split("/")
    part, *suffix = rest or [""]
    return f"{measure}/{subject}", part, "/".join(suffix)


@dataclass(frozen=True)
class Rows:
    """Rows, and how the queries of their means over languages were drawn.

    Attributes:
        together: measures and sets where queries about one thing were drawn together in every language.
        apart: those where each language's were drawn by themselves.
    """

    rows: tuple[Row, ...]
    together: tuple[str, ...]
    apart: tuple[str, ...]


def make_rows(shown: Sequence[str], names: Sequence[str], found: Sequence[Results]) -> Rows:
    """The rows of the metrics in `shown`, in this order.

    Metrics that differ in their language only are drawn at once, so that a mean sees the draws of its
    languages.

    Args:
        names: all metrics that the models have in common.
        found: the results of each model; the first is the one that the others are compared with.
    """
    by_language: dict[tuple[str, str], list[str]] = {}
    for name in names:
        subject, _, suffix = parts_of(name)
        by_language.setdefault((subject, suffix), []).append(name)
    rows: dict[str, Row] = {}
    means: dict[bool, set[str]] = {True: set(), False: set()}
    for (subject, _), members in by_language.items():
        wanted = set(members) & set(shown)
        if wanted:
            drawn, is_together = _draw(members, found)
            rows |= {name: _row(name, members, drawn, found) for name in wanted}
            if any(is_aggregate(parts_of(name)[1]) for name in wanted) and drawn:
                means[is_together].add(subject)
    ordered = _with_holm([rows[name] for name in shown])
    return Rows(ordered, tuple(sorted(means[True])), tuple(sorted(means[False] - means[True])))


def _draw(members: Sequence[str], found: Sequence[Results]) -> tuple[dict[str, np.ndarray], bool]:
    """Language (or `all`) -> (M, R) means in the draws; whether queries about one thing went together."""
    names = {
        parts_of(name)[1]: name for name in members if all(name in one.values for one in found)
    }
    values = {part: np.stack([one.values[name] for one in found]) for part, name in names.items()}
    groups = {part: group_of(name) for part, name in names.items()}
    known = found[0].ids
    if values and all(group in known for group in groups.values()):
        ids = {part: known[group] for part, group in groups.items()}
        return drawn_means(values, ids), True
    return drawn_means(values), False


def _row(
    name: str, members: Sequence[str], drawn: Mapping[str, np.ndarray], found: Sequence[Results]
) -> Row:
    part = parts_of(name)[1]
    value_M = np.array([one.metrics[name] for one in found])
    recorded = {
        parts_of(member)[1]: np.array([one.metrics[member] for one in found])
        for member in members
        if parts_of(member)[1] in drawn
    }
    recomputed_M, drawn_MR = _summed_up(part, recorded), _summed_up(part, drawn)
    # A mean over other languages than these (a task's own choice) cannot be drawn from them.
    if recomputed_M is None or not np.allclose(recomputed_M, value_M, rtol=0, atol=1e-9):
        drawn_MR = None
    return Row(
        name,
        found[0].counts[name],
        found[0].chance.get(name),
        tuple(value_M.tolist()),
        tuple(_difference(value_M, drawn_MR, place) for place in range(1, len(found))),
    )


def _difference(value_M: np.ndarray, drawn_MR: np.ndarray | None, place: int) -> Difference:
    """The model in this place minus the first one."""
    value = float(value_M[place] - value_M[0])
    if drawn_MR is None:
        return Difference(value)
    return Difference(value, *interval_and_p(drawn_MR[place] - drawn_MR[0]))


def _summed_up(part: str, of_parts: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What stands in a name's third place, computed from the languages; None where it cannot be.

    Args:
        of_parts: language (or `all`) -> array; all of one shape, which the answer has too.
    """
    if part in of_parts:
        return of_parts[part]
    languages = {lang: array for lang, array in of_parts.items() if not is_aggregate(lang)}
    if part.startswith(FAMILY):
        family = part.removeprefix(FAMILY)
        languages = {lang: a for lang, a in languages.items() if family_of(lang) == family}
    if not languages or not (part in (MEAN, WORST5) or part.startswith(FAMILY)):
        return None
    stacked = np.stack(list(languages.values()))
    return _known_mean(np.sort(stacked, axis=0)[:_WORST] if part == WORST5 else stacked)


def _known_mean(stacked: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is known: a draw may miss a language of few queries."""
    is_known = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(is_known, stacked, 0).sum(axis=0) / is_known.sum(axis=0)
    return mean


def _with_holm(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with `p_holm`, over all differences that have a p."""
    p = [one.p for row in rows for one in row.differences if one.p is not None]
    adjusted = iter(holm(p))
    return tuple(
        replace(
            row,
            differences=tuple(
                one if one.p is None else replace(one, p_holm=next(adjusted))
                for one in row.differences
            ),
        )
        for row in rows
    )
