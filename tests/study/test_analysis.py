"""Invented cells whose means, intervals, tests and verdicts are known."""

from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from mmalign.core.config import validate
from mmalign.results.results import Results
from mmalign.results.statistics import verdict
from mmalign.study.analysis import StudyResults, analyse, answer
from mmalign.study.cells import Cell
from mmalign.study.config import StudyConfig
from mmalign.study.towers import TrainedTower

SEEDS = (0, 1, 2)
TASK = "toy"
METRIC = f"text/{TASK}/mean/clean/accuracy"

# tower -> what each pretraining seed adds; method -> what it adds on every tower.
TOWERS = {
    "aligned": (0.80, 0.82, 0.78),
    "untrained": (0.30, 0.31, 0.29),
    "masked": (0.78, 0.83, 0.79),
}
METHODS = {"plain": 0.0, "noise": 0.05}
NOISE = {0: -0.01, 1: 0.0, 2: 0.01}  # of a fine-tuning seed


def study(**changes: Any) -> StudyConfig:
    tree = {
        "name": "toy",
        "question": "Does it help?",
        "towers": {name: {"run": "run.yaml", "supervision": name} for name in TOWERS},
        "tasks": ["toy.yaml"],
        "methods": {name: {} for name in METHODS},
        "seeds": list(SEEDS),
        "pretraining_seeds": list(SEEDS),
        "headline": {"tower": "aligned", "against": ["untrained", "masked"]},
        **changes,
    }
    return validate(StudyConfig, tree, "test")


def cell(tower: str, pretraining: int, method: str, seed: int) -> tuple[Cell, Results]:
    value = TOWERS[tower][pretraining] + METHODS[method] * (1 + seed / 10) + NOISE[seed]
    results = Results("text/toy", {}, protocol={f"text/{TASK}": "words"})
    results.add(METRIC, value, count=26, chance=0.25)
    trained = TrainedTower(tower, pretraining, "path", False, f"{tower}{pretraining}", 1.0)
    return Cell(trained, TASK, method, seed, None, "key"), results  # type: ignore[arg-type]


def analysed(config: StudyConfig | None = None) -> StudyResults:
    """All towers; every method on the first pretraining seed, the plain one on all of the study's."""
    config = config or study()
    done = [
        cell(tower, pretraining, method, seed)
        for tower in TOWERS
        for pretraining in config.pretraining_seeds
        for method in METHODS
        for seed in config.seeds
        if pretraining == 0 or method == "plain"
    ]
    return analyse(config, [], done)


def find(results: StudyResults, kind: str, left: tuple[str, str], right: tuple[str, str]) -> Any:
    (found,) = [
        one for one in results.comparisons if (one.kind, one.left, one.right) == (kind, left, right)
    ]
    return found


def test_means_cover_the_fine_tuning_seeds_of_the_first_pretraining_seed() -> None:
    results = analysed()
    name = "aligned/plain/toy/mean/clean/accuracy"
    assert results.metrics[name] == pytest.approx(0.80)
    half = stats.t.ppf(0.975, 2) * stats.sem([0.79, 0.80, 0.81])
    assert results.ci95[name] == pytest.approx((0.80 - half, 0.80 + half))
    assert results.seeds[name] == "3 fine-tuning seeds on the tower of pretraining seed 0"
    assert (results.counts[name], results.chance[name]) == (26, 0.25)


def test_the_headline_is_paired_over_pretraining_seeds() -> None:
    one = find(analysed(), "headline", ("aligned", "plain"), ("untrained", "plain"))
    differences = [a - b for a, b in zip(TOWERS["aligned"], TOWERS["untrained"], strict=True)]
    assert one.difference == pytest.approx(0.5)
    assert one.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert one.p_holm == pytest.approx(2 * one.p)  # the smaller of two
    assert one.pairs == 3 and one.seeds.startswith("3 pretraining seeds")
    assert verdict(one.difference, one.p_holm) == "shown"


def test_with_one_pretraining_seed_the_headline_is_paired_over_fine_tuning_seeds() -> None:
    results = analysed(study(pretraining_seeds=[0]))
    one = find(results, "headline", ("aligned", "plain"), ("untrained", "plain"))
    assert one.pairs == 3
    assert one.seeds.startswith("3 fine-tuning seeds of one pretraining, which leaves open")
    assert one.difference == pytest.approx(TOWERS["aligned"][0] - TOWERS["untrained"][0])
    assert any(one.seeds in line for line in results.answer)


def test_a_method_is_compared_on_the_same_tower_and_seeds() -> None:
    one = find(analysed(), "method", ("masked", "noise"), ("masked", "plain"))
    gains = [0.05 * (1 + seed / 10) for seed in SEEDS]
    assert one.difference == pytest.approx(sum(gains) / 3)
    assert one.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert verdict(one.difference, one.p_holm) == "shown"


def test_each_verdict_is_one_line() -> None:
    results = analysed()
    first, second, third = results.answer
    assert first.startswith(
        "shown: toy, clean, accuracy: aligned, plain against untrained, plain: +50.0 points, "
    )
    assert second.startswith(
        "not shown: toy, clean, accuracy: aligned, plain against masked, plain: +0.0 "
    )
    assert third.startswith(
        "shown: toy, clean, accuracy: aligned, noise against aligned, plain: +5.5 "
    )
    assert "(Holm), 3 fine-tuning seeds on the tower of pretraining seed 0" in third


def test_verdicts_under_perturbations_are_counted() -> None:
    results = analysed()
    noisy = [
        replace(one, metric=f"{variant}/accuracy", difference=sign * one.difference)
        for variant, sign in (("typos", 1), ("swaps", -1))
        for one in results.comparisons
        if one.kind == "method"
    ]
    results.comparisons = noisy
    (line,) = answer(study(), results)
    sides = "aligned, noise against aligned, plain"
    assert line == f"perturbed: toy: {sides}: shown 1, worse 1, not shown 0 (of 2)"


def test_no_difference_at_all_is_no_difference() -> None:
    config = study(headline={"tower": "aligned", "against": ["masked"]})
    runs = []
    for tower in TOWERS:
        for seed in SEEDS:
            _, results = cell("aligned", 0, "plain", seed)
            runs.append((cell(tower, 0, "plain", seed)[0], results))
    results = analyse(config, [], runs)
    assert results.comparisons
    for one in results.comparisons:
        assert (one.difference, one.p, one.p_holm) == (0.0, 1.0, 1.0)


def test_one_seed_has_no_interval_and_no_test() -> None:
    results = analysed(study(seeds=[0], pretraining_seeds=[0]))
    assert results.metrics and not results.ci95 and not results.comparisons


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"headline": {"tower": "x", "against": ["masked"]}}, "there is no tower `x`"),
        ({"only": {"x": ["toy"]}}, "there is no method `x`"),
        ({"towers": {"a": {"supervision": "s"}}}, "exactly one of `run` and `path`"),
        (
            {"towers": {"a": {"path": "p", "untrained": True, "supervision": "s"}}},
            "`untrained` needs a `run`",
        ),
    ],
)
def test_an_invalid_study_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        study(**changes)
