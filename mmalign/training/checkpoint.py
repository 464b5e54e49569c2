"""Checkpoints of a run: complete or absent, newest first.

    runs/x/checkpoints/step-000000400/   model.safetensors, optimizer-rank*.safetensors, state.json,
                                         MANIFEST.json (last)
    runs/x/checkpoints/LATEST            name of the newest one
    runs/x/checkpoints/best              link to the best one, where the run chooses by a metric

    engine -> copies on the host -> files of this rank, synced and hashed (in a thread if asynchronous)
           -> all ranks are done: rank 0 writes the manifest and renames the folder
    or, of a run in a store, each rank uploads its files, and rank 0 the manifest (`checkpoint_storage.py`)

A checkpoint does not depend on the number of ranks or the ZeRO stage that wrote it, and contains no pickle.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from safetensors.torch import save_file
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import (
    MANIFEST,
    entries_of,
    flush,
    newest_folder,
    sha256_of,
    step_folders,
    temporary_folder,
    warning_of,
    write_json,
)
from mmalign.core.config import Section
from mmalign.core.errors import UserError, one_line
from mmalign.data.stream.order import FULL, ORDER_VERSION, GlobalOrder
from mmalign.models.encoder import checkpoint_of, run_of
from mmalign.models.stored_run import CHECKPOINTS, LATEST, MOMENTS, local_path
from mmalign.training.checkpoint_storage import BucketStorage, FolderStorage
from mmalign.training.engine import Engine
from mmalign.training.remote_run import RemoteRun


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
    images_seen: int  # trained on, over all ranks
    captions_seen: int
    stream: StreamState  # position of the next batch
    best: float | None = None  # highest value so far of the metric that chooses the best checkpoint
    # What it started from: `how` (resume_from, init_from), `path`, `manifest_sha256`; None: from scratch.
    parent: dict[str, Any] | None = None
    ledger: dict[str, Any] = field(default_factory=dict)  # samples so far, as in `Ledger.to_json`
    # Fields that were changed on a resume (`run_config.Change`), each with its first `step`.
    changes: list[dict[str, Any]] = field(default_factory=list)
    # `suite` and `metric` of `best`, which a resume may change; None: not known (older checkpoints).
    best_of: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "stream": vars(self.stream)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "TrainState":
        # Fields that an older version did not write keep their defaults; unknown ones are ignored.
        known = {name: tree[name] for name in cls.__dataclass_fields__ if name in tree}
        if "pairs_seen" in tree:  # of captions, before 0.2; images were not counted
            old = {"images_seen": tree["stream"]["position"], "captions_seen": tree["pairs_seen"]}
            known = {**old, **known}
        return cls(**{**known, "stream": StreamState(**tree["stream"])})


class Saver:
    """Writes a run's checkpoints; every rank calls every method at the same step.

    Args:
        folder: of the checkpoints, or of their files before they are in the store.
        facts: for the manifest: hashes of the configuration and the data, the code's version.
        remote: the run in a store, if it is in one.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        facts: dict[str, Any],
        heartbeat: Callable[[str, bool], None] = lambda what, saves: None,
        remote: RemoteRun | None = None,
    ) -> None:
        self._folder = folder
        self._storage = FolderStorage(folder) if remote is None else BucketStorage(remote)
        self._where = folder if remote is None else f"{remote.url}/{CHECKPOINTS}"
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
        name = f"step-{state.step:09d}"
        try:
            # One name for all ranks: it is random.
            work = self._folder / distributed.on_main(lambda: self._begin(name))
        except UserError as error:
            raise self._failure(name, str(error)) from None
        files = self._thread.submit(self._write, work, state, *engine.capture())
        self._job = _Job(work, name, state.step, is_best, files)
        if not self._config.asynchronous:
            self.finish()
        self._heartbeat(f"after saving step {state.step}", False)

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint is complete; for rank 0 (`distributed.on_main`), after `finish`."""
        return bool(self._storage.steps())

    def finish(self) -> None:
        """Wait until all ranks have written, and commit; UserError: one of them could not."""
        if self._job is None:
            return
        job, self._job = self._job, None
        self._heartbeat(f"saving step {job.step}", True)
        try:
            # Every rank learns of a failure on any of them: a checkpoint without one rank's files is
            # worthless.
            files = distributed.on_all(lambda: _written(job))
            of_ranks = distributed.gather_objects(files)
            files = {name: facts for written in of_ranks for name, facts in written.items()}
            distributed.on_main(lambda: self._commit(job, files))
        except UserError as error:
            self._storage.discard(job.work, is_committed=False)
            raise self._failure(job.name, str(error)) from None
        self._storage.discard(job.work, is_committed=True)
        self._heartbeat(f"after saving step {job.step}", False)

    def _begin(self, name: str) -> str:
        self._storage.prepare(name)
        return temporary_folder(self._folder / name).name

    def mark_best(self, step: int) -> None:
        """Make the checkpoint of `step`, the last one that was saved, the best one, which is kept."""
        if self._job is not None:
            self._job = self._job._replace(is_best=True)
        elif distributed.is_main():
            name = f"step-{step:09d}"
            self._tidy(name, name)

    def _write(
        self,
        folder: Path,
        state: TrainState,
        moments: dict[str, Tensor],
        weights: dict[str, dict[str, Tensor]],
    ) -> dict[str, Any]:
        files = {f"{MOMENTS}{distributed.rank():05d}.safetensors": moments, **weights}
        # There already, unless the checkpoints are in a store and this host shares no folder with rank 0.
        folder.mkdir(parents=True, exist_ok=True)
        if distributed.is_main():
            write_json(folder / "state.json", state.to_json())
        for name, tensors in files.items():
            self._heartbeat(f"writing {name}", True)
            save_file(tensors, folder / name)
        written = [*files, *(["state.json"] if distributed.is_main() else [])]
        facts = {name: flush(folder / name) for name in written}
        for name in written:
            self._heartbeat(f"uploading {name}", True)
            self._storage.upload(folder / name, f"step-{state.step:09d}")
        return facts

    def _commit(self, job: "_Job", files: dict[str, Any]) -> None:
        # On rank 0. Until the checkpoint is complete, LATEST and `best` name older ones; and nothing old is
        # removed before the new one is there.
        facts = {"step": job.step, "world_size": distributed.world_size(), **self._facts}
        self._storage.commit(job.work, job.name, facts, files)
        self._tidy(job.name, job.name if job.is_best else None)

    def _tidy(self, saved: str, best: str | None) -> None:
        if best is not None:
            self._storage.set_best(best)
        with warning_of(f"{self._where}: old checkpoints are not deleted"):
            self._storage.remove(self._superfluous(saved))
            # Left by a kill in the middle of a save.
            self._storage.remove_leftovers()

    def _superfluous(self, saved: str) -> list[str]:
        best, rule = self._storage.best(), self._config.keep_every
        # A later one was passed over at the start as damaged: it must not take the place of a usable one.
        known = [step for step in self._storage.steps() if step <= saved]
        return [
            step
            for step in known[: -self._config.keep]
            if step != best and not (rule and int(step[5:]) % rule == 0)
        ]

    def _failure(self, name: str, problem: str) -> UserError:
        with suppress(OSError, UserError):
            kept = self._storage.steps()
            problem += f"); {kept[-1]} is complete" if kept else ")"
        return UserError(
            f"{self._where}/{name}: the checkpoint could not be written ({problem}; make room and start again"
        )


class _Job(NamedTuple):
    """A checkpoint whose files are being written; `files`: this rank's, by name, with size and sha256."""

    work: Path
    name: str
    step: int
    is_best: bool
    files: Future[dict[str, Any]]


def _written(job: _Job) -> dict[str, Any]:
    try:
        return job.files.result()
    except Exception as error:  # also a MemoryError, whose text is empty
        raise UserError(f"{type(error).__name__}: {one_line(error)}") from None


class Chosen(NamedTuple):
    """The newest checkpoint that verifies, as rank 0 read it: the same on all ranks."""

    folder: Path
    info: dict[str, Any]  # of its manifest
    sha256: str  # of the manifest itself
    state: dict[str, Any]  # of state.json


def choose_newest(folder: Path) -> Chosen:
    """Choose among the checkpoints in `folder`; called on all ranks, rank 0 reads and verifies.

    Raises:
        UserError: none can be used.
    """

    return distributed.on_main(lambda: _chosen(*newest_folder(folder)))


def choose(path: str) -> Chosen:
    """As `choose_newest`, of a run that a path or a URL names, or that very checkpoint."""
    return distributed.on_main(lambda: _chosen(*checkpoint_of(local_path(path, moments=True))))


def _chosen(folder: Path, info: dict[str, Any]) -> Chosen:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Chosen(folder, info, sha256_of(folder / MANIFEST), state)


def data_so_far(run: Path, resume_from: str | None) -> list[str]:
    """`GlobalOrder.data` of the checkpoints that a run goes on from; empty: there are none to read.

    What is appended to a set must not change the order of its samples. For rank 0 (`distributed.on_main`).
    `load` compares it once more, for the checkpoint that verifies.
    """
    if not has_checkpoints(run / CHECKPOINTS):
        if resume_from is None:
            return []
        run = run_of(local_path(resume_from, moments=True))
    for step in reversed(step_folders(run / CHECKPOINTS)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(map(str, json.loads((step / MANIFEST).read_bytes())["data"]))
    return []


def load(chosen: Chosen, engine: Engine, plan: GlobalOrder) -> TrainState:
    """Load a checkpoint; called on all ranks, of which rank 0 reads it and sends it to the others.

    Args:
        plan: of the data that the run continues with.

    Raises:
        UserError: it was made by another model, or on other data or in another order: its position in the
            stream would mean other samples.
    """
    folder, info = chosen.folder, chosen.info
    fix = "start another run from its weights with init_from"
    if info["data"] != plan.data:
        raise UserError(
            f"{folder}: was trained on other data than `data.train` now holds; build them again, or {fix}"
        )
    shuffle = info.get("shuffle", FULL)  # before there were windows
    if shuffle != plan.shuffle:
        raise UserError(
            f"{folder}: its run shuffled the data in another way ({shuffle}, here {plan.shuffle}); set "
            "data.shuffle_shards and data.groups accordingly (full: at least the number of shards, 1 group) "
            "and go on in another folder with resume_from"
        )
    version = info.get("order_version", 1)  # mmalign 0.1.0 did not write it
    if version not in range(1, ORDER_VERSION + 1):
        raise UserError(
            f"{folder}: was written under version {version} of the data's order, this mmalign has versions "
            f"1 to {ORDER_VERSION}; {fix}"
        )
    plan.version = version  # the run goes on in the order that it began with
    if not any(name.startswith(MOMENTS) for name in info["files"]):
        raise UserError(f"{folder}: holds no optimizer state that this version reads; {fix}")
    state = TrainState.from_json(chosen.state)
    engine.restore(folder, state.step)
    return state


def load_newest(folder: Path, engine: Engine, plan: GlobalOrder) -> TrainState:
    """`choose_newest`, then `load`."""
    return load(choose_newest(folder), engine, plan)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has finished a checkpoint here, usable or not; an interrupted save does not count.

    For rank 0 (`distributed.on_main`).
    """
    names = [path.name for path in entries_of(folder)]
    return any(n == LATEST or (n.startswith("step-") and ".tmp-" not in n) for n in names)
