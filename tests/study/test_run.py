"""A complete study of tiny towers: trained once, cells kept, resumed."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_sets import make_set
from tiny import MODEL, tiny_run

from mmalign.core.config import load_config, read_yaml, validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.load import load_text_encoder
from mmalign.models.prompts import Prompts
from mmalign.study import run
from mmalign.study.cells import cells_of, fine_tunings, run_cell
from mmalign.study.config import StudyConfig
from mmalign.study.run import _prepare_worker, gpu_names, run_study, workers_for
from mmalign.study.towers import TrainedTower, prepare_towers
from mmalign.text.kept_fits import tower_identity

WORDS = ("red ball", "dog", "green chair", "a cat")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A fine-tuning file and its data: four words, two labels, two languages."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"{i}\t{'thing' if i % 2 else 'animal'}\t{word}" for i, word in enumerate(WORDS)]
    for name in ("train.en", "test.de", "test.sw"):
        (folder / f"{name}.tsv").write_text("\n".join(["id\tlabel\ttext", *rows, ""]))
    tree = {"task": {"name": "toy", "folder": str(folder)}, "epochs": 2, "batch_size": 2}
    path = tmp_path / "toy.yaml"
    path.write_text(write_yaml(tree))
    return path


def study(task: Path, towers: dict[str, Any], **changes: Any) -> StudyConfig:
    tree = {
        "name": "tiny",
        "question": "Does anything change?",
        "towers": towers,
        "tasks": [str(task)],
        "methods": {"plain": {}, "twice": {"repeats": 2}},
        "seeds": [0, 1],
        "headline": {"tower": "one", "against": ["two"]},
        **changes,
    }
    return validate(StudyConfig, tree, "test")


def two_towers(folder: Path) -> dict[str, Any]:
    run = str(tiny_run(folder / "run"))
    return {
        "one": {"path": run, "supervision": "a step"},
        "two": {"path": str(tiny_run(folder / "other")), "supervision": "the same step"},
    }


@pytest.mark.usefixtures("forked_study")
def test_a_study_gives_results_a_report_and_keeps_its_cells(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(task, two_towers(tmp_path))
    out = tmp_path / "out"
    results = run_study(config, out, workers=1)
    assert results.metrics.keys() >= {
        f"{tower}/{method}/toy/{lang}/clean/accuracy"
        for tower in ("one", "two")
        for method in ("plain", "twice")
        for lang in ("de", "sw", "mean")
    }
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*/results.json")}
    # Both towers have the same weights: a cell stands for a configuration, so half of the eight exist.
    assert len(kept) == 4
    tree = json.loads((out / "results.json").read_text())
    assert tree["question"] == config.question and tree["answer"]
    assert "Does anything change?" in (out / "report.html").read_text()
    with monkeypatch.context() as no_workers:  # nothing is to be computed
        no_workers.setattr(run, "ProcessPoolExecutor", None)
        again = run_study(config, out, workers=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert asdict(again)["metrics"] == asdict(results)["metrics"]
    # Another language: all cells are measured again, and nothing is trained.
    fits = {path: path.stat().st_mtime_ns for path in (out / "fits").iterdir()}
    assert len(fits) == 4
    data = tmp_path / "data"
    (data / "test.ha.tsv").write_text((data / "test.de.tsv").read_text())
    wider = run_study(config, out, workers=1)
    assert len(list((out / "cells").glob("*/results.json"))) == 8
    assert "one/plain/toy/ha/clean/accuracy" in wider.metrics
    assert {path: path.stat().st_mtime_ns for path in (out / "fits").iterdir()} == fits


def test_a_cell_depends_on_tower_configuration_seed_and_data(task: Path) -> None:
    config = study(
        task, {"one": {"path": "a", "supervision": ""}, "two": {"path": "b", "supervision": ""}}
    )

    def keys(sha256: str = "x") -> set[str]:
        tower = TrainedTower("one", None, "a", False, sha256, sha256, None)
        return {cell.key for cell in cells_of(config, [tower])}

    first = keys()
    assert len(first) == 4  # two methods, two seeds
    assert keys() == first
    assert keys(sha256="y").isdisjoint(first)
    folder = task.parent / "data"
    (folder / "test.sw.tsv").write_text((folder / "test.de.tsv").read_text() + "9\tthing\tball\n")
    assert keys().isdisjoint(first)


@pytest.mark.usefixtures("forked_study")
def test_towers_are_trained_once_a_seed_and_never_stand_in_for_each_other(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "shards", 8)
    run = {
        "name": "tiny",
        "steps": 2,
        "batch_size": 4,
        "data": {"train": [str(tmp_path / "shards")], "workers": 0},
        "tokenizer": {"kind": "trained", "vocabulary": 128},
        "model": MODEL,
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
        "engine": {"precision": "fp32"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(write_yaml(run))
    towers = {
        "one": {"run": str(path), "supervision": "pictures"},
        "two": {"run": str(path), "untrained": True, "supervision": "nothing"},
        "control": {
            "run": str(path),
            "set": {"name": "control", "objective": {"kind": "masked_language_model"}},
            "supervision": "captions only",
        },
    }
    config = study(task, towers, pretraining_seeds=[3, 4])
    trained = prepare_towers(config, tmp_path / "towers")
    assert [(tower.name, tower.seed, tower.untrained) for tower in trained] == [
        ("one", 3, False),
        ("one", 4, False),
        ("two", 3, True),
        ("two", 4, True),
        ("control", 3, False),
    ]
    assert len({tower.sha256 for tower in trained}) == 5
    assert len({tower.path for tower in trained}) == 3
    changed = read_yaml(Path(trained[-1].path) / "config.yaml")
    assert (changed["name"], changed["seed"]) == ("control", 3)
    assert changed["objective"]["kind"] == "masked_language_model"
    assert all(tower.seconds for tower in trained if not tower.untrained)
    for tower in trained:
        loaded = load_text_encoder(tower.path, tower.untrained)
        assert tower_identity(loaded) == tower.identity
    for tower in trained:  # what is kept of it names its cells without the weights
        shutil.rmtree(Path(tower.path) / "checkpoints", ignore_errors=True)
    again = prepare_towers(config, tmp_path / "towers")
    assert again == trained
    # The headline's method on both seeds, the other one on the first.
    cells = cells_of(config, trained)
    assert {(c.tower.seed, c.method) for c in cells} == {(3, "plain"), (3, "twice"), (4, "plain")}


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    task: Path, tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "towers").write_text("a file in its place")
    towers = two_towers(tmp_path)
    with pytest.raises(UserError, match=r"study/towers/\S+: cannot be written"):
        run_study(study(task, towers), tmp_path / "study", workers=1)
    assert not (tmp_path / "study" / "cells").exists()


def test_a_method_that_is_no_fine_tuning_names_file_and_method(task: Path) -> None:
    towers = {name: {"path": name, "supervision": ""} for name in ("one", "two")}
    config = study(task, towers, methods={"plain": {}, "typo": {"method.knd": "pgd"}})
    with pytest.raises(UserError, match=r"toy\.yaml with method `typo`: "):
        fine_tunings(config)


@pytest.mark.usefixtures("forked_study")
def test_a_broken_cell_stops_the_study_with_its_sentence(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(task, two_towers(tmp_path), methods={"plain": {"task.languages": ["xx"]}})
    with pytest.raises(UserError, match="`languages` asks for `xx`"):
        run_study(config, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.usefixtures("forked_study")
def test_a_training_that_diverges_is_a_cell_without_a_number(task: Path, tmp_path: Path) -> None:
    """One of the methods has a rate at which the loss is no number; the others are worth a page."""
    methods = {"plain": {}, "hot": {"head_lr": 1e37, "epochs": 4}}
    config = study(task, two_towers(tmp_path), methods=methods, seeds=[0])
    results = run_study(config, tmp_path / "out", workers=1)
    assert "one/plain/toy/mean/clean/accuracy" in results.metrics
    assert not any("/hot/" in name for name in results.metrics)
    assert set(results.diverged) == {f"{name} · toy · hot · seed 0" for name in ("one", "two")}
    (reason,) = set(results.diverged.values())
    assert "lower `lr` or `head_lr`" in reason
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Without a number: one · toy · hot · seed 0" in page
    again = run_study(config, tmp_path / "out", workers=1)  # not trained once more
    assert again.diverged == results.diverged and again.metrics == results.metrics


def test_towers_that_differ_in_more_than_weights_have_cells_of_their_own(tmp_path: Path) -> None:
    folder = str(tiny_run(tmp_path / "run"))
    known = {tower_identity(load_text_encoder(folder))}
    for change in (
        {"pooling": "cls"},
        {"unit_length": False},
        {"max_length": 7},
        {"prompts": Prompts(query="query: ")},
    ):
        tower = load_text_encoder(folder)
        for name, value in change.items():
            assert getattr(tower, name) != value
            setattr(tower, name, value)
        known.add(tower_identity(tower))
    assert len(known) == 5


def test_a_tower_that_changes_under_a_study_stops_it(task: Path, tmp_path: Path) -> None:
    config = study(task, two_towers(tmp_path))
    tower, _ = prepare_towers(config, tmp_path / "towers")
    cell = cells_of(config, [replace(tower, identity="another")])[0]
    with pytest.raises(UserError, match="has changed since the study began"):
        run_cell(cell, tmp_path / "cells")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": {"plain": {}, "lr/2": {}}}, "`lr/2`: the names of towers and methods have no"),
        ({"only": {"twice": ["toi"]}}, "only: `twice` is used with `toi`, which is no task"),
    ],
)
def test_names_that_cannot_be_used_are_refused_before_the_work(
    task: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run_study(study(task, two_towers(tmp_path), **changes), tmp_path / "out", workers=1)


def test_the_shipped_studies_name_files_and_methods_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    for path in sorted(Path("eval").glob("study_*.yaml")):
        config = load_config(StudyConfig, path)
        assert fine_tunings(config), path
        for tower in config.towers.values():
            assert tower.run is None or Path(tower.run).is_file(), tower


def test_workers_share_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_names() == ["0", "1"] and workers_for(0) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-3f")
    assert gpu_names() == ["5", "GPU-3f"]
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    numbers.put(3)
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=_prepare_worker, initargs=(numbers, gpu_names())
    ) as pool:
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "GPU-3f"


def test_a_tower_that_fills_the_memory_is_trained_alone() -> None:
    assert workers_for(10**12) == 1 <= workers_for(0)


def test_workers_do_not_outlive_a_killed_study() -> None:
    script = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from mmalign.study.run import _prepare_worker
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    numbers.put(0)
    start = {"initializer": _prepare_worker, "initargs": (numbers, [])}
    pool = ProcessPoolExecutor(1, mp_context=context, **start)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    worker = int(killed.stdout)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    raise AssertionError("the worker is still there")
