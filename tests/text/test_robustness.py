"""Perturbed and attacked tests: counted by hand, on the rows that change."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_cases import LABELS, WORDS, attack_of, examples_of, learnt, measured, words_task
from text_tasks import in_language, task_of

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.heads.base import TaskModel
from mmalign.text.measure import TestConfig as MeasureConfig  # pytest collects `Test...`
from mmalign.text.measure import measure
from mmalign.text.perturbations.characters import CharactersConfig
from mmalign.text.perturbations.perturb import perturb
from mmalign.text.robustness import merged_classifier
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example, Task, row_ids


def test_perturbed_numbers_are_those_of_the_perturbed_texts(tower: TextEncoder) -> None:
    task = words_task("en", "de")
    fitted = learnt(tower, task)
    noise = {"kind": "characters", "severity": 5}
    results = measured(fitted, task, tower, perturbations=[noise], draws=3, perturbation_seed=7)
    rows = task.tests["de"]
    has_letters = [any(map(str.isalpha, one.texts[0])) for one in rows]
    assert has_letters.count(False) == 1  # a number stays as it is, and does not count
    hits = np.array([_hits(fitted.model, rows, draw, seed=7) for draw in range(3)])[:, has_letters]
    name = "text/toy/de/characters-5/accuracy"
    assert 0 < hits.mean() < 1
    assert results.metrics[name] == pytest.approx(hits.mean())
    assert results.metrics[f"{name}_worst"] == hits.min(0).mean()
    right = [one.target == p for one, p in zip(rows, fitted.model.predict(rows), strict=True)]
    clean = np.mean(np.array(right)[has_letters])
    assert results.metrics[f"{name}_drop"] == pytest.approx(clean - hits.mean())
    assert results.metrics[f"{name}_clean"] == clean
    assert results.chance[name] == 4 / 7
    others = [
        measured(fitted, task, tower, perturbations=[noise], draws=3, perturbation_seed=seed)
        for seed in (8, 9, 10)
    ]
    assert len({one.metrics[name] for one in (results, *others)}) > 1


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
    found = results.ids_of(name("accuracy"))
    assert found is not None and found.tolist() == row_ids(rows).tolist()
    assert results.metrics[name("changed_share")] == pytest.approx(1 / 3)
    assert results.counts[name("changed_share")] == 60
    assert not [one for one in results.metrics if "/mean/surface" in one]  # 20 rows are too few
    assert left_out == {"surface_punctuation_removed-2": {"de": 20, "sw": 20}}


def test_perturbed_tests_can_be_a_sample_of_the_changed_rows(tower: TextEncoder) -> None:
    task = many_words("de", "sw")
    noise = [{"kind": "characters"}, {"kind": "surface", "edit": "punctuation_removed"}]
    fitted = learnt(tower, task, batch_size=8)
    for size, is_mean in ((5, False), (52, True)):
        results = measured(fitted, task, tower, perturbations=noise, perturbed=size)
        assert results.counts["text/toy/de/characters-2/accuracy"] == size
        name = "text/toy/de/surface_punctuation_removed-2"
        assert results.counts[f"{name}/accuracy"] == min(size, 20)
        assert results.counts["text/toy/de/clean/accuracy"] == 60
        mean = "text/toy/mean/characters-2/accuracy_worst"
        assert results.counts.get(mean) == (2 * size if is_mean else None)


def test_code_mixing_leaves_out_the_language_of_training(
    tower: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(fitted.model, "predict", remember)
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
