"""Invented cells whose means, intervals, tests and verdicts are known."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
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
STUBS = {name: {"run": "run.yaml", "supervision": name} for name in TOWERS}
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
    # Other towers feel the seed less, or all differences between towers would be equal.
    noise = NOISE[seed] * (1.0 if tower == "aligned" else 0.9)
    value = TOWERS[tower][pretraining] + METHODS[method] * (1 + seed / 10) + noise
    results = Results("text/toy", {}, protocol={f"text/{TASK}": {"how": "words"}})
    results.add(METRIC, value, count=26, chance=0.25)
    trained = TrainedTower(tower, pretraining, "path", False, f"{tower}{pretraining}", "", 1.0)
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
    assert one.p_holm == pytest.approx(2 * one.p)  # the smaller of two of the headline
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


def test_a_study_of_one_tower_answers_for_each_method() -> None:
    results = analysed(study(headline={"tower": "aligned"}))
    assert results.verdict == "noise against plain: Yes on toy."
    assert results.scope[0] == "aligned (aligned), fine-tuned by several methods."
    assert results.scope[1] == "3 fine-tuning seeds on the tower of pretraining seed 0."
    assert not [one for one in results.comparisons if one.kind == "headline"]


def test_verdicts_under_perturbations_are_counted() -> None:
    results = analysed()
    noisy = [
        replace(one, metric=f"{variant}/accuracy", difference=sign * one.difference)
        for variant, sign in (("typos", 1), ("swaps", -1))
        for one in results.comparisons
        if one.kind == "method" and one.primary
    ]
    (line,) = answer(noisy)
    sides = "aligned, noise against aligned, plain"
    assert line == f"perturbed: toy: {sides}: shown 1, worse 1, not shown 0 (of 2)"


def rows(value: list[list[int]], seed: int) -> Results:
    """Results of German rows, one list of hits for each seed; English rows are no part of the mean."""
    how = {"how": "words", "mean_over": ["de"], "trained_on": "9 `en` rows"}
    results = Results("text/toy", {}, protocol={f"text/{TASK}": how})
    hits = np.array(value[seed % len(value)], float)
    for lang in ("de", "en"):
        name = f"text/{TASK}/{lang}/clean/accuracy"
        results.add(name, hits, chance=0.25, ids=np.arange(len(hits)))
    results.add(METRIC, float(hits.mean()), count=len(hits), chance=0.25)
    return results


def compared(
    sides: dict[str, list[list[int]]],
    config: StudyConfig,
    pretraining: dict[str, list[int | None]],
    untrained: str = "",
) -> StudyResults:
    """The study of some towers' hits, with the cells of each pretraining seed; one may be untrained."""
    done = []
    for tower, hits in sides.items():
        for place, seed in product(pretraining[tower], config.seeds):
            trained = TrainedTower(tower, place, "path", tower == untrained, tower, tower, 1.0)
            of_cell = rows(hits, seed + 3 * (place or 0))
            done.append((Cell(trained, TASK, "plain", seed, None, "key"), of_cell))  # type: ignore[arg-type]
    return analyse(config, [], done)


def seeds_of(*seeds: int | None) -> dict[str, list[int | None]]:
    return {tower: [*seeds] for tower in ("ours", "theirs")}


def two(**changes: Any) -> StudyConfig:
    towers = {name: {"run": "run.yaml", "supervision": name} for name in ("ours", "theirs")}
    head = {"tower": "ours", "against": ["theirs"]}
    return study(towers=towers, headline=head, methods={"plain": {}}, **changes)


def test_equal_seeds_are_no_test() -> None:
    """A deterministic cell (`epochs: 0`): +25 points with every seed had p = 0 and was `shown`."""
    config = two(pretraining_seeds=[0])
    sides = {"ours": [[1, 1, 1, 0]], "theirs": [[1, 1, 0, 0]]}
    results = compared(sides, config, seeds_of(0))
    one = results.comparisons[0]
    assert one.difference == 0.25 and (one.ci95, one.p, one.p_holm) == (None, None, None)
    assert results.answer[0].startswith("no difference can be told: toy, clean, accuracy: ours")
    assert results.answer[0].endswith("the seeds give equal numbers, 4 items")
    assert results.verdict == "No difference can be told on toy."
    same = compared({tower: [[1, 0]] for tower in sides}, config, seeds_of(0))
    assert (same.comparisons[0].difference, same.comparisons[0].p) == (0.0, None)


def test_given_models_are_not_counted_again_for_each_pretraining_seed() -> None:
    """Both sides are given models: the same three cells each, whatever the pretraining seeds."""
    towers = {name: {"path": "p", "supervision": name} for name in ("ours", "theirs")}
    config = two(seeds=[0, 1, 2], pretraining_seeds=[0, 1, 2, 3, 4])
    config = config.model_copy(update={"towers": study(**{"towers": {**towers, **STUBS}}).towers})
    hits = [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]], [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    sides = dict(zip(("ours", "theirs"), hits, strict=True))
    one = compared(sides, config, seeds_of(None)).comparisons[0]
    assert one.pairs == 3 and one.p is not None and one.p > 0.5
    assert one.seeds.startswith("3 fine-tuning seeds of given models, which leaves open")
    # Against a tower with pretraining seeds each side has its own repeats.
    towers["theirs"] = {"run": "run.yaml", "supervision": "theirs"}
    config = config.model_copy(update={"towers": study(**{"towers": {**towers, **STUBS}}).towers})
    both = {"ours": [None], "theirs": [0, 1, 2, 3, 4]}
    mixed = compared(sides, config, both).comparisons[0]
    assert "5 pretraining seeds of theirs" in mixed.seeds
    assert "3 fine-tuning seeds of ours (one given model, unpaired)" in mixed.seeds
    assert mixed.pairs == 3 and mixed.p is not None and mixed.p > 0.5


@pytest.mark.parametrize("seeds", [[0, 1, 2], [0]])
def test_an_untrained_tower_that_all_seeds_give_alike_is_one_given_model(seeds: list[int]) -> None:
    """One with a pretrained start: as three pretraining seeds, its own variance was left out of the test."""
    config = two(seeds=seeds, pretraining_seeds=[0, 1, 2])
    same = [[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]] * 3
    ours = [[1, 1, 1, 0]] * 3 + [[1, 1, 0, 0]] * 3 + [[1, 0, 1, 1]] * 3
    found = compared({"ours": ours, "theirs": same}, config, seeds_of(0, 1, 2), "theirs")
    one = found.comparisons[0]
    runs = f"{len(seeds)} fine-tuning seeds" if len(seeds) > 1 else "one run"
    assert f"and {runs} of theirs (one given model, unpaired)" in one.seeds
    assert one.pairs == len(seeds) and one.p is not None and one.p > 0.05
    # Drawn at random, it differs between seeds and has as many as the other side.
    drawn = compared({"ours": ours, "theirs": same}, config, seeds_of(0, 1, 2))
    assert drawn.comparisons[0].seeds.startswith("3 pretraining seeds, each ")


def test_rates_over_each_model_s_own_correct_rows_are_not_tested() -> None:
    config = two(seeds=[0, 1, 2], pretraining_seeds=[0])
    done = []
    for tower, seed in product(("ours", "theirs"), config.seeds):
        trained = TrainedTower(tower, 0, "path", False, tower, "", 1.0)
        of_cell = rows([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]], seed)
        for metric in ("success_rate", "queries", "accuracy"):
            of_cell.add(f"text/{TASK}/mean/attack/{metric}", 0.1 * seed, count=4)
        done.append((Cell(trained, TASK, "plain", seed, None, "key"), of_cell))  # type: ignore[arg-type]
    tested = {one.metric for one in analyse(config, [], done).comparisons}
    assert tested == {"clean/accuracy", "attack/accuracy"}


def test_the_same_items_under_all_seeds_widen_the_interval() -> None:
    """Three seeds agree on six items: over seeds alone 1 of 6 items is `shown`, over items it is not."""
    config = two(pretraining_seeds=[0])
    ours = [[1, 1, 1, 1, 0, 0] * 5 + [0] * 20, [1, 1, 1, 1, 0, 0] * 5 + [1] + [0] * 19]
    sides = {"ours": ours, "theirs": [[1, 1, 1, 0, 0, 1] * 5 + [0] * 20]}
    results = compared(sides, config, seeds_of(0))
    one = results.comparisons[0]
    assert one.p is not None and one.p > 0.5 and one.ci95 and one.ci95[0] < -0.1
    assert one.seeds.endswith(" and the tested items") and (one.items, one.rows) == (50, 50)
    differences = [0.0, 0.02, 0.0]
    assert stats.ttest_1samp(differences, 0).pvalue < one.p
    assert results.items["ours/plain/toy/mean/clean/accuracy"] == 50
    assert any("tested in de; clean: 50 items in 50 rows" in line for line in results.scope)


def test_holm_corrects_everything_that_the_verdict_rests_on() -> None:
    """Also over the tasks and the perturbations: each had a family of its own."""
    config = two(pretraining_seeds=[0])
    done = []
    for tower, seed in product(("ours", "theirs"), SEEDS):
        trained = TrainedTower(tower, 0, "path", False, tower, "", 1.0)
        for task in ("one", "another"):
            results = Results("text/toy", {}, protocol={f"text/{task}": {"how": "words"}})
            value = 0.5 + (tower == "ours") * (0.2 + seed / 100)
            for variant in ("clean", "typos", "swaps"):
                chance = 0.25
                results.add(f"text/{task}/mean/{variant}/accuracy", value, 9, chance)
                results.add(f"text/{task}/mean/{variant}/other", value, 9)
            done.append((Cell(trained, task, "plain", seed, None, "k"), results))  # type: ignore[arg-type]
    found = analyse(config, [], done)
    headline = [one for one in found.comparisons if one.kind == "headline"]
    assert [one.primary for one in headline].count(True) == 6 == len(headline) / 2
    for one in headline:
        assert one.p_holm == pytest.approx(min(1.0, 6 * (one.p or 0)))
    assert found.verdict == "Yes on one and another; under perturbed texts shown in 4 of 4 tests."


def test_the_verdict_names_what_is_shown_and_what_is_not() -> None:
    results = analysed()
    assert results.verdict == "On toy shown against untrained, not shown against masked."
    assert results.scope[0].startswith("aligned (aligned) against untrained (untrained), masked")
    one_seed = analysed(study(seeds=[0], pretraining_seeds=[0]))
    assert one_seed.verdict.startswith("No difference was tested")


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
