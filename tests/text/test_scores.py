"""Metrics against scikit-learn, scipy and seqeval; answers against the published scorers' numbers."""

import sys
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from sklearn import metrics

from mmalign.core.errors import UserError
from mmalign.text.scores import (
    PRIMARY,
    Prediction,
    average_precision,
    chance,
    expected_average_precision,
    reciprocal_rank,
    score,
    span_f1,
)
from mmalign.text.tasks.task import Answer, Causality, Event, EventPair, Example, Kind, Target

RNG = np.random.default_rng(0)


def examples_of(
    targets: Sequence[Target], lang: str = "en", texts: tuple[str, ...] = ("x",)
) -> list[Example]:
    return [Example(str(i), lang, texts, target) for i, target in enumerate(targets)]


def measured(
    kind: Kind, targets: Sequence[Target], predictions: Sequence[Prediction], lang: str = "en"
) -> dict[str, float]:
    """The metrics, those per example averaged."""
    scores = score(kind, examples_of(targets, lang), predictions)
    for values in scores.values():
        if isinstance(values, np.ndarray):
            assert values.dtype == np.float64
            assert values.shape == (len(targets),)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def draw(labels: str, n: int = 200) -> list[str]:
    return RNG.choice(list(labels), n).tolist()


@pytest.mark.parametrize("labels", ["ab", "abcd"])
def test_classification_agrees_with_scikit_learn(labels: str) -> None:
    wanted, given = draw(labels), draw(labels)
    expected = {
        "accuracy": metrics.accuracy_score(wanted, given),
        "macro_f1": np.mean([metrics.f1_score(wanted, given, labels=[x], average="macro") for x in labels]),
        "matthews": metrics.matthews_corrcoef(wanted, given),
    }  # fmt: skip
    if labels == "ab":
        expected["f1"] = metrics.f1_score(wanted, given, pos_label="b")
    assert measured("classification", wanted, given) == pytest.approx(expected, abs=1e-9)


def test_the_last_label_is_positive() -> None:
    wanted, given = ["yes", "yes", "no", "no"], ["yes", "no", "yes", "yes"]
    assert measured("classification", wanted, given)["f1"] == pytest.approx(2 / 5)
    # A third label among the predictions is an error like any other.
    assert measured("classification", ["a", "b"], ["c", "b"])["f1"] == 1


def test_a_classifier_that_always_says_the_same_has_no_correlation() -> None:
    scores = measured("classification", ["a", "b", "b", "b"], ["b"] * 4)
    assert scores["matthews"] == 0
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx(6 / 7 / 2)


def test_similarity_agrees_with_scipy() -> None:
    wanted = RNG.integers(0, 6, 200).astype(float).tolist()  # many ties
    given = (np.asarray(wanted) + RNG.normal(size=200)).round(1).tolist()
    expected = {
        "pearson": stats.pearsonr(wanted, given).statistic,
        "spearman": stats.spearmanr(wanted, given).statistic,
    }
    assert measured("similarity", wanted, given) == pytest.approx(expected, abs=1e-9)


def test_constant_scores_correlate_with_nothing() -> None:
    assert measured("similarity", [1.0, 2.0, 3.0], [0.1] * 3) == {"pearson": 0, "spearman": 0}


def test_multiple_choice() -> None:
    scores = score("multiple_choice", examples_of([0, 1, 1]), [0, 0, 1])
    np.testing.assert_array_equal(scores["accuracy"], [1, 0, 1])


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
@pytest.mark.parametrize(
    "tags",
    [["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ["NOUN", "VERB", "CCONJ", "SCONJ", "ADP", "X"]],
    ids=("bio", "pos"),
)
def test_tagging_agrees_with_seqeval(tags: list[str]) -> None:
    lengths = RNG.integers(1, 12, 60)
    wanted = [tuple(RNG.choice(tags, n).tolist()) for n in lengths]
    given = [tuple(RNG.choice(tags, n).tolist()) for n in lengths]
    flat = [[tag for sentence in side for tag in sentence] for side in (wanted, given)]
    expected = {
        "f1": seqeval_f1([list(one) for one in wanted], [list(one) for one in given]),
        "accuracy": metrics.accuracy_score(*flat),
    }
    assert measured("tagging", wanted, given) == pytest.approx(expected, abs=1e-9)


def test_spans_are_counted_as_conll_does() -> None:
    # An I- without a B- opens a span; of two spans that touch, only one is found.
    assert span_f1([["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]]) == 1
    assert span_f1([["B-PER", "B-PER"]], [["B-PER", "I-PER"]]) == 0
    assert span_f1([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]) == pytest.approx(2 / 3)
    assert span_f1([["B-PER"]], [["O"]]) == 0


def test_a_missing_seqeval_is_reported_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    with pytest.raises(UserError, match="install `mmalign"):
        span_f1([["O"]], [["O"]])


def test_tags_without_a_prefix_are_runs() -> None:
    assert span_f1([["NOUN", "NOUN"]], [["NOUN", "NOUN"]]) == 1
    # One wrong tag breaks the run of two, and the single right one is no run of the reference.
    assert span_f1([["NOUN", "NOUN"]], [["NOUN", "VERB"]]) == 0
    assert span_f1([["NOUN", "VERB", "NOUN"]], [["NOUN", "VERB", "VERB"]]) == pytest.approx(2 / 5)


# language, right answers, prediction, then exact match and F1 of SQuAD's evaluate-v1.1.py and of
# MLQA's mlqa_evaluation_v1.py, which these two scripts computed.
ANSWERS = [
    ("en", ["the old lighthouse", "lighthouse keeper"], "An old “lighthouse” keeper!", 0, 2 / 5, 0, 4 / 5),
    ("en", ["42 kg"], "about 42 kg, or so", 0, 4 / 7, 0, 4 / 7),
    ("en", ["The Red  Mill"], "red mill.", 1, 1, 1, 1),
    ("en", ["The"], "a", 1, 0, 1, 0),
    ("es", ["la casa de los vientos"], "¿Casa de vientos?", 0, 1 / 2, 1, 1),
    ("es", ["el 3 de mayo"], "3 de mayo del año", 0, 2 / 3, 0, 3 / 4),
    ("de", ["dem alten Turm"], "Der alte Turm, einem alten Turm", 0, 4 / 9, 0, 2 / 3),
    ("vi", ["những chiếc thuyền của làng"], "thuyền làng chài", 0, 1 / 2, 0, 4 / 5),
    ("ar", ["المدينة القديمة"], "مدينة قديمة جدا", 0, 0, 0, 4 / 5),
    ("ar", ["سالم الصغير"], "سم صغير،", 0, 0, 0, 2 / 5),
    ("hi", ["नीला पहाड़"], "नीला, पहाड़।", 0, 1 / 2, 1, 1),
    ("hi", ["नदी के पास", "नदी"], "बड़ी नदी के किनारे", 0, 4 / 7, 0, 4 / 7),
    ("zh", ["蓝色的山 Alpha 7号"], "《蓝色》山alpha 7", 0, 0, 0, 5 / 6),
    ("zh", ["一九八四年"], "一九八四", 0, 0, 0, 8 / 9),
    ("zh", ["北方"], "南极", 0, 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: f"{case[0]}: {case[2]}")
def test_answers_score_as_in_the_published_scorers(
    case: tuple[str, list[str], str, float, float, float, float],
) -> None:
    lang, texts, prediction, *expected = case
    right = tuple(Answer(text, 0) for text in texts)
    names = ("exact_match", "f1", "mlqa_exact_match", "mlqa_f1")
    for code in (lang, f"{lang}-XX"):
        scores = measured("span_qa", [right], [prediction], code)
        assert scores == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-9)


def test_mlqa_has_rules_for_seven_languages_only() -> None:
    scores = measured("span_qa", [(Answer("старый маяк", 3),)], ["старый, старый маяк"], "ru")
    assert scores == pytest.approx({"exact_match": 0, "f1": 4 / 5})


def test_retrieval_by_hand() -> None:
    targets = [("a",), ("b",), ("c", "d"), ("x",)]
    ranked = [("a", "b"), ("a", "b"), ("c", "a", "d"), ("a", "b", "c")]
    scores = score("retrieval", examples_of(targets), ranked)
    np.testing.assert_array_equal(scores["accuracy"], [1, 0, 1, 0])
    np.testing.assert_allclose(scores["mrr@20"], [1, 1 / 2, 1, 0])
    np.testing.assert_allclose(scores["map@20"], [1, 1 / 2, (1 + 2 / 3) / 2, 0])


def test_average_precision_agrees_with_scikit_learn() -> None:
    for _ in range(20):
        ids = [str(i) for i in RNG.permutation(15)]
        right = set(RNG.choice(ids, 4, replace=False).tolist())
        truth = [one in right for one in ids]
        expected = metrics.average_precision_score(truth, -np.arange(15))
        assert average_precision(right, ids) == pytest.approx(expected, abs=1e-9)


def test_average_precision_looks_at_twenty_and_divides_by_no_more() -> None:
    ids = [str(i) for i in range(40)]
    assert average_precision(set(ids[:30]), ids) == 1
    assert average_precision({"20"}, ids) == 0
    assert average_precision({"19"}, ids) == reciprocal_rank({"19"}, ids) == 1 / 20
    assert average_precision({"19"}, ()) == reciprocal_rank({"19"}, ()) == 0


@pytest.mark.parametrize("right", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_expected_average_precision_is_the_mean_over_all_orders(right: int, k: int) -> None:
    ids = "abcde"
    every = [average_precision(set(ids[:right]), order, k) for order in permutations(ids)]
    assert expected_average_precision(right, len(ids), k) == pytest.approx(np.mean(every))


def test_chance_of_each_kind() -> None:
    assert chance("classification", examples_of(["a", "b", "b"])) == 2 / 3
    choices = [Example("0", "en", ("q", *"ab"), 0), Example("1", "en", ("q", *"abcd"), 3)]
    assert chance("multiple_choice", choices) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert chance("retrieval", examples_of([("a",), ("b",)]), candidates=1) == 1
    harmonic = sum(1 / place for place in range(1, 21))
    assert chance("retrieval", examples_of([("a",)]), 1000) == pytest.approx(harmonic / 1000)
    assert chance("retrieval", examples_of([("a",)])) == 0
    assert chance("tagging", examples_of([("O",)])) == 0


def test_every_kind_has_its_primary_metric() -> None:
    answer = (Answer("x", 0),)
    causality = Causality((Event(0, 0, 1), Event(0, 2, 3)), (EventPair(0, 1, True),))
    cases: dict[Kind, tuple[list[Target], list[Prediction]]] = {
        "classification": (["a", "b"], ["a", "b"]),
        "similarity": ([1.0, 2.0], [1.0, 2.0]),
        "multiple_choice": ([0], [0]),
        "tagging": ([("B-X",)], [("B-X",)]),
        "span_qa": ([answer], ["x"]),
        "retrieval": ([("a",)], [("a",)]),
        "event_causality": ([causality], [(True,)]),
    }
    assert cases.keys() == PRIMARY.keys()
    for kind, (targets, predictions) in cases.items():
        assert measured(kind, targets, predictions)[PRIMARY[kind]] == pytest.approx(1)


def test_a_prediction_too_few_is_no_score() -> None:
    with pytest.raises(AssertionError):
        score("classification", examples_of(["a", "b"]), ["a"])
