"""Intervals and tests: one bootstrap for the whole package, and Holm's correction.

Every interval in mmalign comes from `resampled_sums`. Two models are compared on the same draws, so that
what makes a query hard for both cancels out. Intervals are percentiles of the draws (Efron 1979).

Shapes: U units, K columns, M models or metrics, n queries of a language, N of all L languages, R draws.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Table = Union[np.ndarray, "csr_array"]
LEVEL = 0.05  # of a test, after Holm's correction
DRAWS = 10_000
INTERVAL_DRAWS = 1_000  # for an interval alone; a p value needs more
_AT_A_TIME = 4_000_000  # whole numbers drawn at a time: 32 MB
_DENSE = 4_000_000  # cells of a table of units that is dense, 32 MB; a larger one stays sparse
_ROUNDING = 12  # decimals; sums in another order make differences of 1e-17 where there are none


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
    values: np.ndarray, draws: int = INTERVAL_DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values, one per query."""
    sum_R1 = resampled_sums(values[:, None], draws, np.random.default_rng(seed))
    return percentile_interval(sum_R1[:, 0] / len(values))


def percentile_interval(drawn_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws that are not NaN."""
    low, high = np.nanpercentile(drawn_R, (2.5, 97.5))
    return float(low), float(high)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few values by Student's t, as of independent normal draws."""
    from scipy import stats

    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def interval_and_p(difference_R: np.ndarray) -> tuple[tuple[float, float], float]:
    """95 % percentile interval of a drawn difference, and its two-sided p."""
    # p is the smallest level whose interval would leave 0 out: twice the share of draws on its far side,
    # those at 0 included. The observed difference counts as a draw, so that p is never 0 (Davison & Hinkley
    # 1997, section 4.2).
    known = np.round(difference_R[~np.isnan(difference_R)], _ROUNDING)
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return percentile_interval(known), min(1.0, float(2 * (beyond + 1) / (len(known) + 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the k-th smallest of m is multiplied by m - k + 1, and never falls."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def verdict(difference: float, p_holm: float) -> str:
    """What a paired test says at 5 %: `shown` (the left side is higher), `worse` or `not shown`."""
    if p_holm >= LEVEL:
        return "not shown"
    return "shown" if difference > 0 else "worse"


def resampled_sums(table_UK: Table, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(R, K) float64: column sums of U rows that are drawn with replacement from the U rows of a table."""
    units = table_UK.shape[0]
    rows, counts = table_UK, None
    if isinstance(table_UK, np.ndarray):
        # How often each distinct row is drawn is multinomial; for hits and misses of two models there are
        # but four of them, whatever the number of queries.
        rows, counts = np.unique(table_UK.astype(np.float64), axis=0, return_counts=True)

    def times_drawn(repeats: int) -> np.ndarray:
        if counts is not None:
            return rng.multinomial(units, counts / units, size=repeats)
        # A multinomial over 100,000 distinct rows takes four times as long as counting drawn numbers.
        drawn = (rng.integers(0, units, units) for _ in range(repeats))
        return np.stack([np.bincount(one, minlength=units) for one in drawn])

    step = max(1, _AT_A_TIME // rows.shape[0])
    parts = [times_drawn(min(step, draws - start)) @ rows for start in range(0, draws, step)]
    return np.concatenate(parts)


def _table_of_ids(values: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> Table:
    """One row per id, M + 1 columns per language: the sum of each model's values, and how many these are."""
    from scipy.sparse import csr_array, hstack

    known = np.unique(np.concatenate([ids[lang] for lang in values]))
    parts = []
    for lang, value_MN in values.items():
        unit_N = np.searchsorted(known, ids[lang])
        rows = (*value_MN, np.ones(len(unit_N)))
        columns = [np.bincount(unit_N, row, len(known)) for row in rows]
        # Sparse: in large sets few images have captions in many languages, and many queries miss.
        parts.append(csr_array(np.stack(columns, axis=1)))
    table_UK = hstack(parts, format="csr")
    return table_UK.toarray() if np.prod(table_UK.shape) <= _DENSE else table_UK
