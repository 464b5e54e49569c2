"""The folder of fetched shards that the processes of a host share.

    RemoteFile -> <sha256>.<size>.part, filled and checked -> renamed to <sha256> -> descriptor

All agreement between processes is in the kernel's locks (flock) on these files themselves, so that a process
that is killed leaves nothing behind that blocks or misleads:

- who fetches holds the `.part` alone; who wants the same waits for it. After a kill the next one finds the
  lock free and goes on behind the bytes that are there. The rename takes the lock along.
- who reads holds the file together with other readers; such a file is not removed. Closing the descriptor, or
  dying, ends that.
- over the bound, the files that were asked for longest ago go. What is open or in work stays: only by that
  can the folder pass the bound, and nobody waits for room.

Names are hashes of the content: a data set that was uploaded anew has other names, equal shards have one.
The folder belongs on a local disk. Everything in it that has another name is left alone.
"""

import contextlib
import fcntl
import hashlib
import os
import queue
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download

_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")
_MEND = "name a folder of your own, on a local disk, in `cache` or MMALIGN_CACHE"


class ShardCache:
    """Fetched files by the hash of their content.

    Any number of threads and processes may use one folder. After a fork, and in a spawned process, the
    object goes on as before, with threads of its own.
    """

    def __init__(self, config: RemoteConfig) -> None:
        """
        Raises:
            UserError: the folder cannot be made or written, or belongs to somebody else.
        """
        self.config = config
        self.folder = usable_folder(cache_folder(config))
        self.max_bytes = int(config.cache_gib * 2**30)
        # (name, inode) whose sha256 was seen to be right
        self._verified: set[tuple[str, int]] = set()
        self._forget_threads()

    def __reduce__(self) -> Any:
        return ShardCache, (self.config,)

    def open(self, file: RemoteFile) -> int:
        """A descriptor for reading the file, which is fetched first where it is not there.

        Until it is closed the file is not removed; if somebody removes it all the same, it can still be read.

        Raises:
            UserError: it is larger than the cache, the folder cannot be used, or as `download`.
        """
        assert file.size is not None and file.sha256 is not None, file.url
        if file.size > self.max_bytes:
            raise UserError(
                f"{shown(file.url)}: has {file.size} bytes, more than the whole cache; raise `cache_gib`"
            )
        descriptor = None
        try:
            while descriptor is None:
                descriptor = self._cached(file)
                if descriptor is None:
                    descriptor = self._fetched(file)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); {_MEND}"
            ) from None
        return descriptor

    def prefetch(self, files: Iterable[RemoteFile]) -> None:
        """Fetch the files in the background, in this order. Errors are left to whoever opens the file."""
        if self.config.prefetch == 0:
            return
        if self._process != os.getpid():
            self._start_threads()
        for file in files:
            if file not in self._wanted:
                self._wanted.add(file)
                self._queue.put(file)

    def _path(self, file: RemoteFile) -> Path:
        assert file.sha256 is not None
        return self.folder / file.sha256

    def _cached(self, file: RemoteFile) -> int | None:
        """A held descriptor of a file that is there; None where it is not, or is damaged and now removed."""
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if self._is_right(descriptor, file):
                os.utime(descriptor)  # asked for just now: the last to go
                return descriptor
            _remove(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_right(self, descriptor: int, file: RemoteFile) -> bool:
        """Whether size and content are the listed ones; the content is read once in each process."""
        facts = os.fstat(descriptor)
        if facts.st_size != file.size:
            return False
        known = (str(file.sha256), facts.st_ino)
        if known not in self._verified:
            with open(descriptor, "rb", closefd=False) as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    return False
            os.lseek(descriptor, 0, os.SEEK_SET)  # for who reads from the beginning
            self._verified.add(known)
        return True

    def _fetched(self, file: RemoteFile) -> int | None:
        """A held descriptor of the file, fetched now; None where another process had it in work."""
        path = self._path(file)
        part = path.with_name(f"{path.name}.{file.size}.part")
        with part.open("a+b", buffering=0) as out:
            if not _lock_alone(part, out.fileno()):
                return None
            try:
                if path.exists():
                    part.unlink()
                    return None
                self._trim()
                download(file, out, self.config)
                part.rename(path)
                self._verified.add((path.name, os.fstat(out.fileno()).st_ino))
                fcntl.flock(out, fcntl.LOCK_SH)  # it cannot be removed before it is held anew
                return self._cached(file)
            finally:
                # By closing alone a lock stays with a child that was forked meanwhile.
                fcntl.flock(out, fcntl.LOCK_UN)

    def _trim(self) -> None:
        """Remove files that nobody holds, longest unused first, until the rest is in bounds."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two at once would remove twice as much
            found = _files(self.folder)
            surplus = sum(size for _, size, _ in found) - self.max_bytes
            for _, size, path in found:
                if surplus <= 0:
                    break
                surplus -= size if _remove_unless_held(path) else 0
        finally:
            fcntl.flock(folder, fcntl.LOCK_UN)
            os.close(folder)

    def _forget_threads(self) -> None:
        self._process: int | None = None
        self._queue: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        self._wanted: set[RemoteFile] = set()

    def _start_threads(self) -> None:
        """Threads do not live on in a forked process: each starts its own when it asks."""
        self._forget_threads()
        self._process = os.getpid()
        for _ in range(self.config.prefetch):
            work = (self._queue, self._wanted)
            # A daemon: a process that ends does not wait for a shard that nobody will read.
            threading.Thread(target=self._keep_fetching, args=work, daemon=True).start()

    def _keep_fetching(
        self, asked: "queue.SimpleQueue[RemoteFile]", wanted: set[RemoteFile]
    ) -> None:
        while True:
            file = asked.get()
            with contextlib.suppress(UserError):
                os.close(self.open(file))
            wanted.discard(file)


def _lock_alone(part: Path, descriptor: int) -> bool:
    """Lock a `.part` for fetching; waits while somebody else does. False: it was finished or given up.

    Never by waiting for the lock itself: a finished file takes the lock along, and those who read it may hold
    it for as long as they live.
    """
    while _is_at(part, descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # granted when it is finished, given up or free
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            continue
        if _is_at(part, descriptor):
            return True
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def cache_folder(config: RemoteConfig) -> Path:
    """The folder that the configuration, the environment or nobody names."""
    named = config.cache or os.environ.get("MMALIGN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "mmalign" / "shards"


def usable_folder(folder: Path) -> Path:
    """The folder, made where it is missing, readable by its owner alone."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); {_MEND}") from None
    if os.getuid() not in (0, owner):  # who owns it could change a shard after it was checked
        raise UserError(f"{folder}: belongs to another user; {_MEND}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written; {_MEND}")
    return folder


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(time of the last use, bytes, path) of what we put there, longest unused first.

    What is in work counts with all the bytes that it will have, so that two who begin at the same time do
    not both take the last room.
    """
    found = []
    for entry in os.scandir(folder):
        name = _OURS.fullmatch(entry.name)
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                size = int(name[1] or facts.st_size)
                found.append((facts.st_mtime_ns, size, Path(entry.path)))
    return sorted(found)


def _remove_unless_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path, descriptor)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: Path, descriptor: int) -> None:
    """Remove the open file; not the one that another process may have fetched in its place meanwhile."""
    if _is_at(path, descriptor):
        path.unlink(missing_ok=True)
