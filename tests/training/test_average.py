"""Averages of weights with several names, and resumes from their checkpoints with and without an average."""

from pathlib import Path
from typing import Any

import average_cases
import pytest
import torch
from average_cases import ALIAS, DECAY, MASKED, STEPS, TABLE, WORDS
from ranks import run_ranks
from torch import Tensor

from mmalign.training.average import TRAINED_FILE
from mmalign.training.engine import HEAD_FILE, MODEL_FILE

OBJECTIVES = ("contrastive", MASKED)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    folder: Path = tmp_path_factory.mktemp("average")
    found: dict[str, Any] = run_ranks(2, average_cases.everything, folder / "store", folder)[0]
    return found


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def differing_files(
    a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]
) -> dict[str, list[str]]:
    assert a.keys() == b.keys()
    return {name: found for name in a if (found := differing(a[name], b[name]))}


def average_by_hand(weights: list[dict[str, Tensor]], name: str) -> Tensor:
    average = weights[0][name]
    for step, after in enumerate(weights[1:]):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * after[name]
    return average


def test_every_name_of_a_parameter_has_the_average(cases: dict[str, Any]) -> None:
    run = cases["contrastive"]["run"]
    model, trained = (run["files"][name] for name in (MODEL_FILE, TRAINED_FILE))
    wanted = average_by_hand(run["weights"], TABLE)
    assert not torch.allclose(wanted, run["weights"][STEPS][TABLE], rtol=1e-3)
    for name in (TABLE, ALIAS):
        torch.testing.assert_close(model[name], wanted)
    assert torch.equal(trained[TABLE], run["weights"][STEPS][TABLE])
    assert ALIAS not in trained


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_checkpoint_holds_the_model_that_evaluation_measured(
    cases: dict[str, Any], objective: str
) -> None:
    run = cases[objective]["run"]
    assert differing(run["measured"], run["weights"][STEPS])
    assert not differing(run["files"][MODEL_FILE], run["measured"])


def test_a_tied_decoder_has_the_average(cases: dict[str, Any]) -> None:
    run = cases[MASKED]["run"]
    model, head = (run["files"][name] for name in (MODEL_FILE, HEAD_FILE))
    torch.testing.assert_close(model[WORDS], average_by_hand(run["weights"], WORDS))
    assert torch.equal(head["decoder.weight"], model[WORDS])


@pytest.mark.parametrize("source", ["again", "old"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resume_keeps_the_average_and_the_trained_weights(
    cases: dict[str, Any], objective: str, source: str
) -> None:
    run, resumed = cases[objective]["run"], cases[objective][source]
    assert not differing_files(resumed["files"], run["files"])
    assert resumed["losses"] == run["losses"]
    assert not differing_files(resumed["end"], run["end"])


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resume_without_an_average_takes_the_trained_weights(
    cases: dict[str, Any], objective: str, stage: int
) -> None:
    run, resumed = cases[objective]["run"], cases[objective][f"no average, stage {stage}"]
    assert TRAINED_FILE not in resumed["files"]
    assert not differing(resumed["files"][MODEL_FILE], run["weights"][STEPS])
    assert resumed["losses"] == pytest.approx(run["losses"], rel=1e-5)
    if objective == MASKED:
        head = resumed["files"][HEAD_FILE]
        assert torch.equal(head["decoder.weight"], run["weights"][STEPS][WORDS])


def test_trained_weights_of_another_model_are_refused_and_change_nothing(
    cases: dict[str, Any],
) -> None:
    refusal = cases["refusal"]
    assert "trained.safetensors: holds `other`, which this model does not have" in refusal["error"]
    assert not refusal["changed"]
