"""Where a run's checkpoints are kept: in a folder, by renaming, or in a bucket, by a manifest that is last.

                 a folder                              a bucket
    prepare      -                                     remove what a kill left of the step
    upload       -                                     send a file of this rank
    commit       MANIFEST.json, rename, LATEST         small files of the run, MANIFEST.json, LATEST
    discard      delete where nothing was committed    delete
    remove       delete                                delete, MANIFEST.json first

Rank 0 calls all of these but `upload` and `discard`. A `step` is the name of a checkpoint, such as
step-000000400.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import (
    MANIFEST,
    commit_folder,
    leftovers,
    remove_after_commit,
    step_folders,
    warning_of,
    write_atomic,
    write_manifest,
)
from mmalign.core.errors import UserError
from mmalign.models.stored_run import BEST, CHECKPOINTS, LATEST
from mmalign.training.remote_run import RemoteRun


class FolderStorage:
    """Checkpoints in a folder that all ranks see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, step: str) -> None:
        pass

    def upload(self, file: Path, step: str) -> None:
        pass  # it lies in the folder that will be renamed

    def commit(self, work: Path, step: str, facts: dict[str, Any], files: dict[str, Any]) -> None:
        for name, of_file in files.items():
            # What another rank wrote may have gone to a folder that only its host sees.
            path = work / name
            if not path.is_file() or path.stat().st_size != of_file["size"]:
                raise UserError(f"{path}: rank 0 does not see what another rank wrote")
        commit_folder(work, self._folder / step, facts, files)
        with warning_of(f"{self._folder / LATEST}: not written"):
            write_atomic(self._folder / LATEST, step + "\n")

    def discard(self, work: Path, is_committed: bool) -> None:
        # Never what was committed: on NFS another host knows a folder by its old name for half a minute, and
        # would delete the checkpoint under it.
        if not is_committed and distributed.is_main():
            shutil.rmtree(work, ignore_errors=True)

    def steps(self) -> list[str]:
        return [path.name for path in step_folders(self._folder)]

    def best(self) -> str:
        return (self._folder / BEST).resolve().name

    def set_best(self, step: str) -> None:
        # A link cannot be overwritten, but it can be replaced by a rename, so that there always is one.
        link = self._folder / BEST
        temporary = link.with_name(f".{BEST}.tmp")
        with warning_of(f"{link}: not linked to {step}"):  # some file systems have no links
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(step)
            temporary.replace(link)

    def remove(self, steps: Iterable[str]) -> None:
        remove_after_commit(self._folder / step for step in steps)

    def remove_leftovers(self) -> None:
        remove_after_commit(leftovers(self._folder, "step-"))


class BucketStorage:
    """Checkpoints at a URL; each rank uploads its own files, so that hosts share no file system."""

    def __init__(self, remote: RemoteRun) -> None:
        self._remote, self._run = remote, remote.run

    def prepare(self, step: str) -> None:
        # Other ranks or another number of them may have written it.
        self.remove([step])

    def upload(self, file: Path, step: str) -> None:
        self._run.store.write(f"{CHECKPOINTS}/{step}/{file.name}", file)

    def commit(self, work: Path, step: str, facts: dict[str, Any], files: dict[str, Any]) -> None:
        there = self._run.store.list_files(f"{CHECKPOINTS}/{step}")
        for name, of_file in files.items():
            path = f"{CHECKPOINTS}/{step}/{name}"
            if there.get(path) != of_file["size"]:
                raise UserError(f"{self._run.store.url}/{path}: is not there as it was uploaded")
        self._remote.push()
        write_manifest(work, facts, files=files)
        self._run.store.write(f"{CHECKPOINTS}/{step}/{MANIFEST}", work / MANIFEST)
        with warning_of(f"{self._run.store.url}/{CHECKPOINTS}/{LATEST}: not written"):
            self._run.store.write(f"{CHECKPOINTS}/{LATEST}", f"{step}\n".encode())

    def discard(self, work: Path, is_committed: bool) -> None:
        shutil.rmtree(work, ignore_errors=True)  # each host's own

    def steps(self) -> list[str]:
        return self._run.complete()

    def best(self) -> str:
        return self._run.named(BEST)

    def set_best(self, step: str) -> None:
        with warning_of(f"{self._run.store.url}/{CHECKPOINTS}/{BEST}: not {step}"):
            self._run.store.write(f"{CHECKPOINTS}/{BEST}", f"{step}\n".encode())

    def remove(self, steps: Iterable[str]) -> None:
        found = self._run.steps()
        for step in steps:
            names = sorted(found.get(step, ()), key=lambda name: name != MANIFEST)
            self._run.store.remove(f"{CHECKPOINTS}/{step}/{name}" for name in names)

    def remove_leftovers(self) -> None:
        complete = self._run.complete()
        self.remove(step for step in self._run.steps() if step not in complete)
