"""A run's state is the same tensors on 1, 2 and 4 ranks and under every stage of ZeRO."""

from pathlib import Path
from typing import Any

import pytest
import state_cases
import torch
from ranks import run_ranks
from state_cases import MASKED
from torch import Tensor

STAGES = (0, 1, 2, 3)
# By number of ranks: the order in which stages hand the state on. The first of all trains.
CHAINS = {
    2: {"contrastive": (2, 3, 0, 1), MASKED: (3, 0)},
    4: {"contrastive": (1, 2, 3, 0), MASKED: (2,)},
    1: {"contrastive": (0, 1, 2, 3), MASKED: (3, 1)},
}
OBJECTIVES = ("contrastive", MASKED)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("state")

    def run(ranks: int, function: Any, *args: Any) -> Any:
        return run_ranks(ranks, function, folder / f"store{ranks}", *args, folder)[0]

    def last(ranks: int) -> dict[str, Path]:
        return {o: folder / f"{o}-{ranks}-{stages[-1]}" for o, stages in CHAINS[ranks].items()}

    two = run(2, state_cases.begin, CHAINS[2])
    four = run(4, state_cases.go_on, CHAINS[4], last(2))
    one = run(1, state_cases.alone, CHAINS[1], last(4))
    return {1: one, 2: two, 4: four}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [n for n in a if a[n].dtype != b[n].dtype or not torch.equal(a[n], b[n])]


def first(runs: dict[int, dict[str, Any]], objective: str) -> dict[str, Any]:
    run: dict[str, Any] = runs[2][objective]["originals"][CHAINS[2][objective][0]]
    return run


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_state_holds_what_a_run_is_made_of(
    runs: dict[int, dict[str, Any]], objective: str
) -> None:
    state = first(runs, objective)["state"]
    updates = {n: t for n, t in state.items() if n.startswith("updates/")}
    assert updates and all(t.dtype == torch.int64 and int(t) == 3 for t in updates.values())
    for name in (n.removeprefix("updates/") for n in updates):
        assert state[f"exp_avg/{name}"].shape == state[name].shape
        assert state[f"exp_avg_sq/{name}"].dtype == torch.float32
    assert any(t.abs().sum() > 0 for n, t in state.items() if n.startswith("exp_avg/"))
    trains_image_tower = any("image_tower" in name for name in updates)
    assert trains_image_tower == (objective == "contrastive")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_no_bit_changes_between_ranks_and_stages(
    runs: dict[int, dict[str, Any]], ranks: int, objective: str
) -> None:
    original = first(runs, objective)
    visits = runs[ranks][objective]["visits"]
    assert visits
    for stage, visit in visits.items():
        assert not differing(visit["state"], original["state"]), stage
        assert visit["losses"] == pytest.approx(original["losses"], rel=1e-6), stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_on_equal_ranks_and_stage_is_the_uninterrupted_run(
    runs: dict[int, dict[str, Any]], stage: int
) -> None:
    run = runs[2]["contrastive"]
    original, again = run["originals"][stage], run["again"][stage]
    assert differing(original["state"], original["end"])
    assert not differing(again["end"], original["end"])
    assert again["losses"] == original["losses"]


def test_buffers_of_every_type_and_tied_weights_come_back(runs: dict[int, dict[str, Any]]) -> None:
    state = runs[1][MASKED]["visits"][1]["state"]
    counters = [t for n, t in state.items() if n.endswith("num_batches_tracked")]
    assert counters and all(t.dtype == torch.int64 and int(t) > 0 for t in counters)
    embedding = "dual_encoder.text_tower.trunk.embeddings.word_embeddings.weight"
    assert torch.equal(state["decoder.weight"], state[embedding])
    assert "exp_avg/decoder.weight" not in state


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_has_not_begun_can_be_captured(
    runs: dict[int, dict[str, Any]], stage: int
) -> None:
    found = runs[1]["before_any_step"][stage]
    state = found["state"]
    assert all(not t.any() for n, t in state.items() if n.startswith(("exp_avg", "updates/")))
    assert found["losses"][0] == found["losses"][1]
    assert not differing(*found["ends"])
    assert all(int(t) == 2 for n, t in found["ends"][1].items() if n.startswith("updates/"))


def test_a_step_count_of_its_own_survives_where_there_is_a_place_for_it(
    runs: dict[int, dict[str, Any]],
) -> None:
    original, found = first(runs, "contrastive")["state"], runs[1]["never_updated"]
    assert differing(found[0], original) == ["updates/logit_scale"]
    assert int(found[0]["updates/logit_scale"]) == 0
    assert not differing(found[2], original)
    assert not differing(found[3], original)


def test_files_of_another_model_are_refused_and_change_nothing(
    runs: dict[int, dict[str, Any]],
) -> None:
    errors = runs[1]["errors"]
    name = "`exp_avg/logit_scale`"
    assert f"missing/optimizer-0.safetensors: {name} is missing; resume with" in errors["missing"]
    assert "optimizer-0.safetensors: holds `exp_avg/other`, which this model" in errors["unknown"]
    assert f"{name} is [2], in this model [1]" in errors["shape"]
    assert "model.safetensors: `logit_scale` is missing; resume with" in errors["weight"]
    assert f"optimizer-9.safetensors: holds {name}, as" in errors["double"]
    assert "model.safetensors: cannot be read as safetensors" in errors["unreadable"]
    assert not errors["changed"]
