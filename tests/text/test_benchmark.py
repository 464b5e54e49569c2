"""Suites of text tasks on invented data: what is on disk is measured, and what is missing is reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.config import load_config, validate
from mmalign.core.errors import UserError
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.protocol import sentence
from mmalign.results.results import Results, read_results
from mmalign.text.benchmark import BenchmarkConfig, run_benchmark
from mmalign.text.benchmark_tasks import GroupConfig, read_group
from mmalign.text.fit import fit
from mmalign.text.fit_loop import Fitted
from mmalign.text.tasks.task import Example

ROOT = Path(__file__).parents[2]
FIT = {"trainable": "head", "epochs": 1, "batch_size": 4, "precision": "fp32"}
LABELS = ("contradiction", "entailment", "neutral")
SENTENCES = {
    "sw": ("mpira mwekundu", "mbwa", "paka analala", "kiti kijani"),
    "de": ("ein roter Ball", "ein Hund", "die Katze", "ein Stuhl", "grün"),
}
ENGLISH = ("a red ball", "a dog", "the cat sleeps", "a green chair", "green")


def write(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def pairs(count: int) -> list[tuple[str, str, str]]:
    return [(f"ball {i} dog", f"cat {i}", LABELS[i % 3]) for i in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MultiNLI, XNLI (6 rows in English and German), RTE and Tatoeba, a few rows of each."""
    root = tmp_path_factory.mktemp("data")
    names = "sentence1\tsentence2\tgold_label\tpairID"
    rows = [f"{a}\t{b}\t{label}\t{i}" for i, (a, b, label) in enumerate(pairs(9))]
    write(root / "mnli/MNLI/train.tsv", names, *rows)
    write(root / "mnli/MNLI/dev_matched.tsv", names, *rows[:3])
    rows = [
        f"{lang}\t{a}\t{b}\t{label}\t{i}"
        for lang in ("de", "en")
        for i, (a, b, label) in enumerate(pairs(6))
    ]
    write(root / "xnli/xnli.test.tsv", "language\tsentence1\tsentence2\tgold_label\tpairID", *rows)
    rows = [f"{i}\t{a}\t{b}\tnot_entailment" for i, (a, b, _) in enumerate(pairs(4))]
    write(root / "rte/RTE/train.tsv", "index\tsentence1\tsentence2\tlabel", *rows)
    write(root / "rte/RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel", *rows[:3])
    for lang, texts in SENTENCES.items():
        lines = [f"{text}\t{english}" for text, english in zip(texts, ENGLISH, strict=False)]
        write(root / f"tatoeba/{lang}-en.tsv", "text\tenglish", *lines)
    return root


def nli(data: Path, **test: Any) -> dict[str, Any]:
    published = {"metrics": ["accuracy"], "sizes": 6}
    one = {"name": "xnli", "folder": f"{data}/xnli", "format": "xnli", "languages": ["de", "en"]}
    return {
        "name": "nli",
        "train": {"folder": f"{data}/mnli", "format": "mnli"},
        "fit": FIT,
        "tests": [{**one, "published": published, **test}],
    }


def tatoeba(data: Path, **test: Any) -> dict[str, Any]:
    one = {"name": "tatoeba", "folder": f"{data}/tatoeba", "format": "tatoeba", "reverse": True}
    sizes = {"metrics": ["accuracy"], "sizes": {"sw": 4, "de": 5}}
    return {
        "name": "retrieval",
        "tests": [{**one, "languages": ["sw", "de"], "published": sizes, **test}],
    }


def suite(*groups: dict[str, Any], **fields: Any) -> BenchmarkConfig:
    return validate(BenchmarkConfig, {"name": "small", "groups": list(groups), **fields}, "x.yaml")


def measured(run: Path, out: Path, *groups: dict[str, Any], **fields: Any) -> Results:
    return run_benchmark(suite(*groups, **fields), str(run), out)


@pytest.fixture(scope="module")
def complete(
    data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, Path]:
    """Both groups, with predictions and the average; nothing is missing."""
    out = tmp_path_factory.mktemp("out")
    groups = (nli(data), tatoeba(data))
    return measured(run, out, *groups, predictions=True, average=True), out


def test_both_groups_are_in_one_file(complete: tuple[Results, Path]) -> None:
    results, out = complete
    names = {f"text/xnli/{lang}/clean/accuracy" for lang in ("de", "en", "mean", "published")}
    names |= {f"text/tatoeba/{lang}/clean/accuracy" for lang in ("de", "sw", "mean", "published")}
    assert names <= results.metrics.keys() == results.counts.keys()
    assert read_results(out / "results.json") == results
    assert results.model["seeds"] == [0] and results.model["sha256"]


def test_the_published_mean_counts_english(complete: tuple[Results, Path]) -> None:
    metrics = complete[0].metrics
    de, en, mean, published = (
        metrics[f"text/xnli/{lang}/clean/accuracy"] for lang in ("de", "en", "mean", "published")
    )
    assert (mean, published) == (de, pytest.approx((de + en) / 2))
    both = published, metrics["text/tatoeba/published/clean/accuracy"]
    assert metrics["text/small/published/clean/average"] == pytest.approx(sum(both) / 2)


def test_the_protocol_reports_what_was_found(complete: tuple[Results, Path]) -> None:
    protocol = complete[0].protocol
    as_published = "Tests as published: 2 of 2 languages; published size in 2."
    assert sentence(protocol["text/xnli"]).endswith(as_published)
    assert "Training a linear head on a fixed tower" in sentence(protocol["text/xnli"])
    assert sentence(protocol["text/tatoeba"]).startswith(
        "Nothing was trained: each candidate looks"
    )
    assert sentence(protocol["text/small"]).startswith("Mean of the scores of 2 tasks")


def test_predictions_are_in_the_folders_of_xtreme(complete: tuple[Results, Path]) -> None:
    folder = complete[1] / "predictions"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.tsv")}
    assert found == {
        "xnli/test-de.tsv",
        "xnli/test-en.tsv",
        "tatoeba/test-de.tsv",
        "tatoeba/test-sw.tsv",
    }
    labels = (folder / "xnli/test-de.tsv").read_text().split()
    right = sum(label == LABELS[i % 3] for i, label in enumerate(labels))
    assert right / 6 == pytest.approx(complete[0].metrics["text/xnli/de/clean/accuracy"])
    lines = (folder / "tatoeba/test-de.tsv").read_text().split()
    # One line per sentence of the sorted English file: the number of its line in the unsorted file.
    right = sum(
        ENGLISH[int(line)] == english for line, english in zip(lines, sorted(ENGLISH), strict=True)
    )
    assert right / 5 == pytest.approx(complete[0].metrics["text/tatoeba/de/clean/accuracy"])


def test_a_task_that_is_missing_is_named_and_not_scored(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = nli(data, name="gone", folder="nowhere")
    untrained = {**nli(data, name="untrained"), "train": {"folder": "no_train", "format": "mnli"}}
    results = measured(run, tmp_path, tatoeba(data), gone, untrained, average=True)
    shown = capsys.readouterr().out
    assert sentence(results.protocol["text/gone"]).startswith(
        "Skipped: nowhere: no such task folder"
    )
    assert "training files are missing (no_train" in sentence(results.protocol["text/untrained"])
    assert "skipped gone: nowhere" in shown and "skipped untrained: the training" in shown
    assert {name.split("/")[1] for name in results.metrics} == {"tatoeba"}
    assert sentence(results.protocol["text/small"]) == (
        "No average: 1 of 3 tasks were measured as published."
    )


def test_deviations_from_what_is_published_are_reported(
    data: Path, run: Path, tmp_path: Path
) -> None:
    sizes = {"sw": 4, "de": 1000}
    test = {"languages": ["sw", "de", "fr"], "published": {"metrics": ["accuracy"], "sizes": sizes}}
    results = measured(run, tmp_path, tatoeba(data, **test))
    assert sentence(results.protocol["text/tatoeba"]).endswith(
        "Tests not as published: 2 of 3 languages; missing: fr; published size in 1; de 5 of 1000."
    )
    assert not any("/published/" in name for name in results.metrics)


def test_dev_instead_of_a_test_is_reported(data: Path, run: Path, tmp_path: Path) -> None:
    text = (data / "xnli/xnli.test.tsv").read_text(encoding="utf-8")
    write(tmp_path / "xnli/xnli.dev.tsv", *text.splitlines())
    group = nli(data, folder=f"{tmp_path}/xnli", languages=["de"])
    results = measured(run, tmp_path / "out", group)
    assert "dev instead of test: de" in sentence(results.protocol["text/xnli"])
    assert "text/xnli/published/clean/accuracy" not in results.metrics


def test_no_data_at_all_is_one_sentence(data: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none of its data are there; .* to no_train, nowhere"
    ) as e:
        group = nli(data, folder="nowhere")
        measured(
            run, tmp_path / "out", {**group, "train": {"folder": "no_train", "format": "mnli"}}
        )
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_broken_file_is_an_error(data: Path, run: Path, tmp_path: Path) -> None:
    write(tmp_path / "xnli/xnli.test.tsv", "language\tsentence1", "de\tHund")
    with pytest.raises(UserError, match=r"xnli\.test\.tsv"):
        measured(run, tmp_path, tatoeba(data), nli(data, folder=f"{tmp_path}/xnli"))


def test_seeds_are_a_mean_of_what_was_trained(data: Path, run: Path, tmp_path: Path) -> None:
    group = nli(data)
    group["fit"] = {**FIT, "trainable": "all", "lr": 1e-2}
    results = measured(run, tmp_path, group, tatoeba(data), seeds=[0, 1], predictions=True)
    assert sentence(results.protocol["text/xnli"]).endswith("Mean of seeds: 2.")
    assert sentence(results.protocol["text/tatoeba"]).startswith("Nothing was trained")
    assert (tmp_path / "predictions/seed-1/xnli/test-de.tsv").is_file()


def test_the_untrained_model_is_a_baseline(data: Path, run: Path, tmp_path: Path) -> None:
    results = run_benchmark(suite(tatoeba(data)), str(run), tmp_path, untrained=True)
    baseline = results.baselines["untrained"]
    assert baseline.metrics.keys() == results.metrics.keys()
    assert baseline.model["sha256"] != results.model["sha256"]


def read(tree: dict[str, Any]) -> Any:
    return read_group(validate(GroupConfig, tree, "x.yaml"))


def test_splits_are_put_together_under_labels_and_ids_of_their_own(data: Path) -> None:
    """RTE as a test of MultiNLI: all of it, and its row numbers are not those of MultiNLI."""
    group = nli(data, name="rte", folder=f"{data}/rte", format="rte", splits=["train", "dev"])
    test = {**group["tests"][0], "languages": ["en"], "merge": dict.fromkeys(LABELS[::2], "no")}
    ((_, task),) = read({**group, "tests": [{**test, "relabel": {"not_entailment": "no"}}]}).tests
    assert [one.id for one in task.tests["en"]] == [
        *(f"rte-train-{i}" for i in range(1, 5)),
        *(f"rte-dev-{i}" for i in range(1, 4)),
    ]
    assert {one.target for one in task.tests["en"]} == {"no"}
    assert task.dev["en"][0].id == "dev-0"


def test_no_tested_example_chooses_the_weights(data: Path) -> None:
    test = {"name": "matched", "folder": f"{data}/mnli", "format": "mnli", "splits": ["dev"]}
    assert len(read(nli(data)).training.dev["en"]) == 3
    assert read({**nli(data), "choose_on_dev": False}).training.dev == {}
    assert read({**nli(data), "tests": [*nli(data)["tests"], test]}).training.dev == {"en": []}


def test_reversed_retrieval_looks_for_the_queries(data: Path) -> None:
    ((_, task),) = read(tatoeba(data)).tests
    assert task.tests["sw"][0] == Example("sw-en-1", "en", ("a red ball",), ("sw-1",))
    assert task.candidates["sw"][0] == Example("sw-1", "sw", ("mpira mwekundu",), ("sw-1",))


def test_a_stage_before_changes_the_tower(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers: list[TextEncoder] = []

    def noted(tower: TextEncoder, *arguments: Any) -> Fitted:
        towers.append(tower)
        return fit(tower, *arguments)

    monkeypatch.setattr("mmalign.text.benchmark.fit", noted)
    stage = {"train": nli(data)["train"], "fit": {**FIT, "trainable": "all", "lr": 1e-2}}
    results = measured(run, tmp_path, {**nli(data), "before": stage})
    assert "Before that the tower was fine-tuned on" in sentence(results.protocol["text/xnli"])
    first, second = (tower.encode(ENGLISH) for tower in towers)
    assert abs(first - second).max() > 1e-3


def test_sequences_end_where_the_places_of_the_model_do(
    data: Path, run: Path, tmp_path: Path
) -> None:
    results = measured(run, tmp_path, {**tatoeba(data), "max_length": 100})
    assert "Cut at 64 tokens, not 100" in sentence(results.protocol["text/tatoeba"])
    assert load_text_encoder(str(run)).max_length == 32


def test_a_shared_pool_is_embedded_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAReQA has one pool for all languages."""
    answers = [{"text": "red", "answer_start": 2}]
    for lang in ("en", "de"):
        paragraph = {
            "context": "A red ball. A dog.",
            "sentence_breaks": [[0, 11], [12, 18]],
            "qas": [{"id": "q", "question": "What?", "answers": answers}],
        }
        write(
            tmp_path / f"xquad-r/{lang}.json", json.dumps({"data": [{"paragraphs": [paragraph]}]})
        )
    encoded: list[int] = []
    encode = TextEncoder.encode

    def count(tower: TextEncoder, texts: Any, **settings: Any) -> Any:
        encoded.append(len(texts))
        return encode(tower, texts, **settings)

    monkeypatch.setattr(TextEncoder, "encode", count)
    test = {"name": "lareqa", "folder": str(tmp_path), "format": "lareqa"}
    results = measured(run, tmp_path / "out", {"name": "g", "tests": [test]})
    assert sorted(encoded) == [1, 1, 4]
    assert results.counts["text/lareqa/de/clean/map@20"] == 1


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ({"fit": FIT}, "give both `train` and `fit`, or neither"),
        ({"train": {"folder": "x", "format": "mnli"}}, "give both `train` and `fit`"),
        ({"tests": [{"name": "a", "folder": "x", "format": "xnil"}]}, r"format` is 'xnil'"),
        ({"tests": [{"name": "small", "folder": "x"}]}, "or one has that of the suite"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(group: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        suite({"name": "g", "tests": [{"name": "a", "folder": "x"}], **group})


def test_labels_without_training_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="holds classification examples, which need `train`"):
        read({"name": "g", "tests": nli(data)["tests"]})


@pytest.mark.parametrize(("name", "tests"), [("xtreme_r", 11), ("glue_x", 22)])
def test_the_shipped_suites_are_valid(name: str, tests: int) -> None:
    config = load_config(BenchmarkConfig, ROOT / "eval" / f"{name}.yaml")
    every = [test for group in config.groups for test in group.tests]
    assert len(every) == tests
    for test in every:
        sizes = test.published.sizes if test.published else None
        if isinstance(sizes, dict):
            assert set(sizes) <= set(test.languages or ()), test.name
