"""Numbers that are not finite on one rank: all ranks skip the step, and nothing changes."""

import json
import math
from pathlib import Path
from typing import Any

import failure_cases
import pytest
from parity_cases import SOME_WAYS, Way
from ranks import run_ranks
from shard_sets import make_set
from tiny import MODEL

from mmalign.core.config import write_yaml
from mmalign.core.record import read_records


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Way, dict[str, Any]]]:
    return run_ranks(2, failure_cases.spoiled_steps, tmp_path_factory.mktemp("steps"))


@pytest.mark.parametrize("way", SOME_WAYS, ids=str)
def test_no_rank_changes_anything_and_the_next_step_counts(
    steps: list[dict[Way, dict[str, Any]]], way: Way
) -> None:
    for found in (rank[way] for rank in steps):
        first, bad_image, bad_gradient, last = found["metrics"]
        assert not math.isfinite(bad_image["loss"])
        assert math.isfinite(bad_gradient["loss"])
        for metrics in (bad_image, bad_gradient):
            assert not math.isfinite(metrics["grad_norm"])
        for metrics in (first, last):
            assert math.isfinite(metrics["loss"])
            assert 0 < metrics["grad_norm"] < math.inf
        assert found["unchanged"]
        assert found["moves"]


def test_the_temperature_stays_in_its_bounds_under_every_stage(tmp_path: Path) -> None:
    for found in run_ranks(2, failure_cases.bounded_temperatures, tmp_path):
        for way, (first, second, saved) in found.items():
            assert first == pytest.approx(math.log(2)), way
            # The second step starts from the bound, not from where the first would have led.
            assert math.log(2) - 0.01 < second <= first, way
            assert saved == second, way


def make_run(folder: Path, **changes: Any) -> Path:
    """A run file of 8 steps of 4 images with batch normalisation, whose statistics must survive too."""
    make_set(folder / "data", 14)
    tree = {
        "name": "tiny",
        "steps": 8,
        "batch_size": 4,
        "data": {"train": [str(folder / "data")], "workers": 0},
        "tokenizer": {"kind": "trained", "vocabulary": 128},
        "model": MODEL,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        **changes,
    }
    (folder / "run.yaml").write_text(write_yaml(tree), encoding="utf-8")
    return folder / "run.yaml"


def run(folder: Path, bad: list[int], **changes: Any) -> tuple[str, Path]:
    """A run on 2 ranks; returns its error, if any, and its folder."""
    file, out = make_run(folder, **changes), folder / "out"
    ranks = folder / "ranks"
    words = run_ranks(2, failure_cases.run_with_bad_data, ranks, str(file), str(out), [], bad)
    assert len(set(words)) == 1  # all ranks end alike
    return words[0], out


def ledger(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "non_finite.jsonl").read_text().splitlines()]


def test_a_run_leaves_bad_batches_out_and_lists_their_samples(tmp_path: Path) -> None:
    error, out = run(tmp_path, bad=[2, 3])
    assert error == ""
    entries = ledger(out)
    assert [(e["step"], e["position"]) for e in entries] == [(3, 12), (4, 16)]
    assert all(len(e["keys"]) == 4 for e in entries)  # of both ranks
    records = read_records(out / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" not in record] == [3, 4]
    assert (out / "checkpoints" / "step-000000008").is_dir()


def test_a_decision_may_come_with_the_next_record_and_no_key_is_lost(tmp_path: Path) -> None:
    slow = {"log": {"every": 8}, "checkpoint": {"every": 8}}
    error, out = run(tmp_path, bad=[1, 2, 4, 5, 6], non_finite={"limit": 2}, **slow)
    assert "step 7: loss or gradients were not finite on 3 batches in a row" in error
    assert [entry["step"] for entry in ledger(out)] == [2, 3, 5, 6, 7]
    assert all(len(set(entry["keys"])) == 4 for entry in ledger(out))
    assert not (out / "checkpoints" / "LATEST").exists()


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    error, out = run(tmp_path, bad=[2, 3, 4], non_finite={"limit": 2})
    assert "not finite on 3 batches in a row" in error
    assert "no weight was changed" in error
    assert len(ledger(out)) == 3
    # The checkpoint of step 4 was written in between, with weights that are good.
    assert (out / "checkpoints" / "LATEST").read_text().strip() == "step-000000004"


def test_a_run_that_rolls_back_goes_on_with_later_data(tmp_path: Path) -> None:
    guard = {"limit": 1, "then": "roll_back"}
    error, out = run(tmp_path, bad=[4, 5], non_finite=guard, checkpoint={"every": 3})
    assert error == ""
    records = read_records(out / "metrics.jsonl")
    # Steps 5 and 6 were bad: back to step 3, whose next data are those after the bad ones.
    assert [record["step"] for record in records] == list(range(1, 9))
    assert all(math.isfinite(record["loss"]) for record in records)
    state = json.loads((out / "checkpoints" / "step-000000008" / "state.json").read_text())
    assert state["stream"]["position"] == (6 + 5) * 4


def test_going_back_to_one_checkpoint_twice_stops_the_run(tmp_path: Path) -> None:
    guard = {"limit": 0, "then": "roll_back"}
    error, _ = run(tmp_path, bad=[4, 5], non_finite=guard, checkpoint={"every": 3})
    assert "not finite again after rolling back to step 3" in error


def test_without_a_checkpoint_to_roll_back_to_the_run_names_the_cause(tmp_path: Path) -> None:
    guard = {"limit": 1, "then": "roll_back"}
    error, out = run(tmp_path, bad=[0, 1], non_finite=guard, checkpoint={"every": 8})
    assert "step 2: loss or gradients were not finite on 2 batches in a row" in error
    assert f"look at these samples (keys: {out / 'non_finite.jsonl'})" in error
    assert "no checkpoint yet to go back to" in error
