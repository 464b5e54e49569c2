"""Checkpoints of a run: complete or absent, newest first.

    runs/x/checkpoints/step-000000400/   model.safetensors, optimizer-rank*.safetensors, state.json,
                                         MANIFEST.json (last)
    runs/x/checkpoints/LATEST            name of the newest one
    runs/x/checkpoints/best              link to the best one, where the run chooses by a metric

    engine -> copies on the host -> files of this rank, synced and hashed (in a thread if asynchronous)
           -> all ranks are done: rank 0 writes the manifest and renames the folder

A checkpoint does not depend on the number of ranks or the ZeRO stage that wrote it, and contains no pickle.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import (
    commit_folder,
    flush,
    newest_folder,
    temporary_folder,
    write_atomic,
    write_json,
)
from mmalign.core.config import Section
from mmalign.core.errors import UserError, one_line
from mmalign.data.stream.order import FULL, ORDER_VERSION, GlobalOrder
from mmalign.training.engine import OPTIMIZER_FILES, Engine

LATEST = "LATEST"
BEST = "best"


class CheckpointConfig(Section):
    every: int = pydantic.Field(default=500, ge=1)
    """Steps between checkpoints; the last step is saved too."""
    minutes: float | None = pydantic.Field(default=None, gt=0)
    """Longest time between checkpoints, for slow steps."""
    keep: int = pydantic.Field(default=2, ge=1)
    """How many of the newest to keep."""
    keep_every: int | None = pydantic.Field(default=None, ge=1)
    """Checkpoints of steps divisible by this are kept permanently."""
    asynchronous: bool = False
    """Write while training continues; needs a copy of weights and optimizer state in the host's memory."""


@dataclass(frozen=True)
class TrainState:
    """The state of a run beside the engine's tensors."""

    step: int  # steps taken
    pairs_seen: int  # captions trained on, over all ranks
    stream: StreamState  # position of the next batch
    best: float | None = None  # highest value so far of the metric that chooses the best checkpoint
    parent: dict[str, Any] | None = None  # `initialization.parent_of`; None: from scratch
    ledger: dict[str, Any] = field(default_factory=dict)  # samples so far, as in `Ledger.to_json`

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "stream": vars(self.stream)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "TrainState":
        # Fields that an older version did not write keep their defaults; unknown ones are ignored.
        known = {name: tree[name] for name in cls.__dataclass_fields__ if name in tree}
        return cls(**{**known, "stream": StreamState(**tree["stream"])})


class Saver:
    """Writes a run's checkpoints into `folder`; every rank calls every method at the same step.

    `facts` are for the manifest: hashes of the configuration and the data, the code's version.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        facts: dict[str, Any],
        heartbeat: Callable[[str, bool], None] = lambda what, saves: None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._facts = facts
        self._heartbeat = heartbeat
        self._job: _Job | None = None
        self._thread = ThreadPoolExecutor(1)

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes its files."""
        return self._job is not None and not self._job.files.done()

    def save(self, engine: Engine, state: TrainState, is_best: bool = False) -> None:
        """Start a checkpoint, and finish it unless `asynchronous`.

        Raises:
            UserError: this or the one before could not be written; older checkpoints are unchanged.
        """
        # At most one copy of the state is on the host: the previous save must end first.
        self.finish()
        self._heartbeat(f"saving step {state.step}", True)
        target = self._folder / f"step-{state.step:09d}"
        # One folder for all ranks: its name is random, so rank 0 makes it and sends it to the others.
        work, problem = None, None
        if distributed.is_main():
            try:
                work = temporary_folder(target)
            except OSError as error:
                problem = str(error)
        work, problem = distributed.broadcast((work, problem))
        if work is None:
            raise self._failure(target, problem)
        files = self._thread.submit(self._write, work, state, *engine.capture())
        self._job = _Job(work, target, state.step, is_best, files)
        if not self._config.asynchronous:
            self.finish()
        self._heartbeat(f"after saving step {state.step}", False)

    def finish(self) -> None:
        """Wait until all ranks have written, and commit; UserError: one of them could not."""
        if self._job is None:
            return
        job, self._job = self._job, None
        self._heartbeat(f"saving step {job.step}", True)
        files: dict[str, Any] = {}
        problem = None
        try:
            files = job.files.result()
        except (OSError, SafetensorError) as error:
            problem = one_line(error)
        # Every rank learns of a failure on any of them: a checkpoint without one rank's files is worthless.
        outcomes = distributed.gather_objects((files, problem))
        problem = next((problem for _, problem in outcomes if problem), None)
        if distributed.is_main():
            files = {name: facts for written, _ in outcomes for name, facts in written.items()}
            problem = problem or self._commit(job, files)
            if problem:
                shutil.rmtree(job.work, ignore_errors=True)
        problem = distributed.broadcast(problem)
        if problem:
            raise self._failure(job.target, problem)
        self._heartbeat(f"after saving step {job.step}", False)

    def _write(
        self,
        folder: Path,
        state: TrainState,
        moments: dict[str, Tensor],
        weights: dict[str, dict[str, Tensor]],
    ) -> dict[str, Any]:
        files = {f"{OPTIMIZER_FILES}{distributed.rank():05d}.safetensors": moments, **weights}
        if distributed.is_main():
            write_json(folder / "state.json", state.to_json())
        for name, tensors in files.items():
            self._heartbeat(f"writing {name}", True)
            save_file(tensors, folder / name)
        written = [*files, *(["state.json"] if distributed.is_main() else [])]
        return {name: flush(folder / name) for name in written}

    def _commit(self, job: "_Job", files: dict[str, Any]) -> str | None:
        # On rank 0. Returns what went wrong.
        facts = {"step": job.step, "world_size": distributed.world_size(), **self._facts}
        try:
            # In this order: until the folder is complete, LATEST and `best` name older ones; and nothing old
            # is removed before the new one is there.
            commit_folder(job.work, job.target, facts, files)
            write_atomic(self._folder / LATEST, job.target.name + "\n")
            if job.is_best:
                _point(self._folder / BEST, job.target)
            self._remove_old()
        except OSError as error:
            return str(error)
        return None

    def _remove_old(self) -> None:
        best = (self._folder / BEST).resolve()
        committed = sorted(path for path in self._folder.glob("step-*") if "." not in path.name)
        for path in committed[: -self._config.keep]:
            step, rule = int(path.name.removeprefix("step-")), self._config.keep_every
            if path.resolve() != best and not (rule and step % rule == 0):
                shutil.rmtree(path)
        for path in self._folder.glob("step-*.tmp-*"):  # left by a kill in the middle of a save
            shutil.rmtree(path)

    def _failure(self, target: Path, problem: str | None) -> UserError:
        kept = sorted(path.name for path in self._folder.glob("step-*") if "." not in path.name)
        newest = f"; {kept[-1]} is complete" if kept else ""
        return UserError(
            f"{target}: the checkpoint could not be written ({problem}){newest}; make room and start again"
        )


class _Job(NamedTuple):
    """A checkpoint whose files are being written; `files`: this rank's, by name, with size and sha256."""

    work: Path
    target: Path
    step: int
    is_best: bool
    files: Future[dict[str, Any]]


def load_newest(folder: Path, engine: Engine, plan: GlobalOrder) -> TrainState:
    """Load the newest checkpoint that verifies; called on all ranks.

    Args:
        plan: of the data that the run continues with.

    Raises:
        UserError: no checkpoint can be used, or it was made by another model, or on other data or in another
            order: its position in the stream would mean other samples.
    """
    chosen, info = newest_folder(folder)
    fix = "start another run from its weights with init_from"
    if info["data"] != plan.data:
        raise UserError(
            f"{chosen}: was trained on other data than `data.train` now holds; build them again, or {fix}"
        )
    shuffle = info.get("shuffle", FULL)  # before there were windows
    if shuffle != plan.shuffle:
        raise UserError(
            f"{chosen}: its run shuffled the data in another way ({shuffle}, here {plan.shuffle}); set "
            "data.shuffle_shards accordingly (full: at least the number of shards) and go on in another "
            "folder with resume_from"
        )
    version = info.get("order_version", 1)  # mmalign 0.1.0 did not write it
    if version != ORDER_VERSION:
        raise UserError(
            f"{chosen}: was written under version {version} of the data's order, this mmalign has version "
            f"{ORDER_VERSION}; {fix}"
        )
    if not any(chosen.glob(f"{OPTIMIZER_FILES}*")):
        raise UserError(f"{chosen}: holds no optimizer state that this version reads; {fix}")
    state = TrainState.from_json(json.loads((chosen / "state.json").read_text(encoding="utf-8")))
    engine.restore(chosen, state.step)
    return state


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has finished a checkpoint here, usable or not; an interrupted save does not count."""
    finished = (path for path in folder.glob("step-*") if ".tmp-" not in path.name)
    return any(finished) or (folder / LATEST).is_file()


def _point(link: Path, target: Path) -> None:
    # A link cannot be overwritten, but it can be replaced by a rename, so that there always is one.
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)
