"""Measurements travel to the hub's two forms and come back as they were."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCardData, parse_eval_result_entries
from invented_run import measured

from mmalign.export.measurements import (
    eval_results,
    measurements,
    primary_metric,
    write_eval_results,
)
from mmalign.results.protocol import sentence
from mmalign.results.results import Results

LANGUAGES = ["de", "no", "pt-BR", "sw", "zh-Hant", "quz"]


@cache
def some_results() -> Results:
    results = measured(np.random.default_rng(0), LANGUAGES, 0.6, 40)
    results.data["emoji_scenes"] = "a" * 64
    return results


def by_key(results: Sequence[EvalResult]) -> dict[tuple[str, ...], float]:
    keys = [(one.task_type, one.dataset_name, str(one.metric_name)) for one in results]
    assert len(set(keys)) == len(keys)
    return {key: one.metric_value for key, one in zip(keys, results, strict=True)}


def test_of_every_test_the_mean_is_quoted() -> None:
    results = some_results()
    found = by_key(eval_results(results))
    name = "retrieval/emoji_scenes/mean/text_to_image/recall@1"
    key = ("text-to-image-retrieval", "emoji_scenes", "recall@1, mean")
    assert found[key] == results.metrics[name]
    key = ("zero-shot-image-classification", "things", "accuracy@1, mean")
    assert found[key] == results.metrics["zero_shot/things/mean/accuracy@1"]
    assert {key[2].partition(", ")[2] for key in found} == {"mean"}
    mean = results.metrics["alignment/emoji_scenes/mean/bitext@1"]
    assert found["bitext-mining", "emoji_scenes", "bitext@1, mean"] == mean
    assert len([key for key in found if key[0] == "bitext-mining"]) == 1
    assert not [
        key for key in found if "typos" in "".join(key) or "@5" in key[2] or "@10" in key[2]
    ]


def test_the_front_matter_of_many_languages_is_short() -> None:
    languages = [f"q{letter}{other}" for letter in "ab" for other in "abcdefg"]
    results = measured(np.random.default_rng(0), languages, 0.6, 40)
    assert 5 < len(eval_results(results)) < 15


def test_a_second_protocol_of_a_set_has_its_aggregates_alone() -> None:
    found = [
        r for r in eval_results(some_results()) if r.dataset_name == "emoji_scenes@first-caption"
    ]
    assert {one.dataset_type for one in found} == {"emoji_scenes@first-caption"}  # not merged
    assert {one.dataset_revision for one in found} == {"a" * 64}
    assert [one.metric_name for one in found] == ["recall@1, mean"] * 2


def test_the_front_matter_gives_back_what_went_in() -> None:
    found = eval_results(some_results())
    text = ModelCardData(model_name="tiny", eval_results=found).to_yaml()
    again = ModelCardData(**yaml.safe_load(text))
    assert again.model_name == "tiny" and again.eval_results is not None
    assert len(found) == len(again.eval_results) > 5
    infinite = Results(suite="s", model={})  # what is not finite is left out
    infinite.add("retrieval/scenes/mean/text_to_image/recall@1", math.nan, count=3)
    assert eval_results(infinite) == []
    assert all(one in again.eval_results for one in found)


def test_pairs_of_languages_are_in_words_and_no_language_is_its_own_pair() -> None:
    results = some_results.__wrapped__()
    results.add("alignment/emoji_scenes/pt-BR-pt-BR/bitext@1", 1.0, count=3)
    (one,) = [m for m in measurements(results) if m.name.measure == "alignment"]
    assert one.of_pairs and one.numbers["zh-Hant-pt-BR"].label.endswith("(pt-BR)")
    assert "pt-BR-pt-BR" not in [number.part for number in one.single]
    assert [low.share for low in one.lowest] == sorted(number.share for number in one.single)[:5]
    tails = [str(m.name) for m in measurements(results) if m.name.subject == "category"]
    assert tails == [f"text/category/mean/{part}/accuracy" for part in ("clean", "typos")]


def test_the_kind_of_a_text_task_shows_in_its_metrics() -> None:
    for metrics, expected in (
        ("accuracy f1 macro_f1 matthews", ("accuracy", "text-classification")),
        ("accuracy", ("accuracy", "multiple-choice")),
        ("accuracy f1", ("f1", "token-classification")),
        ("exact_match f1 mlqa_f1", ("f1", "question-answering")),
        ("accuracy mrr map@20", ("map@20", "text-ranking")),
        ("pearson spearman", ("spearman", "sentence-similarity")),
        ("mrr", None),
    ):
        assert primary_metric(set(metrics.split())) == expected


def add_task(results: Results, task: str, counts: dict[str, int]) -> None:
    for part, count in counts.items():
        for metric in ("accuracy", "macro_f1"):
            results.add(f"text/{task}/{part}/clean/{metric}", 0.25 + count / 1e5, count=count)
    results.protocol[f"text/{task}"] = {"how": "Trained on English | labels.\nMeasured in others."}


def test_a_set_with_a_place_on_the_hub_gets_its_file(tmp_path: Path) -> None:
    results = Results(suite="s", model={})
    add_task(results, "xnli", {"de": 5010, "sw": 5010, "ur": 5009, "mean": 15029})
    add_task(results, "category", {"de": 5010})
    write_eval_results(results, tmp_path)
    (path,) = (tmp_path / ".eval_results").iterdir()
    assert path.name == "xnli.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert {one.task_id for one in entries} == {"de", "sw"}  # of Urdu one example is missing
    for one in entries:
        assert one.dataset_id == "facebook/xnli"
        assert one.value == results.metrics[f"text/xnli/{one.task_id}/clean/accuracy"]
        assert one.notes == sentence(results.protocol["text/xnli"])
    types = {one.dataset_name: one.dataset_type for one in eval_results(results)}
    assert types == {"xnli": "facebook/xnli", "category": "category"}


def test_no_file_without_a_set_of_the_hub(tmp_path: Path) -> None:
    results = Results(suite="s", model={})
    add_task(results, "xnli", {"de": 300, "mean": 5010})  # a sample of it is another set
    write_eval_results(results, tmp_path)
    assert list(tmp_path.iterdir()) == []
