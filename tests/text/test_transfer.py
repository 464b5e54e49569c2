"""Outcomes become numbers that were counted by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mmalign.results.results import Results, read_results
from mmalign.text.scores import score
from mmalign.text.tasks.task import Example, Kind, Target, Task, row_ids, sha256_of_tests
from mmalign.text.transfer import Outcome, add_clean, add_perturbed, outcome_of


def examples_of(lang: str, targets: Sequence[Target]) -> list[Example]:
    return [Example(str(i), lang, (f"text {i}",), target) for i, target in enumerate(targets)]


def task_of(
    tests: Mapping[str, Sequence[Target]],
    kind: Kind = "classification",
    merge: dict[str, str] | None = None,
) -> Task:
    """A task `t` with English labels; every language has two candidates."""
    examples = {lang: examples_of(lang, targets) for lang, targets in tests.items()}
    pool = [Example(name, "en", (name,), (name,)) for name in ("a", "b")]
    candidates = dict.fromkeys(tests, pool)
    return Task("t", kind, "en", ("a", "b"), [], {}, examples, candidates, merge=merge or {})


def outcome(lang: str, values: Sequence[float]) -> Outcome:
    """Accuracies that nobody had to predict for."""
    return Outcome(examples_of(lang, ["a"] * len(values)), {"accuracy": np.array(values)})


def added(draws: Sequence[Mapping[str, Outcome]], clean: Mapping[str, Outcome]) -> Results:
    """Clean and perturbed results under `text/t/<language>/noise/`."""
    results = Results("s", {})
    task = task_of({lang: ["a"] * len(one.examples) for lang, one in clean.items()})
    add_clean(results, task, clean)
    add_perturbed(results, task, "noise", clean, draws)
    return results


def test_an_outcome_has_the_metrics_of_its_kind() -> None:
    task = task_of({"de": ["a", "b", "a"]})
    found = outcome_of(task, task.tests["de"], ["a", "a", "a"])
    assert found.examples == task.tests["de"]
    expected = score("classification", task.tests["de"], ["a", "a", "a"])
    assert found.values.keys() == expected.keys()
    assert np.array_equal(found.values["accuracy"], [1.0, 0.0, 1.0])


def test_predicted_labels_are_merged_and_nothing_else_is() -> None:
    """HANS has two labels, a classifier of MNLI three."""
    task = task_of({"de": ["a", "b", "b"]}, merge={"c": "b"})
    assert np.array_equal(
        outcome_of(task, task.tests["de"], ["a", "b", "c"]).values["accuracy"], [1.0, 1.0, 1.0]
    )
    numbers = task_of({"de": [0, 1]}, kind="multiple_choice", merge={"c": "b"})
    assert np.array_equal(
        outcome_of(numbers, numbers.tests["de"], [0, 0]).values["accuracy"], [1.0, 0.0]
    )


def test_the_mean_weighs_languages_alike_and_leaves_the_source_out() -> None:
    task = task_of({"en": ["a", "a"], "de": ["a", "b", "b", "b"], "sw": ["a"]})
    predictions = {"en": ["a", "a"], "de": ["a"] * 4, "sw": ["a"]}
    results = Results("s", {})
    clean = {lang: outcome_of(task, task.tests[lang], p) for lang, p in predictions.items()}
    add_clean(results, task, clean)
    metrics = {name: v for name, v in results.metrics.items() if name.endswith("/accuracy")}
    assert metrics == {
        "text/t/en/clean/accuracy": 1.0,
        "text/t/de/clean/accuracy": 0.25,
        "text/t/sw/clean/accuracy": 1.0,
        "text/t/mean/clean/accuracy": 0.625,
    }
    assert results.counts["text/t/mean/clean/accuracy"] == 5
    # One row tells nothing of how the value varies.
    assert set(metrics) - set(results.ci95) == {"text/t/sw/clean/accuracy"}


def test_where_only_the_source_is_tested_it_is_the_mean() -> None:
    results = Results("s", {})
    task = task_of({"en": ["a", "b"]})
    add_clean(results, task, {"en": outcome_of(task, task.tests["en"], ["a", "a"])})
    assert results.metrics["text/t/mean/clean/accuracy"] == 0.5


def test_chance_is_that_of_each_language_and_of_the_targets_mean() -> None:
    task = task_of({"en": ["a", "a"], "de": ["a", "b"] * 25, "sw": ["a", "b", "b", "b"]})
    clean = {lang: outcome_of(task, e, ["a"] * len(e)) for lang, e in task.tests.items()}
    results = Results("s", {})
    add_clean(results, task, clean)
    add_perturbed(results, task, "noise", clean, [clean])
    assert results.chance == {
        "text/t/en/clean/accuracy": 1.0,
        "text/t/de/clean/accuracy": 0.5,
        "text/t/sw/clean/accuracy": 0.75,
        "text/t/mean/clean/accuracy": 0.625,
        "text/t/en/noise/accuracy": 1.0,
        "text/t/de/noise/accuracy": 0.5,
        "text/t/sw/noise/accuracy": 0.75,
        "text/t/mean/noise/accuracy": 0.5,  # of the only target with 50 rows
    }


def test_chance_of_retrieval_knows_the_size_of_the_pool() -> None:
    task = task_of({"de": [("a",)]}, kind="retrieval")
    results = Results("s", {})
    add_clean(results, task, {"de": outcome_of(task, task.tests["de"], [("b", "a")])})
    assert results.metrics["text/t/de/clean/map@20"] == 0.5
    assert results.chance["text/t/de/clean/map@20"] == pytest.approx((1 + 1 / 2) / 2)


def test_a_metric_that_a_language_lacks_is_left_out() -> None:
    """Three labels have no F1 of one of them."""
    task = task_of({"de": ["a", "b"], "sw": ["a", "b", "c"]})
    results = Results("s", {})
    found = {lang: outcome_of(task, e, ["a"] * len(e)) for lang, e in task.tests.items()}
    add_clean(results, task, found)
    assert not [name for name in results.metrics if name.endswith("/f1")]
    assert "text/t/de/clean/macro_f1" in results.metrics


def test_mean_drop_and_worst_of_several_draws() -> None:
    clean = {"de": outcome("de", [1, 1, 1, 0] * 20), "sw": outcome("sw", [1, 1] * 30)}
    draws = [
        {"de": outcome("de", [1, 0, 1, 0] * 20), "sw": outcome("sw", [1, 1] * 30)},
        {"de": outcome("de", [0, 1, 1, 1] * 20), "sw": outcome("sw", [1, 0] * 30)},
    ]
    results = added(draws, clean)
    expected = {
        "de/noise/accuracy": 0.625,
        "de/noise/accuracy_clean": 0.75,
        "de/noise/accuracy_drop": 0.75 - 0.625,
        "de/noise/accuracy_worst": 0.25,  # of four rows only the third survives both draws
        "sw/noise/accuracy": 0.75,
        "sw/noise/accuracy_clean": 1.0,
        "sw/noise/accuracy_drop": 0.25,
        "sw/noise/accuracy_worst": 0.5,
        "mean/noise/accuracy": (0.625 + 0.75) / 2,
        "mean/noise/accuracy_clean": (0.75 + 1) / 2,
        "mean/noise/accuracy_drop": (0.125 + 0.25) / 2,
        "mean/noise/accuracy_worst": (0.25 + 0.5) / 2,
    }
    noisy = {n.removeprefix("text/t/"): v for n, v in results.metrics.items() if "/noise/" in n}
    assert noisy == pytest.approx(expected)
    assert results.counts["text/t/de/noise/accuracy"] == 80  # examples, not examples times draws
    assert results.counts["text/t/mean/noise/accuracy_worst"] == 140
    assert {n for n in results.metrics if "/noise/" in n} <= set(results.ci95)
    low, high = results.ci95["text/t/de/noise/accuracy_drop"]
    assert low < 0.125 < high


def test_values_of_single_rows_are_kept_with_the_number_of_each_row(tmp_path: Path) -> None:
    task = task_of({"de": ["a"] * 4, "sw": ["a"] * 4})
    of_rows = {"de": [0, 2, 3], "sw": [2]}
    clean = {
        lang: Outcome([task.tests[lang][i] for i in rows], {"accuracy": np.ones(len(rows))})
        for lang, rows in of_rows.items()
    }
    results = Results("s", {})
    add_perturbed(results, task, "noise", clean, [clean])
    results.write(tmp_path / "results.json")
    read = read_results(tmp_path / "results.json")
    for lang, rows in of_rows.items():
        known = row_ids([task.tests[lang][i] for i in rows]).tolist()
        assert read.ids[f"text/t/{lang}/noise"].tolist() == known
        for metric in ("accuracy", "accuracy_clean"):
            assert read.values[f"text/t/{lang}/noise/{metric}"].tolist() == [1] * len(rows)


def test_the_worst_case_of_a_whole_set_is_its_worst_draw() -> None:
    targets = [float(i) for i in range(50)]
    examples = examples_of("de", targets)
    clean, *draws = [
        {"de": Outcome(examples, {"spearman": value, "pearson": value})}
        for value in (0.9, 0.5, 0.7)
    ]
    results = Results("s", {})
    task = task_of({"de": targets}, kind="similarity")
    add_perturbed(results, task, "noise", clean, draws)
    assert results.metrics["text/t/de/noise/spearman"] == pytest.approx(0.6)
    assert results.metrics["text/t/de/noise/spearman_drop"] == pytest.approx(0.3)
    assert results.metrics["text/t/mean/noise/spearman_worst"] == 0.5
    assert results.counts["text/t/de/noise/spearman_worst"] == 50
    assert not [name for name in results.metrics if "pearson" in name]  # the primary metric only
    assert not results.ci95


def test_a_language_of_few_changed_rows_is_left_out_of_the_mean() -> None:
    clean = {"en": outcome("en", [1] * 50), "de": outcome("de", [1] * 50)}
    clean["zh"] = outcome("zh", [1] * 49)
    draw = {**clean, "de": outcome("de", [1, 0] * 25)}
    results = added([draw], clean)
    assert results.metrics["text/t/zh/noise/accuracy"] == 1.0
    assert results.metrics["text/t/mean/noise/accuracy"] == 0.5
    assert results.metrics["text/t/mean/clean/accuracy"] == 1.0
    assert results.counts["text/t/mean/noise/accuracy"] == 50


@pytest.mark.parametrize("languages", [(), ("en",)])
def test_where_no_target_has_the_perturbation_there_is_no_mean(
    languages: tuple[str, ...],
) -> None:
    task = task_of({lang: ["a"] * 50 for lang in ("en", "zh")})
    clean = {lang: outcome(lang, [1] * 50) for lang in languages}
    results = Results("s", {})
    add_perturbed(results, task, "noise", clean, [clean])
    assert "text/t/mean/noise/accuracy" not in results.metrics
    assert ("text/t/en/noise/accuracy" in results.metrics) == ("en" in languages)


def interval(*languages: tuple[Sequence[float], Sequence[str]]) -> tuple[float, float]:
    """Of the mean over languages."""
    clean = {
        f"l{i}": Outcome(
            [Example(one, f"l{i}", ("x",), "a") for one in ids], {"accuracy": np.array(values)}
        )
        for i, (values, ids) in enumerate(languages)
    }
    results = Results("s", {})
    add_clean(results, task_of({lang: ["a"] for lang in clean}), clean)
    return results.ci95["text/t/mean/clean/accuracy"]


def test_copies_of_a_language_do_not_narrow_the_interval() -> None:
    values, ids = [float(i % 3 == 0) for i in range(60)], [str(i) for i in range(60)]
    one = interval((values, ids))
    assert one == pytest.approx(interval(*[(values, ids)] * 5))
    assert one[0] < 1 / 3 < one[1]
    # Other sentences in each language are independent, and narrow it.
    apart = interval(*((values, [f"{lang}-{one}" for one in ids]) for lang in range(5)))
    assert apart[1] - apart[0] < 0.6 * (one[1] - one[0])


def test_the_interval_does_not_depend_on_the_order_and_bears_rare_ids() -> None:
    values, ids = [1.0, 0.0, 0.0, 1.0], ["a", "b", "c", "d"]
    assert interval((values, ids)) == interval((values[::-1], ids[::-1]))
    low, high = interval((values, ids), ([1.0], ["a"]))
    assert 0 <= low < high <= 1


def test_rows_carry_their_ids_and_the_data_their_hash() -> None:
    results = Results("s", {})
    task = task_of({"de": ["a", "b"], "sw": ["b", "a"]})
    add_clean(
        results, task, {lang: outcome_of(task, e, ["a", "a"]) for lang, e in task.tests.items()}
    )
    german, swahili = (results.ids_of(f"text/t/{lang}/clean/accuracy") for lang in ("de", "sw"))
    assert german is not None and swahili is not None
    np.testing.assert_array_equal(german, swahili)  # translations have one id
    assert len(set(german.tolist())) == 2 and german.dtype == np.int64
    other = task_of({"de": ["a", "b"], "sw": ["b", "b"]})
    assert results.data["t"] == sha256_of_tests(task) != sha256_of_tests(other)
