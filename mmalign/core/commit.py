"""Folders and files that are either complete or absent.

with committed_folder(target, info) as folder: write into folder
    -> files synced, MANIFEST.json with their sizes and sha256 last, renamed to target
verify(target) -> info, or UserError
"""

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmalign.core.errors import UserError, one_line, printable

MANIFEST = "MANIFEST.json"
# Committed folders of a parent, and what a kill leaves of them. Other names are a person's own.
_STEP = re.compile(r"step-\d+")
_LEFTOVER = re.compile(r"\.(?:tmp|old)-[0-9a-f]{32}$")

# Reading the mask means setting it for a moment, so it is done once, before there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def check_writable(path: Path, is_folder: bool = False) -> None:
    """Refuse an output that cannot be written, before the work for it begins; nothing is made.

    Args:
        path: of the output; it and the folders above it may be missing.
        is_folder: files are written into it, instead of to it.

    Raises:
        UserError: a file is in the place of a folder or the other way round, or the disk refuses it.
    """
    folder = (path if is_folder else path.parent).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(path.stat().st_mode) != is_folder:
                found, wanted = ("file", "folder") if is_folder else ("folder", "file")
                raise UserError(f"{path}: is a {found}; name a {wanted} to write to")
        # A trial: permissions alone do not tell of a disk that is read-only or full.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}: {folder}); fix that or name another place"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path whose file replaces the one at `path` when the block ends, and is deleted if it fails.

    No reader ever sees a part of the file. Folders above it are made if needed.
    """
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # the rename itself
    except BaseException as error:  # also KeyboardInterrupt
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a full disk names none
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` (UTF-8), atomically."""
    with replacing(path) as temporary:
        # Half of a surrogate pair, from a name that is not UTF-8, becomes an escape that JSON can read.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, tree: Any) -> None:
    """Replace the file at `path` by `tree` as indented JSON, atomically."""
    write_atomic(path, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_folder(target: Path) -> Path:
    """A new folder beside `target` to write into before `commit_folder`."""
    folder = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    return folder


def commit_folder(
    folder: Path, target: Path, info: dict[str, Any], files: dict[str, Any] | None = None
) -> None:
    """Write the manifest of `folder`, its last file, and rename it to `target`, replacing what was there."""
    write_manifest(folder, info, files=files)
    replace_folder(folder, target)


def write_manifest(
    folder: Path,
    info: dict[str, Any],
    name: str = MANIFEST,
    files: dict[str, Any] | None = None,
) -> None:
    """Write `info` and every file's size and sha256 to the file `name`, after all of them are synced.

    Args:
        files: what `flush` returned for each file, if that was done already.
    """
    if files is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): flush(path) for path in paths}
    write_json(folder / name, {**info, "files": dict(sorted(files.items()))})
    # Of the listed files alone: a set may lie where others have folders that cannot be read.
    inner = {folder / parent for file in files for parent in Path(file).parents}
    for path in inner - {folder}:
        if path.is_dir():  # or it is in a store
            _sync(path)


def flush(path: Path) -> dict[str, Any]:
    """Bring a file that was just written to the disk; returns its `size` in bytes and its `sha256`."""
    # Some writers (safetensors) make files that only their owner may read.
    path.chmod(0o666 & ~_UMASK)
    _sync(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def replace_folder(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; an old target is deleted only after the new one is in place."""
    had_one = target.exists()
    if had_one:
        # A rename cannot replace a folder that is not empty, so the old one is moved aside first.
        target.rename(name_aside(target))
    folder.rename(target)
    _sync(target.parent)
    if had_one:
        # This finds also what a killed process left here.
        remove_after_commit(leftovers(target.parent, f"{target.name}.old-"))


def name_aside(folder: Path) -> Path:
    """A name beside `folder` for what is to be deleted, which `leftovers` finds."""
    return folder.with_name(f"{folder.name}.old-{uuid.uuid4().hex}")


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds; nothing if it does not exist. An OSError if it cannot be read."""
    # Not glob: it takes a folder that cannot be read for an empty one.
    return list(folder.iterdir()) if folder.is_dir() else []


def step_folders(parent: Path) -> list[Path]:
    """The committed folders `step-<number>` in `parent`, usable or not, oldest first."""
    found = [path for path in entries_of(parent) if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def leftovers(parent: Path, prefix: str) -> list[Path]:
    """Folders of that prefix in `parent` that a killed commit was writing or had moved aside."""
    found = (path for path in parent.iterdir() if path.name.startswith(prefix))
    return [path for path in found if _LEFTOVER.search(path.name)]


def remove_after_commit(folders: Iterable[Path]) -> None:
    """Delete folders that a commit has made superfluous; one that cannot be deleted is a warning."""
    for folder in folders:
        with warning_of(f"{folder}: not deleted"):
            shutil.rmtree(folder)


@contextmanager
def warning_of(what: str) -> Iterator[None]:
    """A block after a commit, whose errors are warnings: the work is done and must not be lost for them.

    Of the machine (OSError), or of a store (UserError).
    """
    try:
        yield
    except (OSError, UserError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        sys.stderr.write(printable(f"warning: {what} ({why})") + "\n")


class InUse(UserError):
    """Another process holds a folder."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if needed, for this process alone.

    The kernel holds the lock, so that of a killed process blocks nobody.

    Raises:
        InUse: another process holds it, which is named by host and process id.
        UserError: no file can be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        # Before the try: versions of the library empty the file when they open it.
        holder = path.read_text(encoding="utf-8") if path.is_file() else ""
        lock = FileLock(path)
        lock.acquire(timeout=0.5)  # not 0: a process that is just ending still has it for a moment
    except Timeout:
        who = holder.strip() or "another process"
        raise InUse(f"{folder}: in use by {who}; wait until it ends, or stop it") from None
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written or locked ({error.strerror}); name another folder"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def committed_folder(target: Path, info: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends, and is deleted when the block fails."""
    folder = temporary_folder(target)
    try:
        yield folder
        commit_folder(folder, target, info)
    except BaseException:  # also KeyboardInterrupt
        shutil.rmtree(folder, ignore_errors=True)
        raise


def verify(folder: Path, hashes: bool = True, leave_out: str | None = None) -> dict[str, Any]:
    """What the manifest of a committed folder says, after every file was compared with it.

    Args:
        hashes: read every file and compare its sha256 too; False: compare the sizes only.
        leave_out: files whose names begin like this are not looked at.

    Raises:
        UserError: the manifest or a file is missing, or a file is not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}, so it was never finished")
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = info["files"].items()
        listed = [(name, facts["size"], facts["sha256"]) for name, facts in files]
        listed = [one for one in listed if not (leave_out and one[0].startswith(leave_out))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a manifest") from None
    for name, size, sha256 in listed:
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file}: missing, though {MANIFEST} lists it")
        # The size first: it is known at once, the hash takes a pass over the file.
        if file.stat().st_size != size or (hashes and sha256_of(file) != sha256):
            raise UserError(f"{file}: damaged, its bytes are not those that {MANIFEST} lists")
    return info


def newest_folder(parent: Path, leave_out: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The newest committed folder `step-<number>` in `parent` that verifies, and its manifest.

    Newer ones that do not verify are named on stderr. For `leave_out` see `verify`.

    Raises:
        UserError: there is none; every folder that was skipped is named with its reason.
    """
    skipped = []
    for folder in reversed(step_folders(parent)):
        try:
            info = verify(folder, leave_out=leave_out)
        except UserError as error:
            skipped.append(str(error))
            continue
        for reason in skipped:
            sys.stderr.write(printable(f"skipped: {reason}") + "\n")
        return folder, info
    reasons = "; ".join(skipped) or "none was written"
    raise UserError(f"{parent}: no checkpoint that can be used ({reasons})")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
