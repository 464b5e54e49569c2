"""A fit that is stopped goes on as if it never was, and one that is finished is not trained again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import text_tasks
import torch
from text_tasks import fit_config

from mmalign.models.encoder import weights_sha256
from mmalign.models.text_encoder import TextEncoder
from mmalign.text import fit_loop
from mmalign.text.fit import fit
from mmalign.text.fit_loop import Training
from mmalign.text.robust.rs_rp import RsRpConfig
from mmalign.text.tasks.task import Example, Task

WORDS = ("red ball", "dog", "green chair", "a cat", "0123", "and sleeps", "Hund", "ein Ball")
RS_RP = RsRpConfig(kind="rs_rp", epsilon=0.1)


def rows(lang: str, first: str = "thing") -> list[Example]:
    labels = (first, "animal")
    return [Example(str(i), lang, (word,), labels[i % 2]) for i, word in enumerate(WORDS)]


def task_of(**fields: Any) -> Task:
    train = fields.pop("train", rows("en"))
    return text_tasks.task_of("classification", train, dev={"en": rows("en")[:5]}, **fields)


class Stopped(Exception):
    pass


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is killed in the next step but saved before it; then nothing stops any more."""
    step = Training._step

    def one(self: Training, examples: list[Example]) -> None:
        if self._done == steps:
            monkeypatch.setattr(Training, "_step", step)
            raise Stopped
        step(self, examples)

    monkeypatch.setattr(Training, "_step", one)
    monkeypatch.setattr(fit_loop, "SAVE_SECONDS", -1.0)


@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("trainable", ["head", "lora", "all"])
def test_a_stopped_fit_goes_on_with_the_same_numbers(
    tower: TextEncoder, trainable: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Any = {} if trainable == "head" else {"method": RS_RP}
    config = fit_config(trainable=trainable, hidden=4, epochs=3, batch_size=3, **method)
    never_stopped = fit(tower, task_of(), config, seed=1)
    stop_after(steps, monkeypatch)
    with pytest.raises(Stopped):
        fit(tower, task_of(), config, seed=1, fits=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    torch.rand(3)  # a new process has drawn other numbers
    found = fit(tower, task_of(), config, seed=1, fits=tmp_path)
    assert weights_sha256(found.model) == weights_sha256(never_stopped.model)
    assert found.history == never_stopped.history
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("trainable", ["head", "lora", "all"])
def test_a_finished_fit_is_read_whatever_is_tested(
    tower: TextEncoder, trainable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fit_config(trainable=trainable, epochs=2)
    first = fit(tower, task_of(), config, seed=0, fits=tmp_path)
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("trained again"))
    other_test = replace(task_of(tests={"de": rows("de")[:3]}), name="attacked")
    again = fit(tower, other_test, config, seed=0, fits=tmp_path)
    assert weights_sha256(again.model) == weights_sha256(first.model)
    assert again.history == first.history
    assert again.kept() == first.kept()


def test_whatever_training_depends_on_trains_again(tower: TextEncoder, tmp_path: Path) -> None:
    def count(task: Task, seed: int = 0, **fields: Any) -> int:
        fit(tower, task, fit_config(**{"epochs": 1, **fields}), seed, fits=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert count(task_of()) == 1
    assert count(task_of(), seed=1) == 2
    assert count(task_of(), head_lr=0.2) == 3
    assert count(task_of(train=rows("en", "item"))) == 4
    assert count(task_of(train=rows("en")[:6])) == 5
    with torch.no_grad():
        tower.projection.weight.mul_(2)  # type: ignore[union-attr]
    assert count(task_of()) == 6
    tower.max_length -= 1
    assert count(task_of()) == 7


def test_languages_own_best_checks_are_tests_so_nothing_is_kept(
    tower: TextEncoder, tmp_path: Path
) -> None:
    fit(tower, task_of(), fit_config(epochs=1, oracle=True), seed=0, fits=tmp_path)
    assert not list(tmp_path.iterdir())
