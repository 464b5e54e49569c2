"""The folder of downloaded shards that the processes of a host share.

    RemoteFile -> <sha256>.<size>.part, filled and checked -> renamed to <sha256> -> descriptor

Processes coordinate through the kernel's locks alone (flock), so a process that is killed leaves nothing
behind that blocks or misleads others:

- whoever downloads a file holds `lock-<...>` exclusively; others that want the same file wait for it. After
  a kill, the next one continues after the bytes that are already in the `.part`.
- whoever reads or downloads a file holds that file together with other readers, and it is not removed. The
  hold ends when the descriptor is closed or the process ends.
- over the size limit, the files that were used longest ago are removed. Files that are open or in work
  stay: only then can the folder exceed the limit, and no process waits for space.

Names are hashes of the content: a data set that was uploaded again has other names, equal shards have one.
The folder belongs on a local disk. Files in it with other names are left alone.
"""

import contextlib
import fcntl
import hashlib
import os
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download

_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")
_FIX = "name a folder of your own, on a local disk, in `cache` or MMALIGN_CACHE"


class ShardCache:
    """Downloaded files by the hash of their content.

    Any number of threads and processes may use one folder. After a fork, and in a spawned process, the
    object works as before, with threads of its own.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.folder = usable_folder(cache_folder(config))
        self.max_bytes = int(config.cache_gib * 2**30)
        # (name, inode) of files whose sha256 was found to be correct
        self._verified: set[tuple[str, int]] = set()
        self._process: int | None = None  # that the prefetching threads belong to

    def __reduce__(self) -> Any:
        return ShardCache, (self.config,)

    def open(self, file: RemoteFile) -> int:
        """A descriptor for reading the file, which is downloaded first if it is not there.

        Until it is closed the file is not removed; if somebody removes it all the same, it can still be read.

        Raises:
            UserError: it is larger than the cache, the folder cannot be used, or as `download`.
        """
        assert file.size is not None and file.sha256 is not None, file.url
        if file.size > self.max_bytes:
            raise UserError(
                f"{shown(file.url)}: has {file.size} bytes, more than the whole cache; raise `cache_gib`"
            )
        try:
            descriptor = self._cached(file)
            if descriptor is None:
                # Lock files cannot be deleted safely, so there is a bounded number of them: 16^3.
                with self._locked(file.sha256[:3]):
                    descriptor = self._cached(file)  # another process may have been faster
                    while descriptor is None:
                        descriptor = self._fetch(file)
            return descriptor
        except OSError as error:
            raise_if_of_machine(error)
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); {_FIX}"
            ) from None

    def prefetch(self, files: Iterable[RemoteFile]) -> None:
        """Download the files in the background, in this order. Errors are reported when a file is opened."""
        if self.config.prefetch == 0:
            return
        if self._process != os.getpid():  # threads do not survive a fork
            self._process = os.getpid()
            self._queue: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
            self._wanted: set[RemoteFile] = set()
            for _ in range(self.config.prefetch):
                # A daemon: a process that ends does not wait for a shard that it will not read.
                threading.Thread(target=self._keep_fetching, daemon=True).start()
        for file in files:
            if file not in self._wanted:
                self._wanted.add(file)
                self._queue.put(file)

    def _keep_fetching(self) -> None:
        while True:
            file = self._queue.get()
            with contextlib.suppress(UserError, OSError):
                os.close(self.open(file))
            self._wanted.discard(file)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # Not by filelock, which would make a folder that is missing, and for everybody.
        descriptor = os.open(self.folder / f"lock-{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _cached(self, file: RemoteFile) -> int | None:
        """A descriptor that holds a file of the folder; None if it is not there, or is damaged."""
        try:
            descriptor = os.open(self.folder / str(file.sha256), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if self._is_valid(descriptor, file):
                os.utime(descriptor)  # used just now: the last to be removed
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_valid(self, descriptor: int, file: RemoteFile) -> bool:
        """Whether size and content are the listed ones; the content is read once in each process."""
        facts = os.fstat(descriptor)
        known = (str(file.sha256), facts.st_ino)
        if facts.st_size == file.size and known not in self._verified:
            with open(descriptor, "rb", closefd=False) as content:
                if hashlib.file_digest(content, "sha256").hexdigest() == file.sha256:
                    self._verified.add(known)
            os.lseek(descriptor, 0, os.SEEK_SET)  # for a caller that reads from the beginning
        return facts.st_size == file.size and known in self._verified

    def _fetch(self, file: RemoteFile) -> int | None:
        """Download a file, over a damaged one if there is one; None if its `.part` was removed meanwhile."""
        path = self.folder / str(file.sha256)
        part = path.with_name(f"{path.name}.{file.size}.part")
        with part.open("a+b", buffering=0) as out:
            try:
                fcntl.flock(out, fcntl.LOCK_SH)
                if not _is_at(part, out.fileno()):
                    return None
                self._trim()
                download(file, out, self.config)
                part.rename(path)
                self._verified.add((path.name, os.fstat(out.fileno()).st_ino))
                # Before `out` releases it, so that it cannot be removed in between.
                return self._cached(file)
            finally:
                fcntl.flock(out, fcntl.LOCK_UN)

    def _trim(self) -> None:
        """Remove files that no process holds, longest unused first, until the rest is within the limit."""
        # Two at once would remove twice as much.
        with self._locked("trim"):
            found = _files(self.folder)
            surplus = sum(size for _, size, _ in found) - self.max_bytes
            for _, size, path in found:
                if surplus <= 0:
                    break
                surplus -= size if _remove_unless_held(path) else 0


def cache_folder(config: RemoteConfig) -> Path:
    named = config.cache or os.environ.get("MMALIGN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "mmalign" / "shards"


def usable_folder(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); {_FIX}") from None
    if os.getuid() not in (0, owner):  # the owner could change a shard after it was checked
        raise UserError(f"{folder}: belongs to another user; {_FIX}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written; {_FIX}")
    return folder


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(time of the last use, bytes, path) of the downloaded files, longest unused first."""
    found = []
    for entry in os.scandir(folder):
        name = _OURS.fullmatch(entry.name)
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                # A download in work counts with all bytes that it will have, so that two that begin at the
                # same time do not both take the last space.
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
        if _is_at(path, descriptor):  # not a file that was downloaded again in its place meanwhile
            path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
