"""Files at a URL: complete ones streamed, resumed where they broke, retried, checked; or a range of bytes.

RemoteFile(url, size, sha256) -> blocks from the first missing byte -> file on disk -> size, sha256, fsync
       ^-- wait, longer each time -- a try that broke --'
RemoteFile, first byte, size  -> one request, retried likewise      -> bytes, which the caller checks
"""

import errno
import hashlib
import os
import posixpath
import random
import tempfile
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pydantic
from pydantic.dataclasses import dataclass

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.storage.protocols import (
    WrongBytes,
    blocks,
    is_final,
    read_range,
    reason,
    retry_after,
    scheme_of,
    shown,
    status,
)

T = TypeVar("T")

# Bytes of a file that no manifest lists. A manifest of version 0.1.0 has about 2 kB per shard.
MOST_UNLISTED = 4 * 2**30
PROGRESS = 2**20  # bytes after which a try that broke does not count as a failure
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the next try
LONGEST_ASKED = 300.0  # seconds that a server may ask to wait
# Not the global generator: its draws belong to the run and are equal on all ranks, so that all would come
# back to the server at the same instant.
_JITTER = random.SystemRandom()


class Damaged(UserError):
    """A file whose bytes are not those that its manifest lists."""


class RemoteConfig(Section):
    cache: str | None = None
    """Folder for downloaded shards, on a local disk; the processes of a host share it. None: the folder that
    the environment variable MMALIGN_CACHE names, or ~/.cache/mmalign/shards."""
    cache_gib: float = pydantic.Field(default=50, gt=0)
    """GiB that the folder never exceeds. A run that needs more is refused at its start, with the number."""
    prefetch: int = pydantic.Field(default=4, ge=0, le=64)
    """Files that the processes of a host together download at a time, ahead of use. Until a shard is
    complete, its samples are read by byte ranges. 0: nothing ahead, a sample waits for its shard."""
    retries: int = pydantic.Field(default=14, ge=0)
    """Further tries, in a row, after a try that got less than a MiB. Waits double from half a second to 30
    seconds, each shortened at random by up to a half: more than two minutes in all. A server that asks for a
    longer wait (Retry-After) gets it, up to five minutes."""
    timeout: float = pydantic.Field(default=60, gt=0)
    """Seconds without a connection, or without a byte on one, before a try has failed."""


@dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class RemoteFile:
    """A file at a URL. `size` in bytes and `sha256` (hexadecimal) as a manifest lists them, if it does."""

    url: str
    size: Annotated[int, pydantic.Field(ge=0)] | None = None
    # It becomes a file name, so it must not be a path.
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")] | None = None


def is_remote(name: str) -> bool:
    """Whether a data set's name is a URL and not a folder."""
    return "://" in name


def join(folder: str, name: str) -> str:
    """The URL of the file `name` in the folder at a URL; a query (a signature) stays at the end."""
    if scheme_of(folder) not in ("http", "https"):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=posixpath.join(parts.path or "/", quote(name))))


def fetch(file: RemoteFile, config: RemoteConfig) -> bytes:
    """All bytes of a small file."""
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "file").open("a+b", buffering=0) as out,
    ):
        download(file, out, config)
        out.seek(0)
        return out.readall()


def download(file: RemoteFile, out: FileIO, config: RemoteConfig) -> None:
    """Complete `out`, which may already hold the file's first bytes, and bring it to the disk.

    Args:
        out: a file opened with mode `a+b`, unbuffered, which no other process writes.

    Raises:
        Damaged: other bytes than listed, twice.
        UserError: no such file, not allowed, no answer after all tries, the disk is full, or the protocol's
            library is not installed.
    """
    problem = ""
    for _ in range(2):  # a proxy may have damaged the bytes on their way: they get a second chance
        try:
            digest = _with_retries(file, out, config)
            if file.sha256 in (None, digest):
                _to_disk(out)
                return
            problem = "its sha256 is not the one that the manifest lists"
        except WrongBytes as wrong:
            problem = str(wrong)
        out.truncate(0)
    raise Damaged(
        f"{shown(file.url)}: {problem}, also when fetched again; upload the complete folder again"
    )


def _with_retries(file: RemoteFile, out: FileIO, config: RemoteConfig) -> str:
    """Append what is missing, in as many tries as needed; returns the complete file's sha256."""
    out.seek(0)
    digest = hashlib.file_digest(out, "sha256")  # leaves the position at the end
    retried(lambda: _append(file, out, digest, config.timeout), file.url, config, out.tell)
    return str(digest.hexdigest())


def fetch_range(file: RemoteFile, start: int, size: int, config: RemoteConfig) -> bytes | None:
    """The `size` bytes of a file from byte `start`; None if this file can only be read completely.

    Raises:
        UserError: no such file, not allowed, or no answer after all tries.
    """
    try:
        return retried(lambda: read_range(file.url, start, size, config.timeout), file.url, config)
    except WrongBytes:
        return None


def retried(
    attempt: Callable[[], T],
    url: str,
    config: RemoteConfig,
    position: Callable[[], int] = lambda: 0,
) -> T:
    """What `attempt` returns, in as many tries as `config` allows.

    Args:
        position: the bytes that it got so far, for tries that go on where the one before broke.

    Raises:
        UserError: refused, or no answer after all tries.
    """
    failures = 0
    while True:
        before = position()
        try:
            return attempt()
        except (UserError, WrongBytes):
            raise
        except Exception as error:  # the protocols' libraries have no exception in common
            # The library's own text may contain the URL with its secrets: it is not shown, nor chained.
            if is_final(error):
                raise UserError(_refusal(url, error)) from None
            failures = 1 if position() - before >= PROGRESS else failures + 1
            if failures > config.retries:
                raise UserError(
                    f"{shown(url)}: {failures} tries in a row failed ({reason(error)}); try again "
                    "later, or raise `retries` or `timeout`"
                ) from None
            asked = min(LONGEST_ASKED, retry_after(error))
        # Doubling and capped. Changed at random, so that the ranks do not come back together.
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1))
        time.sleep(max(longest * _JITTER.uniform(0.5, 1), asked * _JITTER.uniform(1, 1.2)))


def _refusal(url: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or status(error) in (404, 410):
        return f"{shown(url)}: no such file there; check the URL"
    public = " (for a public bucket: FSSPEC_S3_ANON=true)" if scheme_of(url) == "s3" else ""
    return (
        f"{shown(url)}: refused ({reason(error)}); check the credentials in the environment{public}"
    )


def _append(file: RemoteFile, out: FileIO, digest: Any, timeout: float) -> None:
    start = position = out.tell()
    most = MOST_UNLISTED if file.size is None else file.size
    if position == file.size:
        return
    for block in blocks(file.url, start, file.size, timeout):
        position += len(block)
        if position > most:
            raise WrongBytes(f"it has more than {most} bytes")
        _to_disk(out, block)
        digest.update(block)
    if file.size is not None and position < file.size:
        if position == start:  # the server answered, and has no more bytes
            raise WrongBytes(f"it ends after {position} of {file.size} bytes")
        raise OSError(errno.ECONNABORTED, "the answer ended early")


def _to_disk(out: FileIO, block: bytes | None = None) -> None:
    """Write a block, or bring what was written to the disk."""
    try:
        rest = memoryview(block or b"")
        while rest:
            rest = rest[out.write(rest) :]
        if block is None:  # some disks report only now that they are full
            os.fsync(out.fileno())
    except OSError as error:
        os.ftruncate(out.fileno(), 0)  # others, who write checkpoints, need the space
        folder = Path(str(out.name)).parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{folder}: the disk is full; free space there, lower `cache_gib`, or name a folder on "
                "another disk in `cache`"
            ) from None
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
