"""Files at a URL, fetched whole: streamed, resumed where they broke, retried, checked.

    RemoteFile(url, size, sha256) -> blocks from the first missing byte -> file on disk -> size, sha256, fsync
           ^-- wait, longer each time -- a try that broke --'

A try that broke costs the bytes on their way, not those on the disk: they may even be of an earlier process.
"""

import errno
import hashlib
import os
import posixpath
import random
import re
import time
import uuid
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pydantic

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.storage.protocols import (
    WrongBytes,
    blocks,
    is_final,
    reason,
    scheme_of,
    shown,
    status,
)

MOST_UNLISTED = 256 * 2**20  # bytes of a file that no manifest lists
PROGRESS = 2**20  # bytes that make a try no failure
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a next try
# Not the global generator: its draws belong to the run and are equal on all ranks, which would then come
# back to the server at the same instant.
_JITTER = random.SystemRandom()


class RemoteConfig(Section):
    cache: str | None = None
    """Folder that holds fetched shards, on a local disk; the processes of a host share it. None: what the
    environment variable MMALIGN_CACHE names, or ~/.cache/mmalign/shards."""
    cache_gib: float = pydantic.Field(default=50, gt=0)
    """GiB that the folder may hold; shards that a process has open are never removed for it."""
    prefetch: int = pydantic.Field(default=2, ge=0, le=16)
    """Shards that each reading process fetches ahead of use; 0: none."""
    retries: int = pydantic.Field(default=6, ge=0)
    """Further tries, in a row, after a try that got less than a MiB. Waits double from half a second to 30
    seconds, each shortened at random by up to a half."""
    timeout: float = pydantic.Field(default=60, gt=0)
    """Seconds without a connection, or without a byte on one, before a try has failed."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL. `size` in bytes and `sha256` (hexadecimal) as a manifest lists them; None: not listed.

    Raises:
        UserError: the listed facts are none, for example because somebody wrote a path into them.
    """

    url: str
    size: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        sized = self.size is None or (type(self.size) is int and self.size >= 0)
        hashed = self.sha256 is None or (
            isinstance(self.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None
        )
        if not (sized and hashed):
            raise UserError(
                f"{shown(self.url)}: the manifest lists no size and sha256 that can be; write it anew"
            )


def is_remote(name: str) -> bool:
    """Whether a data set's name is a URL and not a folder."""
    return "://" in name


def join(folder: str, name: str) -> str:
    """The URL of the file `name` in the folder at a URL; a query (a signature) stays at the end."""
    if scheme_of(folder) not in ("http", "https"):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=posixpath.join(parts.path or "/", quote(name))))


def fetch(file: RemoteFile, target: Path, config: RemoteConfig) -> None:
    """Fetch a file to `target`, which appears whole or not at all.

    Raises:
        UserError: as `download`.
    """
    temporary = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("a+b", buffering=0) as out:
            download(file, out, config)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def download(file: RemoteFile, out: FileIO, config: RemoteConfig) -> None:
    """Complete `out`, which may hold the file's first bytes already, and bring it to the disk.

    Args:
        out: a file opened with mode `a+b`, unbuffered, which nobody else writes.

    Raises:
        UserError: no such file, not allowed, no answer after all tries, other bytes than listed (twice),
            the disk is full, or the protocol's library is not installed.
    """
    problem = ""
    for _ in range(2):  # a proxy may have spoilt the bytes on their way: they get a second chance
        try:
            digest = _with_retries(file, out, config)
            if file.sha256 in (None, digest):
                _sync(out)
                return
            problem = "its sha256 is not the one that the manifest lists"
        except WrongBytes as wrong:
            problem = str(wrong)
        out.truncate(0)
    raise UserError(
        f"{shown(file.url)}: {problem}, also when fetched again; upload the data set again, whole"
    )


def _with_retries(file: RemoteFile, out: FileIO, config: RemoteConfig) -> str:
    """Append what is missing, in as many tries as it needs; returns the whole file's sha256."""
    out.seek(0)
    digest = hashlib.file_digest(out, "sha256")  # leaves the position at the end
    failures = 0
    while True:
        before = out.tell()
        try:
            _append(file, out, digest, config.timeout)
            return digest.hexdigest()
        except (UserError, WrongBytes):
            raise
        except Exception as error:  # the protocols' libraries have no exception in common
            # The library's own text may hold the URL with its secrets: it is not shown, nor chained.
            if is_final(error):
                raise UserError(_refusal(file.url, error)) from None
            failures = 1 if out.tell() - before >= PROGRESS else failures + 1
            if failures > config.retries:
                raise UserError(
                    f"{shown(file.url)}: {failures} tries in a row failed ({reason(error)}); try again "
                    "later, or raise `retries` or `timeout`"
                ) from None
        time.sleep(_wait(failures))


def _refusal(url: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or status(error) in (404, 410):
        return f"{shown(url)}: no such file there; check the URL"
    public = " (for a public bucket: FSSPEC_S3_ANON=true)" if scheme_of(url) == "s3" else ""
    return (
        f"{shown(url)}: refused ({reason(error)}); check the credentials in the environment{public}"
    )


def _wait(failures: int) -> float:
    """Seconds before the next try: doubling, capped, and shortened at random by up to a half."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) * _JITTER.uniform(0.5, 1)


def _append(file: RemoteFile, out: FileIO, digest: Any, timeout: float) -> None:
    """One try: append the bytes from where `out` ends."""
    start = position = out.tell()
    most = MOST_UNLISTED if file.size is None else file.size
    if position == file.size:
        return
    for block in blocks(file.url, start, file.size, timeout):
        position += len(block)
        if position > most:
            break
        _write(out, block)
        digest.update(block)
    if position > most:
        raise WrongBytes(f"it has more than {most} bytes")
    if file.size is not None and position < file.size:
        if position == start:  # the server answered, and has nothing more
            raise WrongBytes(f"it ends after {position} of {file.size} bytes")
        raise OSError(errno.ECONNABORTED, "the answer ended early")


def _write(out: FileIO, block: bytes) -> None:
    try:
        rest = memoryview(block)
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as error:
        raise _disk_error(out, error) from None


def _sync(out: FileIO) -> None:
    try:
        os.fsync(out.fileno())
    except OSError as error:  # some disks tell only now that they are full
        raise _disk_error(out, error) from None


def _disk_error(out: FileIO, error: OSError) -> UserError:
    """The sentence for the error, after the room was given back to those who write checkpoints."""
    os.ftruncate(out.fileno(), 0)
    folder = Path(str(out.name)).parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"{folder}: the disk is full; free space there, lower `cache_gib`, or name a folder on another "
            "disk in `cache`"
        )
    return UserError(f"{folder}: cannot be written ({error.strerror})")
