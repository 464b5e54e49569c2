"""torchrun starts a run again after a crash, and not after a mistake of its user."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from shard_sets import make_pair, write_set
from tiny import MODEL

from mmalign.cli.restarts import note_final, refuse_restart
from mmalign.core.config import write_yaml
from mmalign.core.errors import UserError


def test_the_attempt_after_a_mistake_ends_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(number: int, rank: int) -> None:
        file = tmp_path / f"attempt_{number}" / str(rank) / "error.json"
        file.parent.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        refuse_restart()

    attempt(0, 0)
    # A crash is tried again.
    crash = {"message": {"message": "RuntimeError: NCCL", "extraInfo": {"timestamp": "0"}}}
    (tmp_path / "attempt_0" / "0" / "error.json").write_text(json.dumps(crash))
    attempt(1, 0)
    note_final(UserError("data.train: nowhere"))
    with pytest.raises(UserError, match=r"data\.train: nowhere"):
        attempt(2, 1)


def test_torchrun_starts_a_mistake_once(tmp_path: Path) -> None:
    pairs = [
        replace(make_pair(number, ("en",)), image=b"\x89PNG\r\n\x1a\n" + bytes(50))
        for number in range(4)
    ]
    run = {
        "name": "broken",
        "steps": 4,
        "batch_size": 2,
        "data": {"train": [str(write_set(tmp_path / "data", pairs))], "workers": 0},
        "tokenizer": {"kind": "trained", "vocabulary": 64},
        "model": MODEL,
        "optimizer": {"lr": 1e-3},
        "engine": {"precision": "fp32"},
    }
    (tmp_path / "run.yaml").write_text(write_yaml(run))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3"]
    command = [*launcher, "-m", "mmalign", "train", "run.yaml", "--out", "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("; from step 0") == 1, done.stdout
    # Once for each of four attempts, and as the cause in torchrun's own summary.
    assert done.stderr.count("can be used, the last one is `k00") == 5, done.stderr[-3000:]
