"""Fine-tunings of several fits: folds of the items, a search of settings, one that was stopped."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from finetune_cases import NAME, WORDS, config_for, right, rows_of, write_task

from mmalign.core.errors import UserError
from mmalign.results.protocol import sentence
from mmalign.text.finetune import deal_ids, finetune
from mmalign.text.fit_loop import Training
from mmalign.text.tasks.read import read_task


@pytest.fixture(scope="module")
def run(run: Path) -> str:
    return str(run)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The training words, tested under another language's name."""
    return write_task(tmp_path / "task", test_de=rows_of(right))


def test_items_that_are_held_out_are_unknown(run: str, tmp_path: Path) -> None:
    """Every item has a label of its own: an accuracy above 0 would mean that it was trained on."""
    rows = rows_of(lambda i: f"label{i}")
    tests = {"test_de": rows, "test_sw": rows[:3], "test_yo": [("new", "label0", "mbwa")]}
    folder = write_task(tmp_path / "task", train_en=rows, **tests)
    results = finetune(config_for(folder, folds=4, batch_size=8), run, tmp_path / "out")
    assert results.metrics[NAME] == 1.0
    for lang, count in (("de", len(WORDS)), ("sw", 3)):
        name = f"text/toy_unseen/{lang}/clean/accuracy"
        assert (results.metrics[name], results.counts[name]) == (0.0, count)
    assert "text/toy_unseen/yo/clean/accuracy" not in results.metrics
    words = sentence(results.protocol["text/toy_unseen"])
    assert "new items" in words and "Every tested item" not in words and "step" not in words


def test_a_fold_may_leave_a_language_without_tests_or_dev(run: str, tmp_path: Path) -> None:
    rows = rows_of(right)
    tests = {"test_de": rows, "test_sw": rows[:1], "test_yo": rows[:1]}
    folder = write_task(
        tmp_path / "task", dev_en=rows[:1], dev_de=rows, dev_sw=rows, dev_yo=rows[:1], **tests
    )
    config = config_for(folder, folds=4, oracle=True, epochs=1)
    results = finetune(config, run, tmp_path / "out")
    assert results.counts["text/toy_unseen/sw/clean/accuracy"] == 1
    assert results.counts["text/toy_unseen/mean/clean/accuracy"] == len(WORDS) + 2


def test_folds_part_the_shared_ids_and_keep_the_share_of_labels(tmp_path: Path) -> None:
    rows = [(str(i), "ab"[i % 2], f"word {i}") for i in range(20)]
    folder = write_task(
        tmp_path / "task", train_en=[*rows, ("99", "a", "only trained")], test_de=rows
    )
    task = read_task(config_for(folder).task)
    folds = deal_ids(task, 5, seed=0)
    assert sorted(one for fold in folds for one in fold) == sorted(str(i) for i in range(20))
    assert all(sorted(int(one) % 2 for one in fold) == [0, 0, 1, 1] for fold in folds)
    assert folds == deal_ids(task, 5, seed=0) != deal_ids(task, 5, seed=1)


def test_settings_are_searched_on_dev_of_the_source(run: str, task: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "searched", test_de=rows_of(right), dev_en=rows_of(right))
    search = {"head_lr": [1e-7, 0.1, 1e37], "epochs": [1, 20]}
    config = config_for(folder, search=search, seeds=[0])
    results = finetune(config, run, tmp_path / "out")
    tried = results.model["searched"]
    assert [(one["head_lr"], one["epochs"]) for one in tried] == list(
        itertools.product(*search.values())
    )
    known = {(one["head_lr"], one["epochs"]): one["dev"] for one in tried}
    assert known[0.1, 20] == 1.0 > known[1e-7, 1]
    assert known[1e37, 20] is None  # its training diverges
    assert results.metrics[NAME] == 1.0
    alone = finetune(config_for(folder, head_lr=0.1, epochs=20), run, tmp_path / "alone")
    assert results.model["train_loss"] == alone.model["train_loss"]
    with pytest.raises(UserError, match=r"`search` needs dev rows in `en`"):
        finetune(
            config_for(write_task(tmp_path / "no", test_de=rows_of(right)), search=search),
            run,
            tmp_path,
        )
    with pytest.raises(UserError, match=r"search: `seeds` is no field of training"):
        config_for(folder, search={"seeds": [[0]]})


def test_a_finetuning_that_was_stopped_goes_on(
    run: str, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(config_for(task, seeds=[0, 1]), run, tmp_path / "whole")
    out, train = tmp_path / "out", Training.run
    fits: list[int] = []

    def stop(self: Training, *arguments: Any) -> Any:
        fits.append(1)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(Training, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(config_for(task, seeds=[0, 1]), run, out)
    again = finetune(config_for(task, seeds=[0, 1]), run, out)
    assert len(fits) == 3  # the first seed was not trained again
    assert again.metrics == whole.metrics and again.model == whole.model
    assert not (out / "fits").exists()
