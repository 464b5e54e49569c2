"""Records tell one story, whatever stops and resumptions a run has been through."""

import json
from pathlib import Path

import pytest

from mmalign.core.record import Recorder, read_records

FILE = "metrics.jsonl"


def record(folder: Path, steps: range, last_step: int = 0, value: float = 1.0) -> None:
    recorder = Recorder(folder, last_step)
    for step in steps:
        recorder.write(step, {"loss": value})
    recorder.close()


def test_records_are_read_back(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    assert read_records(tmp_path / FILE) == [{"step": s, "loss": 1.0} for s in (1, 2, 3)]
    assert read_records(tmp_path / "nothing.jsonl") == []


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    recorder.close()
    assert json.loads((tmp_path / FILE).read_text()) == {"step": 1, "lr": 0.1}


def test_every_line_is_there_before_the_recorder_is_closed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(1, {"loss": 2.0})
    assert read_records(tmp_path / FILE) == [{"step": 1, "loss": 2.0}]
    recorder.close()


def test_a_resumed_run_keeps_its_line_and_drops_those_after_it(tmp_path: Path) -> None:
    # The run wrote lines 1 to 5; its newest checkpoint is that of step 3.
    record(tmp_path, range(1, 6))
    record(tmp_path, range(4, 7), last_step=3, value=2.0)
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path / FILE)] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in (4, 5, 6)),
    ]


def test_a_run_from_scratch_drops_all(tmp_path: Path) -> None:
    record(tmp_path, range(1, 6))
    record(tmp_path, range(1, 2), value=2.0)
    assert read_records(tmp_path / FILE) == [{"step": 1, "loss": 2.0}]


def test_a_line_cut_by_a_kill_is_left_out_and_the_next_starts_anew(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-5])
    assert [r["step"] for r in read_records(path)] == [1, 2]
    record(tmp_path, range(3, 5), last_step=2)
    assert [r["step"] for r in read_records(path)] == [1, 2, 3, 4]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for last_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        recorder = Recorder(tmp_path, last_step, tensorboard=True)
        for step in steps:
            recorder.write(step, {"loss": 10.0 * last_step + step})
        recorder.close()
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(1, 1), (2, 2), (3, 23), (4, 24)]
