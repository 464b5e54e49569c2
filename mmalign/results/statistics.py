"""Intervals and tests: one bootstrap for the whole package, one test over seeds and items, Holm's correction.

Every interval over items comes from `resampled_sums`. Two models are compared on the same draws, so that
what makes a query hard for both cancels out. Intervals are percentiles of the draws (Efron 1979). Over few
seeds a bootstrap is too narrow; `t_interval` adds the variances of seeds and items instead.

A test without variance is no test: functions return None, and `verdict` says that no difference can be told.

Shapes: U units, K columns, M models or metrics, n queries of a language, N of all L languages, R draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Table = Union[np.ndarray, "csr_array"]
LEVEL = 0.05  # of a test, after Holm's correction
DRAWS = 10_000
INTERVAL_DRAWS = 1_000  # for an interval alone; a p value needs more
UNTESTED = "no difference can be told"
_AT_A_TIME = 4_000_000  # whole numbers drawn at a time: 32 MB
_DENSE = 16_000_000  # cells of a table of units that is dense, 128 MB; a larger one stays sparse
_FEW = 1_000  # distinct rows that are drawn by a multinomial
_ROUNDING = 1e-12  # sums in another order make differences of 1e-17 where there are none


class Significance(NamedTuple):
    """A 95 % interval of a difference, and its two-sided p."""

    ci95: tuple[float, float]
    p: float


class Part(NamedTuple):
    """What seeds or items add to the variance of a mean, and the degrees of freedom of that estimate."""

    variance: float
    df: int


def drawn_means(
    values: Mapping[str, np.ndarray],
    ids: Mapping[str, np.ndarray] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The means of each language in every draw, (M, R) float64.

    Args:
        values: language -> (M, n), one value per model and query; n may differ from language to language.
        ids: language -> (n,), what each query is about. Ids are drawn, with all their queries in all
            languages. None: each language's queries are drawn by themselves.
    """
    rng = np.random.default_rng(seed)
    if ids is None:
        return {
            lang: resampled_sums(value_MN.T, draws, rng).T / value_MN.shape[1]
            for lang, value_MN in values.items()
        }
    sum_RK = resampled_sums(_table_of_ids(values, ids), draws, rng)
    sum_RLM = sum_RK.reshape(draws, len(values), -1)
    with np.errstate(invalid="ignore"):
        # 0 / 0, which is NaN, where a draw leaves a language out.
        mean_RLM = sum_RLM[..., :-1] / sum_RLM[..., -1:]
    return {lang: mean_RLM[:, i].T for i, lang in enumerate(values)}


def bootstrap_interval(
    values: np.ndarray,
    ids: np.ndarray | None = None,
    draws: int = INTERVAL_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values, one per query.

    Args:
        ids: (n,), what each query is about: these are drawn, each with all its queries. None: queries.
    """
    if ids is not None:
        return percentile_interval(drawn_means({"": values[None]}, {"": ids}, draws, seed)[""][0])
    sum_R1 = resampled_sums(values[:, None], draws, np.random.default_rng(seed))
    return percentile_interval(sum_R1[:, 0] / len(values))


def percentile_interval(drawn_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws that are not NaN."""
    low, high = np.nanpercentile(drawn_R, (2.5, 97.5))
    return float(low), float(high)


def interval_and_p(difference_R: np.ndarray) -> Significance | None:
    """95 % percentile interval of a drawn difference, and its p; None where all draws are equal."""
    # p is the smallest level whose interval would leave 0 out: twice the share of draws on its far side,
    # those at 0 included. The observed difference counts as a draw, so that p is never 0 (Davison & Hinkley
    # 1997, section 4.2).
    known = difference_R[~np.isnan(difference_R)]
    if np.ptp(known) <= _ROUNDING:
        return None
    beyond = min((known <= _ROUNDING).sum(), (known >= -_ROUNDING).sum())
    p = min(1.0, float(2 * (beyond + 1) / (len(known) + 1)))
    return Significance(percentile_interval(known), p)


def item_part(values: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> Part | None:
    """The variance that the choice of items gives to the mean over languages of their means.

    Linearised (Taylor) variance of a mean of ratios whose units are ids with all their rows (Cochran 1977,
    section 11.3). None where there are fewer than two ids.

    Args:
        values: language -> (n,), one value per row.
        ids: language -> (n,), what each row is about.
    """
    known, units = _units(values, ids)
    if len(known) < 2:
        return None
    deviations = [(one - one.mean()) / len(one) / len(values) for one in values.values()]
    of_id = np.bincount(np.concatenate(units), np.concatenate(deviations))
    return Part(float(of_id @ of_id) * len(known) / (len(known) - 1), len(known) - 1)


def seed_part(values: Sequence[float] | np.ndarray) -> Part:
    """The variance of the mean of two or more values, of which each has a seed of its own."""
    # 0.1 + 0.2 - 0.3 is no variance.
    varies = not np.ptp(values) <= _ROUNDING
    return Part(float(np.var(values, ddof=1)) / len(values) if varies else 0.0, len(values) - 1)


def t_test(mean: float, parts: Sequence[Part]) -> Significance | None:
    """Interval and p of a mean whose variance has several sources; None where nothing varies.

    With seeds and items crossed, the variances add up (Clark 1973, "The language-as-fixed-effect fallacy").
    The quantile of their sum is the mean of those of Student's t with the degrees of freedom of each part,
    weighted by the variances (Cochran & Cox 1957, section 4.14). With one part it is Student's t.

    Satterthwaite's degrees of freedom would be far too optimistic: where three seeds happen to lie close
    together, they become those of the items. In simulations with three seeds (`test_statistics.py`) p fell
    below 0.001 in up to 1.6 % of the samples without a difference, here in up to 0.25 %. A bootstrap over
    seeds and items would draw three seeds as often equal as not, and be far too narrow as well.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    variance = sum(one.variance for one in parts)
    if variance <= _ROUNDING**2:
        return None
    error = variance**0.5

    def quantile(p: float) -> float:
        # Not exceeded with the probability 1 - p, on both sides. From below: 1 - p / 2 would be rounded.
        return -sum(one.variance * float(stdtrit(one.df, p / 2)) for one in parts) / variance

    half = quantile(LEVEL) * error
    found = abs(mean) / error
    # On the scale of logarithms, so that small p are exact too. No test needs less than 1e-100.
    least = math.log(1e-100)
    is_beyond = quantile(math.exp(least)) <= found
    log_p = least if is_beyond else brentq(lambda x: quantile(math.exp(x)) - found, least, 0.0)
    return Significance((mean - half, mean + half), math.exp(log_p))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the k-th smallest of m is multiplied by m - k + 1, and never falls."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def verdict(difference: float, p_holm: float | None) -> str:
    """What a test says at 5 %: `shown` (the left side is higher), `worse`, `not shown`, or `UNTESTED`."""
    if p_holm is None:
        return UNTESTED
    if p_holm >= LEVEL:
        return "not shown"
    return "shown" if difference > 0 else "worse"


def resampled_sums(table_UK: Table, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(R, K) float64: column sums of U rows that are drawn with replacement from the U rows of a table."""
    units = table_UK.shape[0]
    rows, counts = table_UK, None
    if isinstance(table_UK, np.ndarray):
        rows, counts = _distinct(table_UK.astype(np.float64))
        if len(rows) > _FEW:
            rows, counts = table_UK, None

    def times_drawn(repeats: int) -> np.ndarray:
        # How often each distinct row is drawn is multinomial; for hits and misses of two models there are
        # but four of them, whatever the number of queries.
        if counts is not None:
            return rng.multinomial(units, counts / units, size=repeats)
        # A multinomial over many rows takes ten times as long as counting drawn numbers.
        drawn = (rng.integers(0, units, units) for _ in range(repeats))
        return np.stack([np.bincount(one, minlength=units) for one in drawn])

    # Never the draws of all units at once: 1,000 draws of 4 million rows would be 32 GB.
    step = max(1, _AT_A_TIME // rows.shape[0])
    parts = [times_drawn(min(step, draws - start)) @ rows for start in range(0, draws, step)]
    return np.concatenate(parts)


def _distinct(table_UK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a table, and how often each occurs."""
    # `np.unique` with an axis takes fifteen times as long.
    sorted_UK = table_UK[np.lexsort(table_UK.T)]
    is_new = np.append(True, (sorted_UK[1:] != sorted_UK[:-1]).any(1))
    first = np.flatnonzero(is_new)
    return sorted_UK[first], np.diff(first, append=len(table_UK))


def _units(
    languages: Iterable[str], ids: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """All ids, each once and sorted, and for each language the positions of its ids among these."""
    of_language = [ids[lang] for lang in languages]
    known, unit_N = np.unique(np.concatenate(of_language), return_inverse=True)
    return known, np.split(unit_N, np.cumsum([len(one) for one in of_language])[:-1])


def _table_of_ids(values: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> Table:
    """One row per id, M + 1 columns per language: the sum of each model's values, and how many these are."""
    from scipy.sparse import csr_array, hstack

    known, units = _units(values, ids)
    is_dense = len(known) * sum(len(one) + 1 for one in values.values()) <= _DENSE
    parts = []
    for value_MN, unit_N in zip(values.values(), units, strict=True):
        rows = (*value_MN, np.ones(len(unit_N)))
        columns = np.stack([np.bincount(unit_N, row, len(known)) for row in rows], axis=1)
        # Sparse: in large sets few images have captions in many languages, and many queries miss.
        parts.append(columns if is_dense else csr_array(columns))
    return np.concatenate(parts, axis=1) if is_dense else hstack(parts, format="csr")
