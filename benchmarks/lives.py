"""Starts of a real training run, observed from outside, for `kill.py`.

    prepare -> data, run.yaml -> Life (one start: process, log, folder) -> losses, weights, checkpoints
                              -> measure_reference: the uninterrupted run

The run is tiny and has every source of randomness: dropout in both towers, dropped paths, dropped tokens,
crops and flips, and a worker process for the data.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.commit import sha256_of
from mmalign.core.config import write_yaml
from mmalign.core.record import read_records

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "data_recipes" / "emoji_scenes.yaml"
MARK = "MMALIGN_SURVIVAL_RUN"
"""Environment variable that identifies the processes of a run, including forked ones."""
PATIENCE = 900.0  # seconds without progress until a start counts as failed


@dataclass(frozen=True)
class Case:
    """A run file on a number of ranks."""

    folder: Path
    ranks: int
    steps: int


@dataclass(frozen=True)
class Reference:
    """The record of the uninterrupted run, and the duration of its parts."""

    losses: dict[int, tuple[float, float]]
    weights: str
    start_seconds: float
    train_seconds: float
    save_seconds: float


class Life:
    """One start of a run, until it ends or is killed."""

    def __init__(self, case: Case, run: Path, *arguments: str) -> None:
        self.run = run
        self.committed = newest_step(run)
        self._unfinished = unfinished(run)
        run.parent.mkdir(parents=True, exist_ok=True)
        self._log = run.with_name(f"{run.name}.log")
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            MARK: str(run),
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_launcher(case.ranks), "train", "run.yaml", "--out", str(run), *arguments],
                cwd=case.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """The output of this start so far."""
        return self._log.read_bytes()[self._begin :].decode(errors="replace")

    @property
    def first_step(self) -> int | None:
        """The step from which it resumed; None until it has printed it."""
        found = re.search(r"; from step (\d+)", self.text)
        return int(found[1]) if found else None

    @property
    def saves(self) -> set[str]:
        """Checkpoint folders that this start has begun and not finished."""
        return unfinished(self.run) - self._unfinished

    def wait_for(self, condition: Callable[[], bool], pause: float = 0.002) -> bool:
        """Whether `condition` came true before the process ended.

        Raises:
            RuntimeError: neither happened in time.
        """
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline:
                if condition():
                    return True
                if self.process.poll() is not None:
                    return False
                time.sleep(pause)
        except BaseException:  # Ctrl-C does not reach the run, which is in its own session
            self.kill()
            raise
        self.kill()
        raise RuntimeError(f"{self.run}: nothing for {PATIENCE:.0f} s\n{self.text[-3000:]}")

    def wait_for_first_step(self) -> None:
        """Wait until it has printed its first step, or has ended."""
        self.wait_for(lambda: self.first_step is not None, pause=0.01)

    def wait(self, seconds: float) -> None:
        """Wait for this time, or until it has ended."""
        deadline = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() >= deadline, pause=0.0005)

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        self.wait_for(lambda: False, pause=0.02)
        return self.process.wait()

    def kill(self) -> None:
        """Send SIGKILL to every process of the run until none is left."""
        while pids := survivors(self.run):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.002)
            self.process.poll()  # reaps the zombie
        self.process.wait()


def _launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable, "-m", "mmalign"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without these options SIGUSR1 kills torchrun but not its ranks, and ranks have only 30 s to save.
    stop = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout", "60"]
    return [*torchrun, *stop, "--nproc-per-node", str(ranks), "-m", "mmalign"]


def survivors(run: Path) -> list[int]:
    """Running processes of a run, found by their environment; zombies have none."""
    wanted = f"{MARK}={run}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
    return found


def unfinished(run: Path) -> set[str]:
    """Names of the checkpoints' temporary folders."""
    return {path.name for path in (run / "checkpoints").glob("step-*.tmp-*")}


def checkpoints(run: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if "." not in p.name)


def newest_step(run: Path) -> int:
    """Step of the newest committed checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints(run)), default=0)


def losses_of(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and norm of the gradient by step, as recorded."""
    records = read_records(run / "metrics.jsonl")
    # Records of evaluations have none.
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records if "loss" in r}


def prepare(folder: Path, steps: int, every: int) -> None:
    """Generate the data and write `run.yaml` into `folder`."""
    sizes = {"train_scenes": 200, "test_scenes": 10, "image_size": 32}
    # Only training data are needed.
    sizes |= {"object_scenes": 0, "sentence_scenes": 0, "unpaired_scenes": 0}
    tasks = {"train": 8, "dev": 8, "test": 8}
    overrides = [f"source.{k}={v}" for k, v in sizes.items()]
    overrides += [f"source.entailment.{k}={v}" for k, v in tasks.items()]
    subprocess.run(
        [*_launcher(1), "data", "build", str(RECIPE), *overrides, "--out", str(folder / "data")],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    config = run_config(folder / "data" / "train", steps, every)
    (folder / "run.yaml").write_text(write_yaml(config), encoding="utf-8")


def run_config(data: Path, steps: int, every: int) -> dict[str, Any]:
    """A run of a tiny ViT and a tiny BERT with every source of randomness."""
    vit = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8}
    bert = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "name": "survival",
        "steps": steps,
        "batch_size": 16,
        "data": {
            "train": [str(data)],
            "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
            "token_dropout": 0.1,
            "workers": 1,
        },
        "tokenizer": {"kind": "trained", "vocabulary": 600},
        "model": {
            "image": {
                "kind": "timm",
                "name": "vit_tiny_patch16_224",
                "image_size": 32,
                "options": {**vit, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
            },
            "text": {
                "architecture": {
                    "model_type": "bert",  # its default dropout is 0.1
                    **bert,
                    "intermediate_size": 96,
                    "max_position_embeddings": 64,
                },
                "max_length": 32,
            },
            "embedding": 32,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 4},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": every},
        "log": {"every": 1},
    }


def measure_reference(case: Case) -> Reference:
    """Run without interruption.

    Raises:
        RuntimeError: it failed.
    """
    run = case.folder / f"reference-{case.ranks}"
    began = time.monotonic()
    life = Life(case, run)
    life.wait_for_first_step()
    started = time.monotonic()
    saves = []
    while life.wait_for(lambda: bool(life.saves)):
        since = time.monotonic()
        life.wait_for(lambda: not life.saves)
        saves.append(time.monotonic() - since)
    if life.end() != 0 or newest_step(run) != case.steps:
        raise RuntimeError(f"{run}: the uninterrupted run failed\n{life.text[-3000:]}")
    save_seconds = sorted(saves)[len(saves) // 2] if saves else 0.05
    trained = time.monotonic() - started
    return Reference(losses_of(run), weights_of(run), started - began, trained, save_seconds)


def weights_of(run: Path) -> str:
    """sha256 of the newest committed weights."""
    return sha256_of(checkpoints(run)[-1] / "model.safetensors")
