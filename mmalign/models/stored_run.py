"""A run in a store of objects: what is there, and copies of it on this host.

    s3://bucket/run/config.yaml, towers.json, tokenizer/, metrics.jsonl, ...
    s3://bucket/run/checkpoints/step-000000400/   as in a folder; MANIFEST.json is written last
    s3://bucket/run/checkpoints/LATEST, best      names of steps

    URL of a run or checkpoint -> local_path -> its files and one checkpoint, in the cache of this host

A checkpoint without a manifest does not exist. `training/remote_run.py` writes all of this.
"""

import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from mmalign.core.commit import (
    MANIFEST,
    remove_after_commit,
    replace_folder,
    replacing,
    step_folders,
    temporary_folder,
)
from mmalign.core.errors import UserError, printable
from mmalign.data.storage.object_store import ObjectStore, local_folder
from mmalign.data.storage.remote import Damaged, RemoteConfig, is_remote

CHECKPOINTS = "checkpoints"
LATEST, BEST = "LATEST", "best"
MOMENTS = "optimizer-rank"
"""How the names of a checkpoint's files begin that only a resume reads."""
_STEP = re.compile(rf"{CHECKPOINTS}/(step-\d+)/(.+)")
_TOKENIZER = re.compile(r"tokenizer/[^/]+")
_MODEL_FILES = ("config.yaml", "towers.json")
_AT_ONCE = 8  # files that are downloaded together
_KEPT_SECONDS = 24 * 3600.0


class StoredRun:
    """A run at a URL."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.store = ObjectStore(url, config)

    def steps(self) -> dict[str, list[str]]:
        """The files of each checkpoint, with or without a manifest, oldest first."""
        found: dict[str, list[str]] = {}
        for name in self.store.list_files(CHECKPOINTS):
            if match := _STEP.fullmatch(name):
                found.setdefault(match[1], []).append(match[2])
        return dict(sorted(found.items(), key=lambda one: int(one[0][5:])))

    def complete(self) -> list[str]:
        """The names of the committed checkpoints, usable or not, oldest first."""
        return [step for step, files in self.steps().items() if MANIFEST in files]

    def named(self, name: str) -> str:
        """The step that LATEST or `best` names; "": none."""
        path = f"{CHECKPOINTS}/{name}"
        if path not in self.store.list_files(CHECKPOINTS):
            return ""
        return self.store.read(path).decode(errors="replace").strip()

    def fetch_files(self, folder: Path, names: tuple[str, ...]) -> None:
        """Copy the run's files of these names, and its tokenizer, into `folder`."""
        for name in self.store.list_files():
            if name in names or _TOKENIZER.fullmatch(name):
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(self.store.read(name))

    def fetch_checkpoint(self, step: str, folder: Path, leave_out: str | None = None) -> Path:
        """Copy a checkpoint into `folder`, whose copy of it is kept if it is the same; returns its path.

        Args:
            leave_out: files whose names begin like this are not needed.

        Raises:
            Damaged: its manifest cannot be read, or a file is missing or is not what was written.
        """
        listed = self.store.list_files(f"{CHECKPOINTS}/{step}")
        manifest_name, target = f"{CHECKPOINTS}/{step}/{MANIFEST}", folder / step
        if manifest_name not in listed or not re.fullmatch(r"step-\d+", step):
            raise UserError(f"{self.store.url}: no finished checkpoint {step}; name one that is")
        manifest = self.store.read(manifest_name)
        try:
            facts = json.loads(manifest)["files"].items()
            files = {
                name: self.store.remote_file(f"{CHECKPOINTS}/{step}/{name}", of)
                for name, of in facts
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(f"{self.store.url}/{manifest_name}: not a manifest") from None
        for name, file in files.items():
            # A name with a slash could be a path to anywhere on this host.
            if "/" in name or listed.get(f"{CHECKPOINTS}/{step}/{name}") != file.size:
                raise Damaged(f"{file.url}: missing or damaged, {MANIFEST} lists {file.size} bytes")
        wanted = {n: of for n, of in files.items() if not (leave_out and n.startswith(leave_out))}
        with suppress(OSError):
            here = {name: (target / name).stat().st_size for name in wanted}
            is_same = here == {name: file.size for name, file in wanted.items()}
            if is_same and (target / MANIFEST).read_bytes() == manifest:
                return target
        work = temporary_folder(target)
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                targets = [work / name for name in wanted]
                list(pool.map(self.store.fetch, wanted.values(), targets))
            (work / MANIFEST).write_bytes(manifest)
            replace_folder(work, target)
        except BaseException:  # also KeyboardInterrupt
            shutil.rmtree(work, ignore_errors=True)
            raise
        return target

    def fetch_newest(self, folder: Path, leave_out: str | None = None) -> Path | None:
        """Copy the newest checkpoint that is not damaged; None: none was ever finished.

        Newer ones that are damaged are named on stderr.

        Raises:
            UserError: none can be used; each is named with its reason. Or the store does not answer: the run
                does not go on from an older one for that.
        """
        skipped: list[str] = []
        steps = self.complete()
        for step in reversed(steps):
            try:
                found = self.fetch_checkpoint(step, folder, leave_out)
            except Damaged as error:
                skipped.append(str(error))
                continue
            for reason in skipped:
                sys.stderr.write(printable(f"skipped: {reason}") + "\n")
            return found
        if steps or self.named(LATEST):
            reasons = "; ".join(skipped) or "those that were there are gone"
            raise UserError(f"{self.store.url}: no checkpoint that can be used ({reasons})")
        return None


def local_path(name: str | Path, moments: bool = False) -> Path:
    """Where a model is on this host: of a run at a URL, a copy of its checkpoint; of others, the name itself.

    Processes of a host may call this at the same time. Copies of other checkpoints that are a day old are
    deleted.

    Args:
        name: `s3://bucket/run`, whose newest checkpoint is meant, `s3://bucket/run/checkpoints/best`, or
            anything else.
        moments: the optimizer's moments are needed too.

    Raises:
        UserError: no run with a usable checkpoint there, or the store does not answer.
    """
    if not is_remote(str(name)):
        return Path(name)
    url, _, step = str(name).rstrip("/").partition(f"/{CHECKPOINTS}/")
    config = RemoteConfig()
    run, folder = StoredRun(url, config), local_folder(url, config, "models")
    leave_out = None if moments else MOMENTS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        run.fetch_files(folder, _MODEL_FILES)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{name}: no run there, it has no config.yaml; check the URL")
        checkpoints = folder / CHECKPOINTS
        if step == BEST:
            step = run.named(BEST) or BEST
        found: Path | None
        if step:
            found = run.fetch_checkpoint(step, checkpoints, leave_out)
        else:
            found = run.fetch_newest(checkpoints, leave_out)
        if found is None:
            raise UserError(f"{name}: no checkpoint was finished there; wait for one")
        found.touch()
        limit = time.time() - _KEPT_SECONDS
        # Not at once: another process may be reading one of them.
        others = [one for one in step_folders(checkpoints) if one != found]
        remove_after_commit(one for one in others if one.stat().st_mtime < limit)
        return found
