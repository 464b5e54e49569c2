"""Drawn means are those of the bootstrap, pairs cancel what is common, Holm is Holm."""

import numpy as np
import pytest
from scipy import sparse, stats

from mmalign.results import statistics
from mmalign.results.statistics import (
    UNTESTED,
    Part,
    Significance,
    bootstrap_interval,
    drawn_means,
    holm,
    interval_and_p,
    item_part,
    resampled_sums,
    seed_part,
    t_test,
    verdict,
)


def hits(n: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(np.uint8)


def inferred(difference_R: np.ndarray) -> Significance:
    found = interval_and_p(difference_R)
    assert found is not None
    return found


def by_hand(rows_UK: np.ndarray, draws: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    u = len(rows_UK)
    return np.stack([rows_UK[rng.integers(0, u, u)].sum(0) for _ in range(draws)])


def test_draws_are_those_of_the_bootstrap() -> None:
    values_MN = np.stack([hits(60, 0.4, 0), hits(60, 0.6, 1)])
    drawn_MR = drawn_means({"en": values_MN}, draws=20_000)["en"]
    assert drawn_MR.shape == (2, 20_000)
    slow_RM = by_hand(values_MN.T.astype(float), 20_000) / 60
    np.testing.assert_allclose(drawn_MR.mean(1), values_MN.mean(1), atol=0.002)
    np.testing.assert_allclose(np.cov(drawn_MR), np.cov(slow_RM.T), rtol=0.05, atol=2e-5)


def test_a_sparse_table_is_drawn_from_as_a_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table = sparse.random_array((60, 5), density=0.2, rng=np.random.default_rng(0), format="csr")
    drawn = [
        resampled_sums(one, 20_000, np.random.default_rng(1)) for one in (table, table.toarray())
    ]
    for sum_RK in drawn:
        np.testing.assert_allclose(sum_RK.mean(0), table.sum(0), rtol=0.02)
    np.testing.assert_allclose(np.cov(drawn[0].T), np.cov(drawn[1].T), rtol=0.1, atol=0.1)
    # However many draws are held at a time, they are the same.
    monkeypatch.setattr(statistics, "_AT_A_TIME", 100)
    again = resampled_sums(table, 20_000, np.random.default_rng(1))
    np.testing.assert_allclose(again, drawn[0])


def test_any_values_can_be_drawn() -> None:
    values_MN = np.random.default_rng(0).normal(size=(3, 40))
    drawn_MR = drawn_means({"en": values_MN}, draws=5_000)["en"]
    np.testing.assert_allclose(drawn_MR.std(1), values_MN.std(1) / 40**0.5, rtol=0.05)


def test_a_seed_gives_the_same_draws() -> None:
    values = {"en": np.stack([hits(30, 0.5, 0), hits(30, 0.5, 1)])}
    np.testing.assert_array_equal(drawn_means(values)["en"], drawn_means(values)["en"])
    assert (drawn_means(values)["en"] != drawn_means(values, seed=1)["en"]).any()


def test_pairs_narrow_the_interval() -> None:
    """Models that fail on the same queries: unpaired, their difference would hide in the noise."""
    first = hits(400, 0.5, 0)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1
    drawn_MR = drawn_means({"en": np.stack([first, second])})["en"]
    (low, high), p = inferred(drawn_MR[1] - drawn_MR[0])
    alone = drawn_means({"en": second[None]}, seed=1)["en"][0]
    (low_alone, high_alone), p_alone = inferred(alone - drawn_MR[0])
    assert low_alone < 0 < low < 12 / 400 < high < high_alone
    assert high - low < 0.3 * (high_alone - low_alone)
    assert p < 0.001 < 0.2 < p_alone


@pytest.mark.parametrize("dense", [0, statistics._DENSE])
def test_images_are_drawn_with_all_their_captions(
    dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every query twice, in two languages: no more is known than from one of them."""
    monkeypatch.setattr(statistics, "_DENSE", dense)
    once = np.stack([hits(100, 0.4, 0), hits(100, 0.5, 1)])
    twice = {"en": np.repeat(once, 2, axis=1), "de": once}
    ids = {"en": np.repeat(np.arange(100), 2), "de": np.arange(100)}
    together = drawn_means(twice, ids, draws=4_000)
    np.testing.assert_allclose(together["en"], together["de"])
    apart = drawn_means(twice, draws=4_000)
    one = (together["de"][1] - together["de"][0]).std()
    mean = sum(apart[lang][1] - apart[lang][0] for lang in twice) / 2
    assert np.std(mean) < 0.8 * one  # what drawing languages by themselves would claim


def test_a_draw_may_miss_a_language() -> None:
    values = {"en": np.ones((2, 50)), "sw": np.ones((2, 1))}
    ids = {"en": np.arange(50), "sw": np.array([7])}
    drawn = drawn_means(values, ids, draws=2_000)
    share = np.isnan(drawn["sw"][0]).mean()
    assert share == pytest.approx((1 - 1 / 50) ** 50, abs=0.04)
    assert (drawn["en"] == 1).all()


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    difference = np.array([-1.0] * 3 + [0.0] * 1 + [1.0] * 95)
    assert inferred(difference).p == pytest.approx(2 * (4 + 1) / 100)
    assert inferred(-difference).p == pytest.approx(2 * (4 + 1) / 100)
    # Noise of the summation is no difference.
    assert inferred(np.append(difference, np.full(900, 1e-17))).p == 1.0


def test_p_is_seldom_small_where_nothing_differs() -> None:
    p = []
    for seed in range(200):
        values = np.stack([hits(150, 0.4, 2 * seed), hits(150, 0.4, 2 * seed + 1)])
        drawn = drawn_means({"en": values}, draws=1_000)["en"]
        p.append(inferred(drawn[1] - drawn[0]).p)
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10
    assert stats.kstest(p, "uniform").statistic < 0.15


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_variance_there_is_no_test() -> None:
    """Every draw, or every seed, gives the same difference: p would be 0 and the interval a point."""
    assert interval_and_p(np.full(99, 0.0156)) is None
    assert interval_and_p(np.zeros(99)) is None
    # Three equal floats have a mean that differs from them in the last digit.
    assert seed_part([0.1, 0.1, 0.1 + 1e-17]) == Part(0.0, 2)
    assert t_test(0.0156, [seed_part([0.0156] * 3)]) is None
    assert verdict(0.0156, None) == UNTESTED == "no difference can be told"


def test_the_variance_of_items_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    ids = {"en": np.repeat(np.arange(150), 2), "de": np.arange(100), "sw": np.arange(50, 150)}
    hard = rng.random(150)
    values = {
        lang: (hard[of_lang] < rng.random(len(of_lang))).astype(float)
        for lang, of_lang in ids.items()
    }
    drawn = drawn_means({lang: one[None] for lang, one in values.items()}, ids, draws=20_000)
    part = item_part(values, ids)
    assert part is not None and part.df == 149
    assert part.variance == pytest.approx(np.mean([*drawn.values()], axis=0).var(), rel=0.05)
    assert item_part({"en": np.ones(3)}, {"en": np.zeros(3, int)}) is None


@pytest.mark.parametrize("of_seeds, of_items", [(0.0, 1.0), (0.02, 1.0), (0.1, 0.5)])
def test_seldom_small_where_seeds_and_items_are_drawn_from_no_difference(
    of_seeds: float, of_items: float
) -> None:
    """Three seeds, 100 items, crossed: a test over seeds alone takes the shared items for an effect."""
    rng = np.random.default_rng(0)
    both, seeds_only = [], []
    for _ in range(400):
        item_N, seed_S1 = of_items * rng.normal(size=100), of_seeds * rng.normal(size=(3, 1))
        value_SN = item_N + seed_S1 + 0.3 * rng.normal(size=(3, 100))
        seeds = seed_part(value_SN.mean(1))
        items = item_part({"en": value_SN.mean(0)}, {"en": np.arange(100)})
        assert items is not None
        for found, parts in ((both, [seeds, items]), (seeds_only, [seeds])):
            one = t_test(float(value_SN.mean()), parts)
            assert one is not None
            found.append(one.p < 0.05)
    assert np.mean(both) < 0.08
    assert np.mean(seeds_only) > 0.15 or of_seeds >= 0.1


@pytest.mark.parametrize("of_items", [0.03, 0.1, 0.5, 2.0])
def test_p_is_as_seldom_small_as_it_says_with_three_seeds(of_items: float) -> None:
    """Without a difference; three seeds that happen to lie close together must not count as certain."""
    rng = np.random.default_rng(0)
    draws = 12_000
    mean_R = rng.normal(0, (1 + of_items) ** 0.5, draws)
    seeds_R = rng.chisquare(2, draws) / 2
    items_R = of_items * rng.chisquare(200, draws) / 200
    found = [
        t_test(mean, [Part(of_seeds, 2), Part(of_rows, 200)])
        for mean, of_seeds, of_rows in zip(
            mean_R.tolist(), seeds_R.tolist(), items_R.tolist(), strict=True
        )
    ]
    p_R = np.array([one.p for one in found if one is not None])
    for level, most in ((0.05, 0.055), (0.01, 0.0145), (0.001, 0.0035)):
        assert np.mean(p_R < level) <= most
    # By Satterthwaite's degrees of freedom they are.
    variance_R = seeds_R + items_R
    df_R = variance_R**2 / (seeds_R**2 / 2 + items_R**2 / 200)
    satterthwaite_R = 2 * stats.t.sf(np.abs(mean_R) / variance_R**0.5, df_R)
    assert of_items != 0.1 or np.mean(satterthwaite_R < 0.001) > 0.012
    outside = np.mean([not one.ci95[0] <= 0 <= one.ci95[1] for one in found if one is not None])
    assert outside == pytest.approx(np.mean(p_R < 0.05), abs=1e-3)


def test_one_part_alone_is_students_t() -> None:
    one = t_test(1.0, [Part(0.1, 2)])
    assert one is not None
    assert one.p == pytest.approx(2 * stats.t.sf(1 / 0.1**0.5, 2), rel=1e-6)
    assert one.ci95[1] - 1 == pytest.approx(stats.t.ppf(0.975, 2) * 0.1**0.5)
    small = t_test(3.0, [Part(0.02, 200)])
    assert small is not None
    assert small.p == pytest.approx(2 * stats.t.sf(3 / 0.02**0.5, 200), rel=1e-6)
    assert t_test(0.0, [Part(0.1, 2)]).p == 1  # type: ignore[union-attr]
    assert t_test(1e9, [Part(0.1, 200)]).p <= 1e-99  # type: ignore[union-attr]


def test_many_distinct_values_are_drawn_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(3_000)
    counted = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "_FEW", 10_000)
    assert bootstrap_interval(values) == pytest.approx(counted, abs=1e-3)
