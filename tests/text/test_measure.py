"""Every kind of task is learnt and measured; noisy, attacked and mixed tests are counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_tasks import fit_config, in_language, task_of

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.fit import Fitted, fit
from mmalign.text.heads.base import TaskModel
from mmalign.text.measure import TestConfig as MeasureConfig  # pytest collects `Test...`
from mmalign.text.measure import add_generalised, check_tests, measure, mixed_pairs
from mmalign.text.perturbations.characters import CharactersConfig
from mmalign.text.perturbations.perturb import perturb
from mmalign.text.robustness import merged_classifier
from mmalign.text.scores import PRIMARY, Prediction
from mmalign.text.tasks.task import Answer, Example, Target, Task
from mmalign.text.transfer import Outcome

WORDS = ("red ball", "the dog", "green chair", "the cat", "0123 456", "sleeps", "Hund", "ein Ball")
LABELS = ("animal", "thing")
PAIRS = tuple((one, other) for one in WORDS[:4] for other in WORDS[2:5])
CONTEXTS = ("a red ball and a dog", "the cat sleeps on a green chair", "a dog and a cat and a ball")


def examples_of(texts: Sequence[tuple[str, ...]], targets: Sequence[Target]) -> list[Example]:
    rows = enumerate(zip(texts, targets, strict=True))
    return [Example(str(i), "en", one, target) for i, (one, target) in rows]


def words_task(*languages: str) -> Task:
    """Every second text is about an animal."""
    targets = [LABELS[(i + 1) % 2] for i in range(len(WORDS))]
    return task_of("classification", examples_of([(w,) for w in WORDS], targets), languages)


def learnt(tower: TextEncoder, task: Task, **fields: Any) -> Fitted:
    return fit(tower, task, fit_config(**fields), seed=0)


def measured(fitted: Fitted, task: Task, reference: TextEncoder, **fields: Any) -> Results:
    results = Results("text/toy", {})
    measure(fitted, task, validate(MeasureConfig, fields, "test"), reference, results)
    return results


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
    assert fitted.model.tower is tower
    assert fitted.kept() == {"steps": 0, "kept_step": 0}
    results = measured(fitted, task, tower, perturbations=[{"kind": "words", "edit": "swap"}])
    assert len(pool) == 5  # every query finds its own text
    assert results.metrics["text/toy/sw/clean/accuracy"] == 1.0
    assert results.metrics["text/toy/sw/words_swap-2/map@20"] <= 1.0


def test_the_oracle_is_reported_beside_the_zero_shot_number(tower: TextEncoder) -> None:
    task = words_task("de", "sw")
    fitted = learnt(tower, task, epochs=1)
    for lang, values in (("de", [1.0] * 8), ("sw", [1.0, 0.0] * 4)):
        fitted.oracle[lang] = Outcome(task.tests[lang], {"accuracy": np.array(values)})
    results = measured(fitted, task, tower)
    found = {lang: f"text/toy/{lang}/clean/accuracy_oracle" for lang in ("de", "sw", "mean")}
    assert [results.metrics[found[lang]] for lang in found] == [1.0, 0.5, 0.75]
    assert [results.counts[found[lang]] for lang in found] == [8, 8, 16]
    assert results.ci95[found["sw"]][0] < 0.5


def test_perturbed_numbers_are_those_of_the_perturbed_texts(tower: TextEncoder) -> None:
    task = words_task("en", "de")
    fitted = learnt(tower, task)
    noise = {"kind": "characters", "severity": 5}
    results = measured(fitted, task, tower, perturbations=[noise], draws=3, perturbation_seed=7)
    hits = np.array([_hits(fitted.model, task.tests["de"], draw, seed=7) for draw in range(3)])
    name = "text/toy/de/characters-5/accuracy"
    assert 0 < hits.mean() < 1
    assert results.metrics[name] == pytest.approx(hits.mean())
    assert results.metrics[f"{name}_worst"] == hits.min(0).mean()
    clean = results.metrics["text/toy/de/clean/accuracy"]
    assert results.metrics[f"{name}_drop"] == pytest.approx(clean - hits.mean())
    assert results.metrics[f"{name}_clean"] == clean  # every row changes
    assert results.chance[name] == 0.5
    other = measured(fitted, task, tower, perturbations=[noise], draws=3, perturbation_seed=8)
    assert other.metrics[f"{name}_worst"] != results.metrics[f"{name}_worst"]


def _hits(model: TaskModel, examples: list[Example], draw: int, seed: int) -> list[float]:
    config = validate(CharactersConfig, {"kind": "characters", "severity": 5}, "test")
    noisy = perturb(examples, "classification", config, seed, draw)
    assert noisy is not None
    predictions = model.predict(noisy)
    return [float(one.target == p) for one, p in zip(examples, predictions, strict=True)]


def many_words(*languages: str) -> Task:
    """Sixty rows of one or two words; of each three one holds punctuation."""
    words = [f"{WORDS[i % 8]}{'!' if i % 3 == 0 else ''}" for i in range(60)]
    rows = examples_of([(one,) for one in words], [LABELS[(i + 1) % 2] for i in range(60)])
    return replace(words_task(), tests={lang: in_language(lang, rows) for lang in languages})


def test_a_language_without_the_noise_has_no_number_of_it(tower: TextEncoder) -> None:
    task = many_words("de", "ja")  # no keyboard layout of Japanese is known
    results = measured(learnt(tower, task), task, tower, perturbations=[{"kind": "keyboard"}])
    noisy = {n.split("/")[2]: v for n, v in results.metrics.items() if n.endswith("-2/accuracy")}
    assert noisy.keys() == {"de", "mean"}
    assert noisy["mean"] == noisy["de"]


def test_rows_that_the_noise_leaves_as_they_are_are_in_no_number(tower: TextEncoder) -> None:
    task = many_words("de", "sw")
    removed = {"kind": "surface", "edit": "punctuation_removed"}
    fitted = learnt(tower, task, batch_size=8)
    results = Results("text/toy", {})
    config = validate(MeasureConfig, {"perturbations": [removed]}, "test")
    left_out = measure(fitted, task, config, tower, results)
    name = "text/toy/de/surface_punctuation_removed-2/{}".format
    rows = [one for one in task.tests["de"] if "!" in one.texts[0]]
    predicted = fitted.model.predict(rows)
    bare = [replace(one, texts=(one.texts[0].strip("!"),)) for one in rows]
    for metric, given in (("accuracy_clean", predicted), ("accuracy", fitted.model.predict(bare))):
        right = [one.target == p for one, p in zip(rows, given, strict=True)]
        assert results.counts[name(metric)] == 20
        assert results.metrics[name(metric)] == pytest.approx(np.mean(right))
    numbers = results.ids[name("")[:-1]]
    ids = sorted(one.id for one in task.tests["de"])
    assert [ids[n] for n in numbers] == [one.id for one in rows]
    assert results.metrics[name("changed_share")] == pytest.approx(1 / 3)
    assert results.counts[name("changed_share")] == 60
    assert not [one for one in results.metrics if "/mean/surface" in one]  # 20 rows are too few
    assert left_out == {"surface_punctuation_removed-2": {"de": 20, "sw": 20}}


def test_perturbed_tests_can_be_a_sample_of_the_changed_rows(tower: TextEncoder) -> None:
    task = many_words("de", "sw")
    noise = [{"kind": "characters"}, {"kind": "surface", "edit": "punctuation_removed"}]
    fitted = learnt(tower, task, batch_size=8)
    for size, is_mean in ((5, False), (55, True)):
        results = measured(fitted, task, tower, perturbations=noise, perturbed=size)
        assert results.counts["text/toy/de/characters-2/accuracy"] == size
        name = "text/toy/de/surface_punctuation_removed-2"
        assert results.counts[f"{name}/accuracy"] == min(size, 20)
        assert results.counts["text/toy/de/clean/accuracy"] == 60
        mean = "text/toy/mean/characters-2/accuracy_worst"
        assert results.counts.get(mean) == (2 * size if is_mean else None)


def test_code_mixing_leaves_out_the_language_of_training(
    tower: TextEncoder, tmp_path: Path
) -> None:
    lines = {"de": "cat Katze\ndog Hund\n", "sw": "cat paka\ndog mbwa\n"}
    for lang, text in lines.items():
        (tmp_path / f"en-{lang}.txt").write_text(text, encoding="utf-8")
    rows = [
        Example(str(i), "de", ("eine Katze", "der Hund")[i % 2 :][:1], "thing") for i in range(4)
    ]
    task = replace(words_task(), tests={"de": rows})
    asked: list[str] = []

    def remember(examples: Sequence[Example]) -> list[Prediction]:
        asked.extend(one.texts[0] for one in examples)
        return ["thing"] * len(examples)

    fitted = learnt(tower, task, epochs=1)
    fitted.model.predict = remember  # type: ignore[method-assign]
    mix = {"kind": "code_mix", "severity": 5, "folder": str(tmp_path)}
    measured(fitted, task, tower, perturbations=[mix])
    assert set(asked) == {"eine Katze", "der Hund", "eine paka", "der mbwa"}
    asked.clear()
    measured(fitted, task, tower, perturbations=[{**mix, "languages": ["en"]}])
    assert set(asked) == {"eine Katze", "der Hund", "eine cat", "der dog"}


def test_two_perturbations_of_one_name_are_refused() -> None:
    noise = {"kind": "characters", "severity": 3}
    with pytest.raises(UserError, match="two perturbations have the name `characters-3`"):
        validate(MeasureConfig, {"perturbations": [noise, noise]}, "test")


def attack_of(**fields: Any) -> dict[str, Any]:
    return {"kind": "attack", "candidates": "characters", "max_words": 1.0, **fields}


def test_an_attack_breaks_what_was_right_and_counts_its_questions(tower: TextEncoder) -> None:
    task = words_task("de", "sw")
    task.tests["de"][0] = replace(task.tests["de"][0], target="animal")  # wrong before
    fitted = learnt(tower, task)
    results = measured(fitted, task, tower, attacks=[attack_of(budget=20)], attacked=5)
    attackable = {"de": 7, "sw": 7}  # no candidate changes a number
    for lang in ("de", "sw"):
        name = f"text/toy/{lang}/attack_characters"
        assert results.metrics[f"{name}/attackable_share"] == attackable[lang] / 8
        assert results.counts[f"{name}/attackable_share"] == 8
        clean = results.metrics[f"{name}/accuracy_clean"]
        after = results.metrics[f"{name}/accuracy"]
        assert after < clean == (1.0 if lang == "sw" else clean)
        assert results.metrics[f"{name}/accuracy_drop"] == pytest.approx(clean - after)
        right = round(5 * clean)
        assert results.counts[f"{name}/success_rate"] == results.counts[f"{name}/queries"] == right
        assert results.metrics[f"{name}/success_rate"] == pytest.approx((clean - after) / clean)
        assert 1 <= results.metrics[f"{name}/queries"] <= 20
        assert results.counts[f"{name}/accuracy"] == 5
    assert results.counts["text/toy/de/clean/accuracy"] == len(WORDS)


def test_the_success_rate_has_a_mean_where_50_rows_are_attackable(tower: TextEncoder) -> None:
    task = many_words("de", "sw")
    task.tests["sw"] = task.tests["sw"][:40]
    results = measured(learnt(tower, task), task, tower, attacks=[attack_of(budget=4)])
    for metric in ("accuracy", "success_rate", "queries"):
        one, mean = (f"text/toy/{lang}/attack_characters/{metric}" for lang in ("de", "mean"))
        assert results.metrics[mean] == results.metrics[one]
        assert results.counts[mean] == results.counts[one]


def test_an_attack_knows_the_labels_that_the_tests_merge(tower: TextEncoder) -> None:
    labels = ("animal", "plant", "thing")
    rows = examples_of([(w,) for w in WORDS], [labels[i % 3] for i in range(len(WORDS))])
    merge = {"animal": "living", "plant": "living"}
    task = task_of("classification", rows, ("de",), merge=merge)
    tested = [replace(one, target=merge.get(str(one.target), one.target)) for one in rows]
    task = replace(task, tests={"de": in_language("de", tested)})
    fitted = learnt(tower, task)
    results = measured(fitted, task, tower, attacks=[attack_of(budget=20)])
    name = "text/toy/de/attack_characters"
    clean, drop = (results.metrics[f"{name}/accuracy_{end}"] for end in ("clean", "drop"))
    assert drop > 0 and results.metrics[f"{name}/success_rate"] == pytest.approx(drop / clean)
    known, predict = merged_classifier(fitted.model, task)  # type: ignore[arg-type]
    assert known == ["living", "thing"]
    best = [known[i] for i in predict(task.tests["de"]).argmax(1)]
    predicted = [merge.get(str(p), p) for p in fitted.model.predict(task.tests["de"])]
    assert best == predicted


class _Judge(TextEncoder):
    """A tower for which every two texts are as similar; it remembers what it was asked."""

    asked: int = 0

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        self.asked += len(texts)
        return np.ones((len(texts), 2), np.float32)


@pytest.mark.parametrize(("least", "breaks"), [(0.99, True), (1.01, False)])
def test_the_reference_judges_how_similar_a_text_still_is(
    tower: TextEncoder, least: float, breaks: bool
) -> None:
    task = words_task("de")
    judge = _Judge(tower.trunk, tower.tokenizer)
    results = measured(learnt(tower, task), task, judge, attacks=[attack_of(min_similarity=least)])
    assert judge.asked > 0
    assert (results.metrics["text/toy/de/attack_characters/accuracy"] < 1.0) == breaks


def test_an_attack_without_a_dictionary_of_the_language_is_left_out(
    tower: TextEncoder, tmp_path: Path
) -> None:
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\ncat\tKatze\n", encoding="utf-8")
    task = words_task("en", "sw")
    one = attack_of(candidates="code_mix", folder=str(tmp_path))
    results = measured(learnt(tower, task), task, tower, attacks=[one])
    there = {name.split("/")[2] for name in results.metrics if "attack_code_mix" in name}
    assert there == {"en"}


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
