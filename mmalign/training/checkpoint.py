"""Checkpoints of a run: whole or absent, newest first, never a silent fresh start.

    runs/x/checkpoints/step-000000400/   model.safetensors, deepspeed/, rng-rank*.safetensors,
                                         state.json, MANIFEST.json (last)
    runs/x/checkpoints/LATEST            name of the newest one

Every rank writes into one temporary folder; rank 0 commits it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign import distributed
from mmalign.batch import StreamState
from mmalign.commit import commit_folder, newest_folder, temporary_folder, write_atomic, write_json
from mmalign.errors import UserError
from mmalign.training.engine import Engine

LATEST = "LATEST"


@dataclass(frozen=True)
class TrainState:
    """What a run knows about itself beside the engine's tensors.

    Attributes:
        step: optimizer steps taken.
        pairs_seen: captions trained on, over all ranks.
        stream: where the stream goes on.
    """

    step: int
    pairs_seen: int
    stream: StreamState

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "pairs_seen": self.pairs_seen, "stream": self.stream.to_json()}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "TrainState":
        return cls(tree["step"], tree["pairs_seen"], StreamState.from_json(tree["stream"]))


def save(folder: Path, engine: Engine, state: TrainState, facts: dict[str, Any], keep: int) -> None:
    """Commit a checkpoint below `folder` and remove all but the `keep` newest; called on all ranks.

    Args:
        facts: what the manifest says of the run (its configuration's hash, the data's hashes).
    """
    target = folder / f"step-{state.step:09d}"
    work = temporary_folder(target) if distributed.is_main() else None
    work = distributed.broadcast(work)
    assert work is not None
    engine.save(work)
    distributed.barrier()
    if distributed.is_main():
        write_json(work / "state.json", state.to_json())
        facts = {"step": state.step, "world_size": distributed.world_size(), **facts}
        commit_folder(work, target, facts)
        write_atomic(folder / LATEST, target.name + "\n")
        _remove_old(folder, keep)
    distributed.barrier()


def load_newest(folder: Path, engine: Engine, data: list[str]) -> TrainState:
    """Take over the newest checkpoint that verifies; called on all ranks.

    Args:
        data: sha256 of the manifests of the data to go on with.

    Raises:
        UserError: no checkpoint can be used, or it was made by another model or number of ranks, or on
            other data: its place in the stream would mean other samples.
    """
    chosen, info = newest_folder(folder)
    if info["data"] != data:
        raise UserError(
            f"{chosen}: was trained on other data than `data.train` now holds; build the same data "
            "again, or start another run from its weights with init_from"
        )
    if info["world_size"] != distributed.world_size():
        raise UserError(
            f"{chosen}: was written by {info['world_size']} ranks, this run has "
            f"{distributed.world_size()}; resume on the same number, or start from its weights with "
            "init_from"
        )
    state = TrainState.from_json(json.loads((chosen / "state.json").read_text(encoding="utf-8")))
    engine.load(chosen, state.step)
    return state


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has finished a checkpoint here, usable or not; a save cut by a kill is none."""
    finished = (path for path in folder.glob("step-*") if ".tmp-" not in path.name)
    return any(finished) or (folder / LATEST).is_file()


def _remove_old(folder: Path, keep: int) -> None:
    committed = sorted(path for path in folder.glob("step-*") if "." not in path.name)
    for path in committed[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob("step-*.tmp-*"):  # left by a kill in the middle of a save
        shutil.rmtree(path)
