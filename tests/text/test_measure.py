"""Every kind of task is learnt and measured; tests in two languages are counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from measure_cases import (
    CONTEXTS,
    LABELS,
    PAIRS,
    WORDS,
    attack_of,
    examples_of,
    learnt,
    measured,
    words_task,
)
from text_tasks import in_language, task_of

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.measure import TestConfig as MeasureConfig  # pytest collects `Test...`
from mmalign.text.measure import add_generalised, check_tests, measure, mixed_pairs
from mmalign.text.scores import PRIMARY, Prediction
from mmalign.text.tasks.task import Answer, Example, Task
from mmalign.text.transfer import Outcome

KINDS: dict[str, Task] = {
    "pairs": task_of("classification", examples_of(PAIRS, [LABELS[a == b] for a, b in PAIRS])),
    "similarity": task_of(
        "similarity", examples_of(PAIRS, [float(len(a) - len(b)) for a, b in PAIRS])
    ),
    "choice": task_of(
        "multiple_choice",
        # The choice that repeats the context, the first of two or the last of three.
        examples_of(
            [
                *((word, word, "mpira") for word in WORDS[::2]),
                *((word, "mpira", "na mbwa", word) for word in WORDS[1::2]),
            ],
            [0] * 4 + [2] * 4,
        ),
    ),
    "tagging": task_of(
        "tagging",
        examples_of(
            [tuple(one.split()) for one in CONTEXTS],
            [
                tuple("B-X" if w in ("ball", "dog", "cat", "chair") else "O" for w in one.split())
                for one in CONTEXTS
            ],
        ),
    ),
    "span_qa": task_of(
        "span_qa",
        examples_of(
            [(word, one) for one in CONTEXTS for word in ("red", "cat", "dog") if word in one],
            [
                (Answer(word, one.index(word)),)
                for one in CONTEXTS
                for word in ("red", "cat", "dog")
                if word in one
            ],
        ),
    ),
}


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("pairs", "joint"),
        ("pairs", "separate"),
        ("similarity", "separate"),
        ("choice", "joint"),
        ("tagging", "joint"),
        ("span_qa", "joint"),
    ],
)
def test_every_kind_of_task_is_learnt_and_measured(
    tower: TextEncoder, kind: str, pairs: str
) -> None:
    task = KINDS[kind]
    metric = PRIMARY[task.kind]
    tests = {"perturbations": [{"kind": "characters"}]}
    fitted = learnt(tower, task, pairs=pairs, trainable="all", head_lr=0.03)
    results = measured(fitted, task, tower, **tests)
    name = f"text/toy/de/clean/{metric}"
    assert results.metrics[name] > 0.9 > results.chance[name]
    assert results.metrics[f"text/toy/mean/clean/{metric}"] == results.metrics[name]
    assert f"text/toy/de/characters-2/{metric}_drop" in results.metrics
    assert results.metrics.keys() == results.counts.keys()


def retrieval_task() -> Task:
    """Four queries, each with the number of its candidate among five; other texts than the training's."""
    candidates = ("ein roter Ball", "ein Hund", "赤いボール", "мяч", "na mbwa")
    pool = [Example(str(i), "de", (text,), (str(i),)) for i, text in enumerate(candidates)]
    queries = [
        Example(f"q{i}", "en", (text,), (str(i),)) for i, text in enumerate(WORDS[: len(pool) - 1])
    ]
    pairs = zip(queries, candidates, strict=False)
    train = [replace(one, texts=(*one.texts, text)) for one, text in pairs]
    tests = {lang: in_language(lang, queries) for lang in ("en", "sw")}
    return Task("toy", "retrieval", "en", (), train, {}, tests, dict.fromkeys(tests, pool))


def test_retrieval_is_learnt_and_searches_all_candidates(tower: TextEncoder) -> None:
    task = retrieval_task()
    task = replace(task, dev={"en": task.tests["en"]})
    results = measured(learnt(tower, task, trainable="lora", lr=0.01), task, tower)
    assert results.metrics["text/toy/sw/clean/map@20"] == 1.0
    assert results.chance["text/toy/sw/clean/map@20"] == pytest.approx(
        sum(1 / i for i in range(1, 6)) / 5
    )


def test_retrieval_without_training_searches_with_the_tower_as_it_is(tower: TextEncoder) -> None:
    task = replace(retrieval_task(), train=[])
    texts = [one.texts[0] for one in task.tests["sw"]]
    pool = task.candidates["sw"] = [
        Example(str(i), "sw", (text,), ()) for i, text in enumerate([*texts, "na mbwa"])
    ]
    fitted = learnt(tower, task, trainable="all")
    assert fitted.model.tower.trunk is tower.trunk
    assert fitted.kept() == {"steps": 0, "kept_step": 0}
    results = measured(fitted, task, tower, perturbations=[{"kind": "words", "edit": "swap"}])
    assert len(pool) == 5  # every query finds its own text
    assert results.metrics["text/toy/sw/clean/accuracy"] == 1.0
    assert results.metrics["text/toy/sw/words_swap-2/map@20"] <= 1.0


def test_the_oracle_is_reported_beside_the_zero_shot_number(tower: TextEncoder) -> None:
    task = words_task("de", "sw")
    fitted = replace(learnt(tower, task, epochs=1), oracle={})
    for lang, values in (("de", [1.0] * 8), ("sw", [1.0, 0.0] * 4)):
        fitted.oracle[lang] = Outcome(task.tests[lang], {"accuracy": np.array(values)})
    results = measured(fitted, task, tower)
    found = {lang: f"text/toy/{lang}/clean/accuracy_oracle" for lang in ("de", "sw", "mean")}
    assert [results.metrics[found[lang]] for lang in found] == [1.0, 0.5, 0.75]
    assert [results.counts[found[lang]] for lang in found] == [8, 8, 16]
    assert results.ci95[found["sw"]][0] < 0.5
    # A mean over fewer languages than the zero-shot one would stand beside it.
    del fitted.oracle["sw"]
    assert found["mean"] not in measured(fitted, task, tower).metrics


class _Equal:
    """Instead of a model: two texts mean the same where they are the same."""

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return [LABELS[one.texts[0] == one.texts[1]] for one in examples]


def aligned_task() -> Task:
    """Pairs in three languages; German has another label in row 2, Swahili other words everywhere."""
    english = examples_of(
        [("cat", "cat"), ("dog", "dog"), ("cat", "dog"), ("red", "ball")],
        ["thing", "thing", "animal", "animal"],
    )
    german = in_language("de", english)
    german[2] = replace(german[2], texts=("cat", "cat"), target="thing")
    swahili = [replace(one, lang="sw", texts=("x", "y")) for one in english]
    tests = {"en": english, "de": german, "sw": swahili}
    return Task("toy", "classification", "en", LABELS, english, {}, tests, {})


def test_pairs_in_two_languages_by_hand() -> None:
    results = Results("text/toy", {})
    add_generalised(results, _Equal(), aligned_task())  # type: ignore[arg-type]
    found = {name.split("/")[2]: (v, results.counts[name]) for name, v in results.metrics.items()}
    assert found.keys() == {f"{a}-{b}" for a, b in product(("en", "de", "sw"), repeat=2)} | {"mean"}
    assert found["en-en"] == found["de-de"] == (1.0, 4)
    assert found["sw-sw"] == (0.5, 4)
    assert found["en-de"] == found["de-en"] == (1.0, 3)  # without the row whose labels differ
    # Nothing is equal to a word of Swahili: right where the label says so.
    assert found["en-sw"] == found["sw-en"] == (0.5, 4)
    assert found["de-sw"] == found["sw-de"] == (pytest.approx(1 / 3), 3)
    mean = "text/toy/mean/generalised/accuracy"
    assert results.metrics[mean] == pytest.approx((1 + 1 + 0.5 + 0.5 + 1 / 3 + 1 / 3) / 6)
    assert results.metrics[f"{mean}_same_language"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert (results.counts[mean], results.counts[f"{mean}_same_language"]) == (20, 12)


def test_pairs_in_two_languages_may_be_a_sample_of_the_items() -> None:
    task = aligned_task()
    fitted = SimpleNamespace(model=_Equal(), oracle={})
    results = Results("text/toy", {})
    config = validate(MeasureConfig, {"generalised": True, "generalised_items": 2}, "test")
    measure(fitted, task, config, None, results)  # type: ignore[arg-type]
    assert results.counts["text/toy/en-sw/generalised/accuracy"] == 2
    assert results.counts["text/toy/sw/clean/accuracy"] == 4


def test_mixed_pairs_are_matched_by_id() -> None:
    task = aligned_task()
    backwards = replace(task, tests={**task.tests, "sw": task.tests["sw"][::-1]})
    mixed = mixed_pairs(backwards, "en", "sw")
    assert [one.texts for one in mixed] == [("cat", "y"), ("dog", "y"), ("cat", "y"), ("red", "y")]
    assert [(one.id, one.target) for one in mixed] == [
        (one.id, one.target) for one in task.tests["en"]
    ]


def test_what_cannot_be_tested_is_known_before_training() -> None:
    generalised, attacks = (
        validate(MeasureConfig, fields, "test")
        for fields in ({"generalised": True}, {"attacks": [attack_of()]})
    )
    check_tests(aligned_task(), generalised)
    check_tests(aligned_task(), attacks)
    with pytest.raises(UserError, match="`generalised` needs pairs of texts"):
        check_tests(words_task("de", "sw"), generalised)
    with pytest.raises(UserError, match="`generalised` needs pairs of texts with labels"):
        check_tests(KINDS["similarity"], generalised)
    task = aligned_task()
    for other in (
        task.tests["sw"][:-1],
        [*task.tests["sw"][:-1], replace(task.tests["sw"][0], id="9")],
    ):
        with pytest.raises(UserError, match="`en` and `sw` do not test the same rows"):
            check_tests(replace(task, tests={**task.tests, "sw": other}), generalised)
    with pytest.raises(UserError, match="need labels, and this is tagging"):
        check_tests(KINDS["tagging"], attacks)
