"""A study whose task is a lexicon: it has means, comparisons and verdicts as any other task."""

import json
from pathlib import Path

import pytest
from lexical_cases import write_dictionaries, write_encoder

from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.study.cells import fine_tunings
from mmalign.study.config import StudyConfig
from mmalign.study.run import run_study

METRIC = "toy/mean/clean/precision@1"


def study(folder: Path, **changes: object) -> StudyConfig:
    folder.mkdir(exist_ok=True)
    words = write_dictionaries(folder / "words")
    job = {
        "lexicon": {"name": "toy", "folder": str(words)},
        "epochs": 1,
        "layer": "last",
        "seeds": [5],
    }
    (folder / "job.yaml").write_text(write_yaml(job))
    towers = {
        name: {"path": str(write_encoder(folder / name, seed)), "supervision": "nothing"}
        for seed, name in enumerate(("one", "two"))
    }
    tree = {
        "name": "tiny",
        "question": "Do words meet?",
        "towers": towers,
        "tasks": [str(folder / "job.yaml")],
        "methods": {"plain": {}, "as_it_is": {"epochs": 0}},
        "seeds": [0, 1],
        "headline": {"tower": "one", "against": ["two"]},
        **changes,
    }
    return validate(StudyConfig, tree, "test")


@pytest.mark.usefixtures("forked_study")
def test_held_out_precision_is_the_primary_metric(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run_study(study(tmp_path), out, workers=1)
    for tower in ("one", "two"):
        for method in ("plain", "as_it_is"):
            name = f"{tower}/{method}/{METRIC}"
            assert 0 <= results.metrics[name] <= 1 and results.chance[name] < 0.1
    kinds = {(one.kind, one.metric) for one in results.comparisons}
    assert kinds >= {(kind, "clean/precision@1") for kind in ("headline", "method", "tower")}
    assert any(
        "toy, clean, precision@1: one, plain against two, plain: " in one for one in results.answer
    )
    assert json.loads((out / "results.json").read_text())["answer"] == results.answer
    assert "precision@1" in (out / "report.html").read_text()


def test_methods_change_an_injection_and_unknown_fields_are_named(tmp_path: Path) -> None:
    methods = {"plain": {}, "hinge": {"loss.kind": "hinge"}, "published": {"protocol": "published"}}
    configs = fine_tunings(study(tmp_path, methods=methods))
    assert configs["toy", "hinge"].loss.kind == "hinge"  # type: ignore[union-attr]
    assert configs["toy", "published"].epochs == 5
    assert {config.seeds for config in configs.values()} == {(0,)}
    # A file twice, with fields of its own.
    file = str(tmp_path / "job.yaml")
    tasks = [file, {"finetune": file, "set": {"lexicon.name": "other", "epochs": 7}}]
    configs = fine_tunings(
        study(tmp_path, tasks=tasks, methods={"plain": {}, "more": {"epochs": 9}})
    )
    assert {name: one.epochs for name, one in configs.items()} == {
        ("toy", "plain"): configs["toy", "plain"].epochs,
        ("other", "plain"): 7,
        ("toy", "more"): 9,
        ("other", "more"): 9,
    }
    with pytest.raises(UserError, match="two tasks are named `toy`"):
        fine_tunings(study(tmp_path, tasks=[file, file], methods={"plain": {}}))
    wrong = study(tmp_path / "b", methods={"plain": {}, "robust": {"method.kind": "pgd"}})
    with pytest.raises(UserError, match="unknown key `method`"):
        fine_tunings(wrong)
