"""`benchmarks/gpu.py`, which needs a GPU for its figures, in its short form on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its long form runs here: make gpu")
def test_every_part_of_the_script_for_gpus_runs_on_a_cpu() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--short"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exceeded"] == []
    assert {name.split(", ")[-1] for name in found["parity"]} == {"plain", "cached"}
    assert found["speed"]["images_per_second"] > 0
    assert 0 <= found["run"]["data_wait"] < 1
    assert 0 <= found["run"]["recall@1"] <= 1
