"""Fine-tuning from files to files: labels of one language, numbers of the others, folds, baselines, seeds."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_cases import LABELS, NAME, WORDS, config_for, right, rows_of, write_task, wrong
from tiny import SEED, tiny_model, tiny_run

from mmalign import __version__
from mmalign.core.commit import sha256_of, verify
from mmalign.core.config import load_config, read_yaml
from mmalign.core.errors import UserError
from mmalign.models.encoder import weights_sha256
from mmalign.models.load import load_text_encoder
from mmalign.results.comparison import compare
from mmalign.results.protocol import sentence
from mmalign.results.results import Results, read_results
from mmalign.text import finetune as module
from mmalign.text import robustness
from mmalign.text.finetune import FinetuneConfig, finetune, run_seed
from mmalign.text.jobs import job_of, run_job
from mmalign.text.perturbations.perturb import perturb
from mmalign.text.tasks.read import read_task
from mmalign.text.tasks.task import Example


@pytest.fixture(scope="module")
def run(run: Path) -> str:
    return str(run)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The training words, tested under another language's name."""
    return write_task(tmp_path / "task", test_de=rows_of(right))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_language_of_the_same_words_is_known_and_one_of_wrong_labels_is_not(
    run: str, tmp_path: Path
) -> None:
    tests = {"test_en": rows_of(right), "test_de": rows_of(right), "test_sw": rows_of(wrong)}
    folder = write_task(tmp_path / "task", **tests)
    out = tmp_path / "new" / "out"
    results = finetune(config_for(folder), run, out)
    assert results.metrics["text/toy/en/clean/accuracy"] == 1.0
    assert results.metrics[NAME] == 1.0
    assert results.metrics["text/toy/sw/clean/accuracy"] == 0.0
    assert results.metrics["text/toy/mean/clean/accuracy"] == 0.5
    assert results.chance["text/toy/mean/clean/accuracy"] == 0.5
    assert results.counts["text/toy/mean/clean/accuracy"] == 2 * len(WORDS)
    assert read_results(out / "results.json") == results
    assert load_config(FinetuneConfig, out / "config.yaml") == config_for(folder)


def test_results_say_how_they_came_about(run: str, task: Path, tmp_path: Path) -> None:
    write_task(task, dev_en=rows_of(right))
    tests = {"perturbations": [{"kind": "characters"}], "draws": 2}
    config = config_for(task, epochs=3, hidden=8, trainable="lora", tests=tests)
    results = finetune(config, run, tmp_path / "out")
    words = sentence(results.protocol["text/toy"])
    assert words.startswith(
        "Training a head with 8 hidden units and low-rank adapters of the tower, method plain, "
        "3 epochs, step"
    )
    assert "of 6 kept (best accuracy on `en` dev)" in words
    assert "transfer between languages, not to new items" in words
    assert "2 draws each, seed 0" in words
    assert results.model["path"] == run
    facts = {key: results.model[key] for key in ("trainable", "seed", "step", "steps")}
    assert facts == {"trainable": "lora", "seed": 0, "step": 1, "steps": 6}
    assert {"kept_step", "dev", "train_loss"} <= results.model.keys()


@pytest.mark.parametrize("trainable", ["head", "lora", "all"])
def test_the_same_configuration_writes_the_same_bytes(
    run: str, task: Path, tmp_path: Path, trainable: str
) -> None:
    tests = {"perturbations": [{"kind": "characters"}]}
    config = config_for(task, trainable=trainable, epochs=2, tests=tests)
    out = tmp_path / "out"
    finetune(config, run, out)
    first = contents(out)
    _, model = run_seed(load_text_encoder(run), read_task(config.task), config, seed=0)
    finetune(config, run, out)  # replaces what is there
    second = contents(out)
    for files in (first, second):  # the manifest has the time of writing
        assert files.pop("tower/MANIFEST.json")
    assert first == second
    assert {"results.json", "config.yaml", "tower/head.safetensors"} <= first.keys()
    facts = verify(out / "tower")
    assert facts["task"] == "toy" and facts["code"]["version"] == __version__
    assert facts["base_model"] is None, "it was a folder"
    (data,) = facts["data"]
    assert data["folder"] == str(task) and data["files"].keys() == {p.name for p in task.iterdir()}
    assert all(sha256_of(task / name) == sha256 for name, sha256 in data["files"].items())
    assert json.loads((out / "tower" / "head.json").read_text())["labels"] == sorted(LABELS)
    features = load_text_encoder(str(out / "tower")).encode(WORDS)
    assert np.array_equal(features, model.tower.encode(WORDS))
    assert np.array_equal(features, load_text_encoder(run).encode(WORDS)) == (trainable == "head")


def test_the_precision_chosen_is_reported_recorded_and_kept(
    run: str,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def precision_on(multiplies_bf16: bool, **fields: Any) -> str:
        monkeypatch.setattr("mmalign.core.precision.multiplies_bf16", lambda: multiplies_bf16)
        fields = {"trainable": "lora", "epochs": 1, "precision": "auto", **fields}
        results = finetune(config_for(task, **fields), run, tmp_path / "out")
        chosen: str = results.model["precision"]
        assert read_yaml(tmp_path / "out" / "config.yaml")["precision"] == chosen
        assert capsys.readouterr().out.count(f"toy: training in {chosen}") == 1
        return chosen

    assert precision_on(True) == "bf16"
    assert precision_on(False) == "bf16", "the same run keeps it on other hardware"
    assert precision_on(False, precision="fp32") == "fp32"
    assert precision_on(True, lr=1e-4) == "bf16", "another run"


def test_tests_do_not_change_training(run: str, task: Path, tmp_path: Path) -> None:
    tests = {
        "perturbations": [{"kind": "characters", "severity": 5}],
        "attacks": [{"kind": "attack", "candidates": "characters", "min_similarity": 0.5}],
    }
    quiet = finetune(config_for(task, epochs=5), run, tmp_path / "a")
    loud = finetune(config_for(task, epochs=5, tests=tests), run, tmp_path / "b")
    assert quiet.metrics.items() <= loud.metrics.items()
    assert quiet.model == loud.model
    for name in ("head.safetensors", "model.safetensors"):
        first, second = (tmp_path / one / "tower" / name for one in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_every_seed_meets_the_same_noise_and_attacks_are_judged_by_the_first_tower(
    run: str, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy: list[list[Example] | None] = []
    judges: list[str] = []
    similarity = robustness.similarity_by

    def recorded(*arguments: Any) -> list[Example] | None:
        noisy.append(perturb(*arguments))
        return noisy[-1]

    def judged(reference: Any) -> Any:
        judges.append(weights_sha256(reference))
        return similarity(reference)

    monkeypatch.setattr(robustness, "perturb", recorded)
    monkeypatch.setattr(robustness, "similarity_by", judged)
    tests = {
        "perturbations": [{"kind": "characters"}],
        "attacks": [{"kind": "attack", "candidates": "characters", "min_similarity": 0.5}],
    }
    config = config_for(task, seeds=[0, 5], epochs=2, trainable="all", tests=tests)
    finetune(config, run, tmp_path / "out")
    assert len(noisy) == 2
    assert noisy[0] == noisy[1] is not None
    assert set(judges) == {weights_sha256(load_text_encoder(run))}


def test_several_seeds_are_averaged_and_kept_apart(run: str, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tests = {"perturbations": [{"kind": "characters", "severity": 4}]}
    config = config_for(task, seeds=[0, 1, 2], epochs=2, head_lr=0.02, tests=tests)
    mean = finetune(config, run, out)
    each = [read_results(out / f"seed-{seed}" / "results.json") for seed in (0, 1, 2)]
    assert [one.model["seed"] for one in each] == mean.model["seeds"] == [0, 1, 2]
    assert all(verify(out / f"seed-{seed}" / "tower") for seed in (0, 1, 2))
    assert not (out / "tower").exists()
    losses = [one.model["train_loss"] for one in each]
    assert len(set(losses)) > 1  # of so few rows two seeds may give the same batches
    for name, value in mean.metrics.items():
        values = [one.metrics[name] for one in each]
        assert value == pytest.approx(np.mean(values))
        low, high = mean.ci95.get(name, (value, value))  # none where nothing varies
        assert low <= value <= high
        if name in each[0].values:
            assert mean.values[name].shape == (3, mean.counts[name])
    assert read_results(out / "results.json") == mean
    assert sentence(mean.protocol["text/toy"]).endswith("Mean of seeds: 3.")
    alone = finetune(config_for(task, **_of(config), seeds=[1]), run, tmp_path / "alone")
    assert alone == each[1]


def test_two_models_are_compared_although_their_kept_steps_differ(
    run: str, task: Path, tmp_path: Path
) -> None:
    """The kept step and the dev score were part of the protocol, so no two text models were comparable."""
    write_task(task, dev_en=rows_of(right), test_en=rows_of(right))
    other = str(tiny_run(tmp_path / "run", tiny_model(SEED + 2)))
    config = config_for(task, epochs=2, head_lr=0.02, checks=2, seeds=[0, 1])
    for name, model in (("a", run), ("b", other)):
        finetune(config, model, tmp_path / name)
    paths = [tmp_path / name for name in ("a", "b")]
    assert read_results(paths[0] / "results.json").data["toy"]
    (mean, *_) = compare(paths, languages=True).rows
    assert mean.metric == NAME.replace("/de/", "/mean/")
    (difference,) = mean.differences
    assert difference.ci95 or difference.note
    finetune(config.model_copy(update={"epochs": 3}), run, tmp_path / "c")
    with pytest.raises(UserError, match=r"by another protocol than in .* \(`epochs` is 3, not 2\)"):
        compare([paths[0], tmp_path / "c"])


@pytest.mark.parametrize("seeds", [[], [-1]])
def test_seeds_must_be_such(task: Path, seeds: list[int]) -> None:
    with pytest.raises(UserError, match="seeds"):
        config_for(task, seeds=seeds)


def _of(config: FinetuneConfig) -> dict[str, Any]:
    tests = config.tests.model_dump(mode="json")
    return {"epochs": config.epochs, "head_lr": config.head_lr, "tests": tests}


def test_the_baseline_is_the_run_before_its_first_step(
    run: str, task: Path, tmp_path: Path
) -> None:
    config = config_for(task, epochs=1, baselines=["untrained"], seeds=[0, 1])
    results = finetune(config, run, tmp_path / "out")
    untrained = results.baselines["untrained"]
    assert (results.model["step"], untrained.model["step"]) == (1, 0)
    assert results.model["sha256"] != untrained.model["sha256"]
    assert untrained.model["sha256"] == load_text_encoder(run, untrained=True).facts["sha256"]
    assert untrained.metrics.keys() == results.metrics.keys()
    assert untrained.model["seeds"] == [0, 1]


def test_what_cannot_be_done_leaves_an_earlier_result_alone(
    run: str, task: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    diverging = config_for(task, head_lr=1e30, epochs=2)
    with pytest.raises(UserError, match="lower `lr` or `head_lr`"):
        finetune(diverging, run, out)
    assert not out.exists()
    finetune(config_for(task, epochs=1), run, out)
    before = contents(out)
    absent = config_for(task, task={"name": "toy", "folder": "nowhere"})
    for config, words in ((diverging, "lower `lr` or `head_lr`"), (absent, "nowhere")):
        with pytest.raises(UserError, match=words):
            finetune(config, run, out)
    assert contents(out) == before


def test_what_can_be_known_before_training_fails_before_it(
    run: str, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(config_for(task, epochs=1), run, tmp_path / "out")
    tower = str(tmp_path / "out" / "tower")
    assert finetune(config_for(task, epochs=1), tower, tmp_path / "again").metrics

    def trained(*_: Any) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(module, "run_seed", trained)
    for fields, words in (
        ({"folds": 9}, "`folds` is 9, but only 8 test ids"),
        ({"tests": {"generalised": True}}, "needs pairs of texts"),
        ({"baselines": ["untrained"]}, "only a run knows its model before training"),
    ):
        with pytest.raises(UserError, match=words):
            finetune(config_for(task, **fields), tower, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_method_without_strength_is_plain_training_and_one_with_it_is_not(
    run: str, task: Path
) -> None:
    def trained(**fields: Any) -> Results:
        """The entire tower, with dropout; numbers that a changed step would change."""
        tests = {"perturbations": [{"kind": "characters"}]}
        config = config_for(task, trainable="all", epochs=3, tests=tests, **fields)
        return run_seed(load_text_encoder(run), read_task(config.task), config, seed=0)[0]

    plain = trained()
    ascent = {"kind": "freelb", "step_size": 0.5}
    weak = trained(method={**ascent, "radius": 0, "steps": 1})
    assert weak.model == plain.model  # the loss too, to the last bit
    assert weak.metrics == plain.metrics
    strong = trained(method={**ascent, "radius": 1.0})
    assert strong.model["train_loss"] != plain.model["train_loss"]


@pytest.mark.parametrize(
    ("in_the_way", "seeds"),
    [
        ("", [0]),
        ("results.json/x", [0]),
        ("config.yaml/x", [0]),
        ("tower", [0]),
        ("seed-1", [0, 1]),
        ("seed-1/tower", [0, 1]),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    task: Path, tmp_path: Path, in_the_way: str, seeds: list[int]
) -> None:
    path = tmp_path / "out" / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    jobs = [config_for(task, seeds=seeds)]
    lexicon = {"lexicon": {"name": "toy", "folder": "nowhere"}, "seeds": seeds}
    jobs.append(job_of(lexicon, "test"))  # type: ignore[arg-type]
    for job in jobs:
        with pytest.raises(UserError, match=r"out.*(cannot be written|name a f)"):
            run_job(job, "no such model", tmp_path / "out")
    assert path.read_text() == "mine"


def test_files_whose_names_are_not_utf8_are_recorded(run: str, task: Path, tmp_path: Path) -> None:
    stray = task / os.fsdecode(b"caf\xe9.md")
    stray.write_text("x")
    finetune(config_for(task, epochs=1), run, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "tower" / "MANIFEST.json").read_text())
    assert r"caf\xe9.md" in facts["data"][0]["files"]
