"""The folder of downloaded shards that the processes of a host share: one download, one check of each shard.

    RemoteFile -> <sha256>.<size>.part, filled and checked -> renamed to <sha256>, marked -> descriptor

Processes coordinate through the kernel's locks alone (flock), so a process that is killed leaves nothing
behind that blocks or misleads others:

- whoever downloads a file holds its `.part` exclusively. Others that need the file wait; others that only
  prefetch it go on to the next one. After a kill, the next process continues after the bytes that are there.
- `prefetch` files are downloaded ahead at a time, by all processes of the host together, in the order in
  which they will be used.
- the sha256 of a file is computed once, while it is downloaded. The file then gets a time of modification
  that no clock shows (`_mark_of`). Whatever writes to it changes that time, and the file is checked again.
- whoever reads a file holds it together with other readers, and it is not removed.
- the folder never exceeds its limit: a download begins when files that were used longest ago could be
  removed for all of its bytes. A file that was announced can be read by byte ranges until then.

Names are hashes of the content: a data set that was uploaded again has other names, equal shards have one.
The folder belongs on a local disk. Files in it with other names are left alone.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download

_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")
_FIX = "name a folder of your own, on a local disk, in `cache` or MMALIGN_CACHE"
_TOUCH_NS = 10**9  # how old the time of the last use may be: not every read writes it
_ANNOUNCED = 20_000  # files that are remembered, of 200,000 in a large set
_NO_ROOM_WAIT = 0.5  # seconds until a download that found no room looks again


class ShardCache:
    """Downloaded files by the hash of their content.

    Any number of threads and processes may use one folder. After a fork, and in a spawned process, the
    object works as before, with threads of its own.
    """

    def __init__(self, config: RemoteConfig, announced: Iterable[RemoteFile] = ()) -> None:
        self.config = config
        self.folder = usable_folder(cache_folder(config))
        self.max_bytes = int(config.cache_gib * 2**30)
        # (name, inode, time of modification) of checked files, for disks that cannot hold the mark
        self._verified: set[tuple[str, int, int]] = set()
        self._announced = dict.fromkeys(announced)
        # Announced, but too few parts are read to download them.
        self.by_range: set[RemoteFile] = set()
        self._failed: dict[RemoteFile, UserError | OSError] = {}
        self._process: int | None = None  # that the prefetching threads belong to

    def __reduce__(self) -> Any:
        return ShardCache, (self.config, tuple(self._announced))

    def open(self, file: RemoteFile) -> int:
        """A descriptor for reading the file, which is downloaded first if it is not there.

        Until it is closed the file is not removed; if somebody removes it all the same, it can still be read.

        Raises:
            UserError: it is larger than the cache, open files leave no room for it, the folder cannot be
                used, or as `download`.
        """
        deadline = time.monotonic() + self.config.timeout
        with self._plain_errors():
            while (descriptor := self._cached(file)) is None:
                if not self._fetch(file, wait=True):
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.folder}: files that are open leave no room for {shown(file.url)}; raise "
                            f"`cache_gib`, which is {self.config.cache_gib:g}"
                        )
                    time.sleep(_NO_ROOM_WAIT)
            return descriptor

    def open_if_here(self, file: RemoteFile) -> int | None:
        """As `open`, but None for an announced file that is still to be downloaded in the background.

        Raises:
            UserError: as `open`, also if the download in the background failed.
        """
        if file not in self._announced and file not in self.by_range:
            return self.open(file)
        if self._process != os.getpid():  # a child of the process that announced it
            self.prefetch(tuple(self._announced))
        if (error := self._failed.pop(file, None)) is not None:
            raise error
        with self._plain_errors():
            return self._cached(file)

    def prefetch(self, files: Iterable[RemoteFile]) -> None:
        """Download the files in the background, in this order. Errors are reported when a file is opened.

        If the store is slower than the run, files that were announced first are left to byte ranges: the
        cache could not hold them any longer.
        """
        if self.config.prefetch == 0:
            return
        if self._process != os.getpid():  # threads do not survive a fork
            self._process = os.getpid()
            self._waiting: dict[RemoteFile, None] = {}
            self._in_work: set[RemoteFile] = set()
            self._changed = threading.Condition()
            for slot in range(self.config.prefetch):
                # A daemon: a process that ends does not wait for a shard that it will not read.
                threading.Thread(target=self._keep_fetching, args=(slot,), daemon=True).start()
        with self._changed:
            for file in files:
                self._announced.pop(file, None)
                self._announced[file] = None
                if file not in self._in_work:
                    self._waiting.pop(file, None)  # what is announced again moves to the end
                    self._waiting[file] = None
            # A file that was announced so long ago is opened like any other.
            for file in list(islice(self._announced, max(0, len(self._announced) - _ANNOUNCED))):
                del self._announced[file]
                self.by_range.discard(file)
            surplus = sum(file.size or 0 for file in self._waiting) - self.max_bytes
            while surplus > 0:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                surplus -= oldest.size or 0
            self._changed.notify_all()

    def _keep_fetching(self, slot: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                file = next(iter(self._waiting))
                del self._waiting[file]
                self._in_work.add(file)
            try:
                while not self._fetch_in_turn(file, slot):
                    time.sleep(_NO_ROOM_WAIT)
                self._failed.pop(file, None)
            except (UserError, OSError) as error:
                self._failed[file] = error
            self._in_work.discard(file)

    def _fetch_in_turn(self, file: RemoteFile, slot: int) -> bool:
        """Download a file if nobody else does, when it is this thread's turn; False: there is no room yet."""
        if (descriptor := self._cached(file)) is None:
            with self._locked(f"slot-{slot}"):
                if (descriptor := self._cached(file)) is None:
                    return self._fetch(file, wait=False)
        # It counts as used just now: older files are removed first.
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # for the same reason as in `_locked`
        os.close(descriptor)
        return True

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise_if_of_machine(error)
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); {_FIX}"
            ) from None

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
        """A descriptor that holds a file of the folder; None if it is not there. A damaged one is removed."""
        path = self.folder / str(file.sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if self._is_valid(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        _remove_unless_held(path)
        return None

    def _is_valid(self, descriptor: int, file: RemoteFile) -> bool:
        """Whether size and content are the listed ones; content without the mark is read, and marked."""
        facts, now = os.fstat(descriptor), time.time_ns()
        if facts.st_size != file.size:
            return False
        mark, known = _mark_of(file), (str(file.sha256), facts.st_ino, facts.st_mtime_ns)
        is_known = facts.st_mtime_ns == mark or known in self._verified
        if not is_known:
            with open(descriptor, "rb", closefd=False) as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    return False
            os.lseek(descriptor, 0, os.SEEK_SET)  # for a caller that reads from the beginning
            os.utime(descriptor, ns=(now, mark))
            self._verified.add((*known[:2], os.fstat(descriptor).st_mtime_ns))
        elif now - facts.st_atime_ns > _TOUCH_NS:
            os.utime(descriptor, ns=(now, facts.st_mtime_ns))
        return True

    def _fetch(self, file: RemoteFile, wait: bool) -> bool:
        """Download a file; False if there is no room for it.

        True only says that there is nothing to wait for: it is there now, or another process downloads it
        (without `wait`), or has done so meanwhile.
        """
        assert file.size is not None and file.sha256 is not None, file.url
        if file.size > self.max_bytes:
            raise UserError(
                f"{shown(file.url)}: has {file.size} bytes, more than the whole cache; raise `cache_gib`"
            )
        path = self.folder / file.sha256
        part = path.with_name(f"{path.name}.{file.size}.part")
        with part.open("a+b", buffering=0) as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return True
            try:
                if not _is_at(part, out.fileno()):
                    return True
                if path.exists():  # another process was faster
                    part.unlink()
                    return True
                if not self._make_room():
                    # Of an empty file nothing is lost, and another download may need the bytes it stands for.
                    if os.fstat(out.fileno()).st_size == 0:
                        part.unlink()
                    return False
                download(file, out, self.config)
                os.utime(out.fileno(), ns=(time.time_ns(), _mark_of(file)))
                part.rename(path)
                return True
            finally:
                fcntl.flock(out, fcntl.LOCK_UN)

    def _make_room(self) -> bool:
        """Remove files that no process holds, longest unused first, until the rest is within the limit."""
        # Two at once would remove twice as much.
        with self._locked("trim"):
            found = _files(self.folder)
            surplus = sum(size for _, size, _ in found) - self.max_bytes
            for _, size, path in found:
                if surplus <= 0:
                    break
                surplus -= size if _remove_unless_held(path) else 0
            return surplus <= 0


def _mark_of(file: RemoteFile) -> int:
    """The time of modification of a file whose content was checked, in ns: a second before September 1978."""
    # Complete seconds, because some disks store no fractions.
    return (1 + int(str(file.sha256)[:7], 16)) * 10**9


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
                used = max(facts.st_atime_ns, facts.st_mtime_ns)
                found.append((used, size, Path(entry.path)))
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
