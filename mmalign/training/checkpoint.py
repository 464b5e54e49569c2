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
    commit_folder,
    entries_of,
    flush,
    leftovers,
    newest_folder,
    remove_after_commit,
    sha256_of,
    step_folders,
    temporary_folder,
    warning_of,
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
    images_seen: int  # trained on, over all ranks
    captions_seen: int
    stream: StreamState  # position of the next batch
    best: float | None = None  # highest value so far of the metric that chooses the best checkpoint
    # What it started from: `how` (resume_from, init_from), `path`, `manifest_sha256`; None: from scratch.
    parent: dict[str, Any] | None = None
    ledger: dict[str, Any] = field(default_factory=dict)  # samples so far, as in `Ledger.to_json`
    # Fields that were changed on a resume (`run_config.Change`), each with its first `step`.
    changes: list[dict[str, Any]] = field(default_factory=list)

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
        try:
            # One folder for all ranks: its name is random.
            work = distributed.on_main(lambda: temporary_folder(target))
        except UserError as error:
            raise self._failure(target, str(error)) from None
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
        try:
            # Every rank learns of a failure on any of them: a checkpoint without one rank's files is
            # worthless.
            files = distributed.on_all(lambda: _written(job))
            of_ranks = distributed.gather_objects(files)
            files = {name: facts for written in of_ranks for name, facts in written.items()}
            distributed.on_main(lambda: self._commit(job, files))
        except UserError as error:
            if distributed.is_main():
                shutil.rmtree(job.work, ignore_errors=True)
            raise self._failure(job.target, str(error)) from None
        self._heartbeat(f"after saving step {job.step}", False)

    def mark_best(self, step: int) -> None:
        """Make the checkpoint of `step`, the last one that was saved, the best one, which is kept."""
        if self._job is not None:
            self._job = self._job._replace(is_best=True)
        elif distributed.is_main():
            self._tidy(self._folder / f"step-{step:09d}")

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

    def _commit(self, job: "_Job", files: dict[str, Any]) -> None:
        # On rank 0.
        facts = {"step": job.step, "world_size": distributed.world_size(), **self._facts}
        for name, of_file in files.items():
            # What another rank wrote may have gone to a folder that only its host sees.
            path = job.work / name
            if not path.is_file() or path.stat().st_size != of_file["size"]:
                raise UserError(f"{path}: rank 0 does not see what another rank wrote")
        # In this order: until the folder is complete, LATEST and `best` name older ones; and nothing old is
        # removed before the new one is there.
        commit_folder(job.work, job.target, facts, files)
        with warning_of(f"{self._folder / LATEST}: not written"):
            write_atomic(self._folder / LATEST, job.target.name + "\n")
        self._tidy(job.target if job.is_best else None)

    def _tidy(self, best: Path | None) -> None:
        if best is not None:
            self._point_to_best(best)
        with warning_of(f"{self._folder}: old checkpoints are not deleted"):
            remove_after_commit(self._superfluous())
            # Left by a kill in the middle of a save.
            remove_after_commit(leftovers(self._folder, "step-"))

    def _superfluous(self) -> list[Path]:
        best, rule = (self._folder / BEST).resolve(), self._config.keep_every
        return [
            path
            for path in step_folders(self._folder)[: -self._config.keep]
            if path.resolve() != best and not (rule and int(path.name[5:]) % rule == 0)
        ]

    def _point_to_best(self, target: Path) -> None:
        # A link cannot be overwritten, but it can be replaced by a rename, so that there always is one.
        link = self._folder / BEST
        temporary = link.with_name(f".{BEST}.tmp")
        with warning_of(f"{link}: not linked to {target.name}"):  # some file systems have no links
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target.name)
            temporary.replace(link)

    def _failure(self, target: Path, problem: str) -> UserError:
        with suppress(OSError):
            kept = step_folders(self._folder)
            problem += f"); {kept[-1].name} is complete" if kept else ")"
        return UserError(
            f"{target}: the checkpoint could not be written ({problem}; make room and start again"
        )


class _Job(NamedTuple):
    """A checkpoint whose files are being written; `files`: this rank's, by name, with size and sha256."""

    work: Path
    target: Path
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

    def choose() -> Chosen:
        newest, info = newest_folder(folder)
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return Chosen(newest, info, sha256_of(newest / MANIFEST), state)

    return distributed.on_main(choose)


def data_of(folder: Path) -> list[str]:
    """`GlobalOrder.data` of the checkpoints in `folder`, all of one run; empty: there are none to read.

    For rank 0 (`distributed.on_main`). `load` compares it once more, for the checkpoint that verifies.
    """
    for step in reversed(step_folders(folder)):
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
    if not any(name.startswith(OPTIMIZER_FILES) for name in info["files"]):
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
