"""Operations of a step against a count by hand, traces of a window of steps, and what ranks wait for."""

import json
from pathlib import Path

import pytest
import torch
from parity_cases import ENGINE_TOWER, build_model, make_batch
from ranks import run_ranks
from step_cases import count_operations, slowest_rank
from torch.utils.flop_counter import FlopCounterMode

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.core.record import Recorder, check_tracker, read_records
from mmalign.training.objective import embed
from mmalign.training.throughput import (
    ProfileConfig,
    Profiler,
    device_peak,
    operations_per_image,
)


def test_operations_are_three_forward_passes_and_one_of_a_frozen_tower() -> None:
    batch, model = make_batch(0, 0, 1), build_model(ENGINE_TOWER)
    with FlopCounterMode(display=False) as counter:
        assert batch.image_BCHW is not None
        model.encode_image(batch.image_BCHW)
    image = counter.get_total_flops()
    projection = 2 * 8 * model.image_tower.width * 16
    found = operations_per_image(model, lambda part: embed(model, part), batch)
    model.image_tower.requires_grad_(False)
    frozen = operations_per_image(model, lambda part: embed(model, part), batch)
    assert 8 * (found - frozen) == 2 * (image - projection) > 0
    assert 8 * frozen > 3 * projection


def test_counting_operations_leaves_running_statistics_as_they_are(tmp_path: Path) -> None:
    ((found, changed),) = run_ranks(1, count_operations, tmp_path)
    assert found > 0 and changed == []


def test_a_trace_holds_the_steps_of_its_window(tmp_path: Path) -> None:
    profiler = Profiler(ProfileConfig(from_step=2, steps=2), tmp_path)
    for number in range(1, 6):
        with profiler.step(number), torch.profiler.record_function(f"work of step {number}"):
            torch.ones(2) + 1
    trace = json.loads((tmp_path / "profile" / "rank0.json").read_text())["traceEvents"]
    names = {event["name"] for event in trace if "work of step" in event.get("name", "")}
    assert names == {"work of step 2", "work of step 3"}


def test_a_meter_tells_waiting_for_data_from_waiting_for_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(2, slowest_rank, tmp_path)
    assert first == second
    # Of 10 s a step rank 0 waits 2 for its batch and 5 for rank 1, which waits 4 and 0.
    assert first["data_wait"] == 0.4
    assert (first["slowest_rank"], first["slowest_rank_seconds"]) == (1, 10)
    assert first["step_seconds"] == 10
    assert first["images_per_second"] == 0.8
    assert first["mfu"] == pytest.approx(50 * 0.8 / 1000)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla T4", None),
    ],
)
def test_a_peak_is_of_the_card_that_is_named(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 0))
    assert device_peak() == (None if peak is None else (name, peak * 1e12))


def test_the_peak_of_a_cpu_is_not_known() -> None:
    assert torch.cuda.is_available() or device_peak() is None


TRACKER = """
import json

def init(project, name):
    global calls
    calls = open(f"{project}-{name}.jsonl", "w")

def log(metrics, step):
    calls.write(json.dumps({"step": step, **metrics}) + "\\n")

def finish():
    calls.close()
"""


def test_records_are_sent_to_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"log\.track: no_tracker is not installed; install it"):
        check_tracker("no_tracker")
    # Its three functions are those of wandb and trackio.
    (tmp_path / "small_tracker.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_tracker("small_tracker")
    recorder = Recorder(tmp_path, track="small_tracker", name="run")
    recorder.write(3, {"loss": 2.0, "grad_norm": float("nan")})
    recorder.close()
    sent = read_records(tmp_path / "mmalign-run.jsonl")
    assert sent == read_records(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 2.0}]
