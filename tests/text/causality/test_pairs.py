"""Metrics of causal pairs against scikit-learn's, and what chance makes of them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from mmalign.results.results import Results
from mmalign.text.causality.pairs import f1_without_reading, pair_scores, redrawn_pair_scores
from mmalign.text.scores import PRIMARY, chance
from mmalign.text.tasks.task import Causality, Event, EventPair, Example, Task
from mmalign.text.transfer import add_clean, outcome_of


def documents(count: int = 30, lang: str = "da", seed: int = 0) -> list[Example]:
    """Six events in two sentences, all pairs, a fifth of them causal; the first has no pair."""
    random = np.random.default_rng(seed)
    events = tuple(Event(i // 3, i % 3, i % 3 + 1) for i in range(6))
    found = [Example(f"{lang}-0", lang, ("abc", "def"), Causality(events, ()))]
    for number in range(1, count):
        pairs = tuple(
            EventPair(a, b, bool(random.random() < 0.2)) for a in range(6) for b in range(a + 1, 6)
        )
        found.append(Example(f"{lang}-{number}", lang, ("abc", "def"), Causality(events, pairs)))
    return found


def pairs_of(examples: list[Example]) -> list[tuple[Example, EventPair]]:
    return [(one, p) for one in examples for p in one.target.pairs]  # type: ignore[union-attr]


def guesses(examples: list[Example], seed: int = 7) -> list[tuple[bool, ...]]:
    random = np.random.default_rng(seed)
    return [tuple((random.random(len(one.target.pairs)) < 0.3).tolist()) for one in examples]  # type: ignore[union-attr]


@pytest.mark.parametrize("part", ["", "_within", "_across"])
def test_the_metrics_are_those_of_the_pooled_pairs(part: str) -> None:
    examples = documents()
    given = guesses(examples)
    is_in = {
        "": lambda a, b: True,
        "_within": lambda a, b: a.sentence == b.sentence,
        "_across": lambda a, b: a.sentence != b.sentence,
    }[part]
    events = examples[0].target.events  # type: ignore[union-attr]
    said = [one for each in given for one in each]
    rows = [
        (pair.causal, found)
        for (_, pair), found in zip(pairs_of(examples), said, strict=True)
        if is_in(events[pair.first], events[pair.second])
    ]
    wanted, found = zip(*rows, strict=True)
    values = pair_scores(examples, given)
    assert values[f"precision{part}"] == pytest.approx(precision_score(wanted, found))
    assert values[f"recall{part}"] == pytest.approx(recall_score(wanted, found))
    assert values[f"f1{part}"] == pytest.approx(f1_score(wanted, found))


def with_labels(examples: list[Example], label: Callable[[bool], bool]) -> list[Example]:
    """The same pairs, causal by whether their events are in one sentence."""
    found = []
    for one in examples:
        target = one.target
        assert isinstance(target, Causality)
        sentence = [event.sentence for event in target.events]
        pairs = tuple(
            EventPair(p.first, p.second, label(sentence[p.first] == sentence[p.second]))
            for p in target.pairs
        )
        found.append(replace(one, target=replace(target, pairs=pairs)))
    return found


def test_chance_is_the_better_of_two_rules_that_read_no_word() -> None:
    examples = documents()
    within, across = (with_labels(examples, label) for label in (bool, lambda same: not same))
    assert f1_without_reading(within) == 1
    share = np.mean([pair.causal for _, pair in pairs_of(across)])
    assert f1_without_reading(across) == pytest.approx(2 * share / (1 + share))
    assert chance("event_causality", examples) == f1_without_reading(examples)
    assert PRIMARY["event_causality"] == "f1"


def test_without_pairs_everything_is_zero() -> None:
    assert set(pair_scores(documents(1), [()]).values()) == {0.0}


def test_intervals_redraw_documents_and_the_mean_has_one_too() -> None:
    task_parts = {"labels": (), "train": [], "dev": {}, "candidates": {}}
    tests = {lang: documents(40, lang, seed) for seed, lang in enumerate(("da", "tr"))}
    task = Task("toy", "event_causality", "en", tests=tests, **task_parts)  # type: ignore[arg-type]
    outcomes = {lang: outcome_of(task, rows, guesses(rows)) for lang, rows in tests.items()}
    results = Results("toy", {})
    add_clean(results, task, outcomes)
    for part in ("da", "tr", "mean"):
        for metric in ("f1", "recall_within", "precision_across"):
            name = f"text/toy/{part}/clean/{metric}"
            low, high = results.ci95[name]
            assert low < results.metrics[name] < high
    widths = {p: np.diff(results.ci95[f"text/toy/{p}/clean/f1"])[0] for p in ("da", "tr", "mean")}
    assert widths["mean"] < min(widths["da"], widths["tr"])
    assert results.chance["text/toy/mean/clean/f1"] == pytest.approx(
        (f1_without_reading(tests["da"]) + f1_without_reading(tests["tr"])) / 2
    )
    assert results.counts["text/toy/mean/clean/f1"] == 80


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    examples = documents(25)
    given = guesses(examples)
    drawn = redrawn_pair_scores(examples, given, draws=1000)["f1"]
    random = np.random.default_rng(5)
    plain = []
    for _ in range(300):
        rows = random.integers(0, 25, 25)
        plain.append(pair_scores([examples[i] for i in rows], [given[i] for i in rows])["f1"])
    np.testing.assert_allclose(
        np.percentile(drawn, (2.5, 97.5)), np.percentile(plain, (2.5, 97.5)), atol=0.04
    )
