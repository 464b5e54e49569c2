"""Fine-tuning on several ranks: steps as of one process, one writer, fits that any number goes on with."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import text_tasks
import torch
from causality_cases import alone, storm
from finetune_cases import config_for, write_task
from ranks import Done, run_command, run_ranks
from text_tasks import fit_config
from torch import nn

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.models.encoder import weights_sha256
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.text import fit_loop
from mmalign.text.finetune import finetune
from mmalign.text.fit import _new_model, fit
from mmalign.text.fit_loop import Training
from mmalign.text.jobs import job_of, run_job
from mmalign.text.tasks.task import Answer, Example, Kind, Target, Task

WORDS = ("red ball", "dog", "green chair", "a cat", "0123", "and sleeps", "Hund", "ein Ball")
# Kind of task -> texts and target of row i.
ROWS: dict[Kind, Callable[[int], tuple[tuple[str, ...], Target]]] = {
    "classification": lambda i: ((WORDS[i],), ("thing", "animal", "other")[i % 3]),
    "similarity": lambda i: ((WORDS[i], WORDS[i - 1]), float(i)),
    "multiple_choice": lambda i: ((WORDS[i], "red", "a dog", "Ball"), i % 3),
    "tagging": lambda i: (tuple(WORDS[i].split()), ("NOUN", "ADJ")[: len(WORDS[i].split())]),
    "span_qa": lambda i: (("dog", f"{WORDS[i]} and more"), (Answer(WORDS[i], 0),)),
}
M = TypeVar("M", bound=nn.Module)
EXACT = {"precision": "fp32", "batch_size": 5, "epochs": 1}


def rows_of(kind: Kind) -> list[Example]:
    return [Example(str(i), "en", *ROWS[kind](i)) for i in range(len(WORDS))]


def task_of(kind: Kind = "classification", **fields: Any) -> Task:
    train = fields.pop("train", None) or rows_of(kind)
    return text_tasks.task_of(kind, train, dev={"en": train[:5]}, **fields)


def without_dropout(tower: M) -> M:
    for module in tower.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return tower


def gradient(
    tower: TextEncoder, task: Task, rows: int, **fields: Any
) -> tuple[torch.Tensor, float]:
    """Of one step on the first rows: all gradients one behind the other, and the loss."""
    config = fit_config(**{**EXACT, "trainable": "all", **fields})
    torch.manual_seed(0)
    model = _new_model(tower, task, config)
    model.prepare(task.train)
    with torch.no_grad():  # a head that starts at zero would hide the tower's gradient
        for one in model.head.parameters():
            one.add_(0.1 * torch.randn_like(one))
    without_dropout(model).double()  # so that rounding hides nothing
    if config.class_weights:
        model._weight_K = model._weight_K.double()
    training = Training(model, task, config, 0, {"train_loss": []})
    found: list[torch.Tensor] = []

    def note(*_: Any, **__: Any) -> None:
        grads = [one.grad for one in model.parameters() if one.requires_grad]
        found.append(torch.cat([torch.zeros(1) if g is None else g.flatten() for g in grads]))

    training._optimizer.register_step_pre_hook(note)
    with patch.object(fit_loop, "_MAX_GRADIENT_NORM", 1e9):
        training._step(task.train[:rows])
    return found[0], training._losses[0]


def gradients(run: Path) -> dict[str, tuple[torch.Tensor, float]]:
    tower = without_dropout(load_text_encoder(str(run)))
    found = {
        f"{kind}, {rows} rows": gradient(tower, task_of(kind), rows)
        for kind in ROWS
        for rows in (5, 1)  # uneven, and a rank without rows
    }
    documents = [storm("1"), alone("2"), storm("3")]
    causality = text_tasks.task_of("event_causality", documents, dev={})
    found["event_causality"] = gradient(tower, causality, 3, causality={"dropout": 0.0})
    classes = task_of()
    found["parts"] = gradient(tower, classes, 8, micro_batch=2)
    found["weights"] = gradient(tower, classes, 7, class_weights="balanced")
    found["lora"] = gradient(tower, classes, 5, trainable="lora")
    pgd = {"kind": "pgd", "radius": 0.5, "step_size": 0.3, "steps": 2}
    found["pgd"] = gradient(tower, classes, 5, method=pgd)
    return found


class Stopped(Exception):
    pass


Fit = tuple[dict[str, torch.Tensor], dict[str, Any], list[Any]]


def fitted(run: Path, kept: Path | None, stop: int | None = None, dropout: bool = False) -> Fit:
    """Trained weights, history and predictions of a fit, which is perhaps stopped before step `stop`."""
    tower = load_text_encoder(str(run))
    if not dropout:
        without_dropout(tower)
    config = fit_config(**{**EXACT, "trainable": "all", "batch_size": 3, "epochs": 2})
    step = Training._step

    def one(self: Training, examples: list[Example]) -> None:
        if self._done == stop:
            raise Stopped
        step(self, examples)

    # Saved after every step, but only where that is needed: each save waits for the disk.
    seconds = fit_loop.SAVE_SECONDS if stop is None else -1.0
    with patch.object(Training, "_step", one), patch.object(fit_loop, "SAVE_SECONDS", seconds):
        try:
            done = fit(tower, task_of(), config, seed=1, fits=kept)
        except Stopped:
            return {}, {}, []
    predictions = done.model.predict(task_of().tests["de"])
    return done.model.state_dict(), done.history, predictions


def fits(run: Path, folder: Path) -> dict[str, Any]:
    """On the ranks of this process group; `from 1` is what one process began."""
    ranks = distributed.world_size()
    mine = folder / str(ranks)
    found = {"exact": fitted(run, mine / "whole"), "dropout": fitted(run, None, None, True)}
    for name in found.copy():
        fitted(run, mine / name, 4, name == "dropout")
        found[f"stopped, {name}"] = fitted(run, mine / name, None, name == "dropout")
    if ranks > 1:
        found["from 1"] = fitted(run, folder / "from 1")
    fitted(run, folder / f"from {ranks}", 4)
    return found


def refused(run: Path, folder: Path) -> list[str]:
    """Other rows on rank 1, retrieval, and a lexical injection."""
    tower = load_text_encoder(str(run))
    config = fit_config(**EXACT)
    other = task_of(train=rows_of("classification")[distributed.rank() :])
    pair = Example("1", "en", ("a dog", "dog"), ("d",))
    search = text_tasks.task_of("retrieval", [pair], dev={}, tests={}, candidates={"en": [pair]})
    said = []
    for task in (other, search):
        with pytest.raises(UserError) as caught:
            fit(tower, task, config, seed=0)
        said.append(str(caught.value))
    injection = {"lexicon": {"name": "words", "folder": "words"}, "layer": 1, "epochs": 1}
    with pytest.raises(UserError) as caught:
        run_job(job_of(injection, "x.yaml"), str(run), folder / "injected")
    return [*said, str(caught.value)]


TESTS = {
    "perturbations": [{"kind": "characters"}],
    "attacks": [{"kind": "attack", "candidates": "characters", "budget": 6}],
}


def fine_tuned(run: Path, folder: Path) -> str:
    def load(*args: Any, **fields: Any) -> TextEncoder:
        return without_dropout(load_text_encoder(*args, **fields))

    config = config_for(folder / "task", tests=TESTS, seeds=[0, 1], epochs=2, trainable="all")
    with patch("mmalign.text.finetune.load_text_encoder", load):
        results = finetune(config, str(run), folder / f"out {distributed.world_size()}")
    return json.dumps(asdict(results))


def case(run: Path, folder: Path) -> dict[str, Any]:
    """All that is done on several ranks, so that they are started once."""
    return {
        "gradients": gradients(run),
        "fits": fits(run, folder),
        "refused": refused(run, folder) if distributed.world_size() > 1 else [],
        "fine-tuned": fine_tuned(run, folder),
    }


Both = tuple[dict[str, Any], list[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def both(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One process, two ranks, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = [(str(i), ("thing", "animal")[i % 2], word) for i, word in enumerate(WORDS)]
    write_task(folder / "task", train_en=rows, dev_en=rows[:4], test_de=rows)
    torch.set_num_threads(1)
    return case(run, folder), run_ranks(2, case, folder / "store", run, folder), folder


def test_gradients_of_two_ranks_are_those_of_one_process(both: Both) -> None:
    expected, ranks, _ = both
    for name, (gradient_P, loss) in expected["gradients"].items():
        assert gradient_P.norm() > 1e-3, name
        for one in ranks:
            theirs_P, their_loss = one["gradients"][name]
            assert (theirs_P - gradient_P).norm() <= 1e-10 * gradient_P.norm(), name
            assert their_loss == pytest.approx(loss, rel=1e-6), name


def check_equal(found: Fit, expected: Fit) -> None:
    """Up to rounding, which Adam magnifies where a gradient is nearly zero."""
    for name, tensor in expected[0].items():
        assert torch.allclose(found[0][name], tensor, atol=1e-4), name
    assert {**found[1], "train_loss": []} == {**expected[1], "train_loss": []}
    assert found[1]["train_loss"] == pytest.approx(expected[1]["train_loss"], rel=1e-4)
    assert found[2] == expected[2]


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_fit_on_two_ranks_is_that_of_one_process(both: Both) -> None:
    expected, ranks, folder = both
    for one in ranks:
        check_equal(one["fits"]["exact"], expected["fits"]["exact"])
    first, second = (one["fits"]["exact"][0] for one in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # One rank wrote, and both numbers of ranks look for the same fit.
    kept = names_below(folder / "1" / "whole")
    assert kept == names_below(folder / "2" / "whole") and len(kept) == 1


@pytest.mark.parametrize("name", ["exact", "dropout"])
def test_a_stopped_fit_goes_on_exactly_on_as_many_ranks(both: Both, name: str) -> None:
    for one in (both[0], *both[1]):
        never, again = one["fits"][name], one["fits"][f"stopped, {name}"]
        assert all(torch.equal(again[0][weight], tensor) for weight, tensor in never[0].items())
        assert again[1:] == never[1:]


def test_a_stopped_fit_goes_on_with_another_number_of_ranks(both: Both, run: Path) -> None:
    expected, ranks, folder = both
    for one in ranks:
        check_equal(one["fits"]["from 1"], expected["fits"]["exact"])
    assert [path.suffix for path in (folder / "from 2").iterdir()] == [".pt"]
    check_equal(fitted(run, folder / "from 2"), expected["fits"]["exact"])
    for name in ("from 1", "from 2"):
        assert [path.suffix for path in (folder / name).iterdir()] == [".safetensors"]


def test_what_ranks_cannot_share_is_refused_on_all(both: Both) -> None:
    for one in both[1]:
        rows, retrieval, injection = one["refused"]
        assert "tower, rows or settings differ between the ranks" in rows
        assert "trained in one process; leave torchrun out" in retrieval
        assert injection == "a lexical injection runs in one process; leave torchrun out"


def test_ranks_draw_their_own_dropout(both: Both) -> None:
    expected, ranks, _ = both
    one, two = (found["fits"]["dropout"][0] for found in (expected, ranks[0]))
    assert any(not torch.allclose(one[weight], two[weight], atol=1e-4) for weight in one)


def test_a_fine_tuning_measures_the_same_and_writes_once(both: Both) -> None:
    expected, *ranks = (json.loads(one["fine-tuned"]) for one in (both[0], *both[1]))
    assert ranks[0] == ranks[1]
    assert ranks[0]["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert {"text/toy/de/characters-2/accuracy", "text/toy/de/attack_characters/queries"} <= set(
        expected["metrics"]
    )
    for name in ("counts", "protocol", "data", "ci95"):
        assert ranks[0][name] == expected[name]
    files = names_below(both[2] / "out 1")
    assert files == names_below(both[2] / "out 2") and not any("fits" in one for one in files)


def test_the_command_runs_on_ranks(run: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "task", test_de=[("1", "thing", "red ball")])
    tree = {"task": {"name": "toy", "folder": "task"}, "epochs": 2, "head_lr": 0.1}
    (tmp_path / "toy.yaml").write_text(json.dumps(tree))
    words = ["finetune", "toy.yaml", "--model", str(run), "--out", "out"]
    done: Done = run_command(words, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("text/toy/mean/clean/accuracy") == 1
    assert (tmp_path / "out" / "results.json").is_file()
    assert weights_sha256(load_text_encoder(str(tmp_path / "out" / "tower")))
