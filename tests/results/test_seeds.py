"""The mean over seeds covers seeds and items, and keeps the values of every row."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmalign.results.aggregates import count_items, rows_behind
from mmalign.results.results import Results, read_results
from mmalign.results.seeds import mean_over_seeds

NAME = "text/t/de/clean/accuracy"
MEAN = "text/t/mean/clean/accuracy"


def seeded(seed: int, hits: dict[str, list[int]], f1: float = 0.1) -> Results:
    """Rows of several languages, the same ids in all; English is no part of the mean."""
    how = {"how": "Step {kept_step} kept.", "kept_step": 10 + seed, "mean_over": ["de", "sw"]}
    results = Results("s", {"path": "run", "seed": seed}, protocol={"text/t": how})
    for lang, values in hits.items():
        ids = np.arange(len(values)) + 2**40
        results.add(f"text/t/{lang}/clean/accuracy", np.array(values, float), chance=0.5, ids=ids)
    targets = [np.mean(hits[lang]) for lang in ("de", "sw") if lang in hits]
    results.add(MEAN, float(np.mean(targets)), count=sum(map(len, hits.values())))
    results.add("text/t/de/clean/macro_f1", f1, count=2)
    return results


def test_the_interval_adds_the_variances_of_seeds_and_items() -> None:
    runs = [seeded(s, {"de": hits}) for s, hits in enumerate(([0, 1, 0, 1], [0, 1, 1, 1], [1] * 4))]
    mean = mean_over_seeds(runs)
    assert (mean.metrics[NAME], mean.counts[NAME], mean.chance[NAME]) == (0.75, 4, 0.5)
    rows = np.array([1 / 3, 1, 2 / 3, 1])  # of each row, the mean of its seeds
    of_seeds, of_items = np.var([0.5, 0.75, 1], ddof=1) / 3, np.var(rows, ddof=1) / 4
    both = of_seeds + of_items
    quantiles = stats.t.ppf(0.975, [2, 3])
    half = np.average(quantiles, weights=[of_seeds, of_items]) * both**0.5
    assert mean.ci95[NAME] == pytest.approx((0.75 - half, 0.75 + half))


def test_a_metric_that_one_seed_lacks_is_left_out_as_a_whole() -> None:
    name = "text/t/de/attack-1/success_rate"
    runs = [seeded(seed, {"de": [0, 1]}) for seed in (0, 1)]
    runs[0].add(name, 0.5, count=1, chance=0.0)
    mean = mean_over_seeds(runs)
    assert name not in {**mean.metrics, **mean.counts, **mean.chance}
    assert mean.counts.keys() == mean.metrics.keys()


def test_pairs_of_two_languages_have_their_rows_behind_the_mean() -> None:
    of_pairs = {"de-de": [1, 1], "de-pt-BR": [0, 1], "pt-BR-de": [1, 1], "pt-BR-pt-BR": [0, 0]}
    results = Results("s", {}, protocol={"text/t": {"how": "", "mean_over": ["de", "pt-BR"]}})
    for pair, hits in of_pairs.items():
        name = f"text/t/{pair}/generalised/accuracy"
        results.add(name, np.array(hits, float), ids=np.array([7, 8]))
    two, same = (f"text/t/mean/generalised/accuracy{end}" for end in ("", "_same_language"))
    results.add(two, 0.75, count=4)
    results.add(same, 0.5, count=4)
    for name, pairs in ((two, ["de-pt-BR", "pt-BR-de"]), (same, ["de-de", "pt-BR-pt-BR"])):
        behind = rows_behind(results, name)
        assert behind is not None and sorted(behind[0]) == pairs
        assert count_items(results, name) == 2  # not four


def test_without_rows_it_is_students_t_over_the_seeds() -> None:
    runs = [seeded(s, {"de": [0, 1]}, f1) for s, f1 in enumerate((0.5, 0.75, 1.0))]
    # Standard error 0.25 / sqrt(3); 4.302653 is Student's t for 2 degrees of freedom.
    low, high = mean_over_seeds(runs).ci95["text/t/de/clean/macro_f1"]
    assert (low, high) == pytest.approx((0.75 - 0.6210, 0.75 + 0.6210), abs=1e-4)


def test_equal_seeds_have_no_interval_of_width_zero() -> None:
    mean = mean_over_seeds([seeded(seed, {"de": [0, 1, 1]}) for seed in (0, 1, 2)])
    assert "text/t/de/clean/macro_f1" not in mean.ci95  # nothing is known of its rows
    low, high = mean.ci95[NAME]  # that of its rows
    assert low < 0 < 1 < high
    assert NAME not in mean_over_seeds([seeded(seed, {"de": [1, 1]}) for seed in (0, 1)]).ci95


def test_copies_in_other_languages_are_no_new_items() -> None:
    one = [seeded(s, {"de": hits}) for s, hits in enumerate(([0, 1, 0, 1], [0, 1, 1, 1]))]
    two = [
        seeded(s, {"de": hits, "sw": hits, "en": [1] * 4})
        for s, hits in enumerate(([0, 1, 0, 1], [0, 1, 1, 1]))
    ]
    first, second = mean_over_seeds(one), mean_over_seeds(two)
    assert first.ci95[NAME] == pytest.approx(second.ci95[MEAN])
    assert (second.counts[MEAN], count_items(second, MEAN)) == (12, 4)


def test_values_of_rows_are_kept_for_each_seed_and_read_back(tmp_path: Path) -> None:
    runs = [seeded(seed, {"de": hits}) for seed, hits in ((3, [0, 1]), (5, [1, 1]))]
    mean = mean_over_seeds(runs)
    assert mean.model == {"path": "run", "seed": 3, "seeds": [3, 5]}
    fields = {"kept_step": [13, 15], "mean_of_seeds": 2, "mean_over": ["de", "sw"]}
    assert mean.protocol["text/t"] == {"how": "Step {kept_step} kept.", **fields}
    mean.write(tmp_path / "results.json")
    found = read_results(tmp_path / "results.json")
    np.testing.assert_array_equal(found.values[NAME], [[0, 1], [1, 1]])
    np.testing.assert_array_equal(found.ids_of(NAME), np.arange(2) + 2**40)
    assert mean_over_seeds(runs[:1]) is runs[0]  # a single run stays as it is


def test_rows_of_other_ids_are_not_paired() -> None:
    runs = [seeded(seed, {"de": [0, 1]}) for seed in (0, 1)]
    runs[1].ids = {group: ids + 1 for group, ids in runs[1].ids.items()}
    assert NAME not in mean_over_seeds(runs).values
