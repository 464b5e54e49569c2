"""Tiny runs by the command line: their configuration, commands, and what they leave."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from ranks import Done, run_command
from safetensors.torch import load_file
from tiny import MODEL

from mmalign.core.record import read_records

STEPS = 6
WORD_EMBEDDINGS = "text_tower.trunk.embeddings.word_embeddings.weight"


def config(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "steps": STEPS,
        "batch_size": 4,
        "data": {
            "train": [str(data)],
            "captions_per_image": 2,
            "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
            "workers": 0,
        },
        "tokenizer": {"kind": "trained", "vocabulary": 128},
        "model": MODEL,  # dropout is on: the random state must be restored too
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 3},
        "log": {"every": 1},
        **changes,
    }


def mmalign(
    *arguments: str,
    folder: Path,
    ranks: int = 1,
    expect: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Done:
    done = run_command(arguments, folder, ranks, variables)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def torchrun(*arguments: str, folder: Path) -> str:
    """What the command prints on two ranks under the real torchrun, which takes seconds to start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--standalone", "-m", "mmalign", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = (load_file(newest(run) / "model.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_records(run / "metrics.jsonl")}


def measured(run: Path, metric: str) -> list[tuple[int, float]]:
    return [(r["step"], r[metric]) for r in read_records(run / "metrics.jsonl") if metric in r]
