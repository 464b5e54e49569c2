"""Where the files of a data set are: a folder of this machine, or one at a URL.

    name -> open_folder -+-> LocalFolder                                                -> manifest
                         +-> RemoteFolder: only what its manifest lists, via the cache     descriptors

Readers ask for files by the names that the manifest gives them, and do not know which of the two it is.
"""

import copy
import json
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmalign.core.errors import UserError
from mmalign.data.shards.manifest import MANIFEST, Facts, Manifest, parse_manifest, read_manifest
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import (
    RemoteConfig,
    RemoteFile,
    fetch,
    fetch_range,
    is_remote,
    join,
)

if TYPE_CHECKING:
    from mmalign.data.storage.cache import ShardCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = f"{path}/"

    def __str__(self) -> str:
        return str(self.path)

    def location(self, name: str) -> str:
        # Not by a Path, which takes ten times as long: this is asked for every sample.
        return name if name.startswith("/") else f"{self._prefix}{name}"

    def open(self, name: str) -> int:
        """A descriptor for reading a file, which the caller closes; an OSError, or UserError if remote."""
        return os.open(self.path / name, os.O_RDONLY)

    def prefetch(self, names: Iterable[str], by_range: Iterable[str] = ()) -> None:
        """Announce files that will be opened soon, and files of which only some parts will be read."""

    def only(self, names: Iterable[str]) -> "LocalFolder":
        """The same folder with these files alone: little enough to be sent to a process for each shard."""
        return self


class RemoteFolder:
    """The files of a data set at a URL: its manifest, and the files that it lists, through the cache.

    The manifest may list tars at other URLs: those of shards that were indexed or chosen from where they lie.
    A folder in it that has a manifest of its own (cached image features) is read in the same way.
    """

    def __init__(self, url: str, cache: "ShardCache", index: str = MANIFEST) -> None:
        self.url, self.cache, self.index = url, cache, index
        # No manifest lists this file and it may change, so it does not go through the cache.
        self.manifest = fetch(RemoteFile(join(url, index)), cache.config)
        try:
            # Of a large data set, `open_folder` replaces it by all files.
            self.files: Mapping[str, Facts] = json.loads(self.manifest)["files"]
            for name in self.files:
                self._listed(name)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.location(index)}: not a manifest that mmalign wrote") from None

    def __str__(self) -> str:
        return shown(self.url)

    def location(self, name: str) -> str:
        return shown(name if is_remote(name) else join(self.url, name))

    def inner(self, name: str, index: str) -> "RemoteFolder":
        """The folder `name` in this one, which has the manifest `index`."""
        return RemoteFolder(join(self.url, name), self.cache, index)

    def open(self, name: str) -> int:
        return self.cache.open(self._listed(name))

    def open_if_here(self, name: str) -> int | None:
        """As `open`, but None for an announced file that is still to be downloaded in the background."""
        return self.cache.open_if_here(self._listed(name))

    def fetch_range(self, name: str, start: int, size: int) -> bytes | None:
        """The `size` bytes of a file from byte `start`, unchecked; None: its server sends no parts of it."""
        return fetch_range(self._listed(name), start, size, self.cache.config)

    def prefetch(self, names: Iterable[str], by_range: Iterable[str] = ()) -> None:
        self.cache.by_range.update(map(self._listed, by_range))
        self.cache.prefetch(map(self._listed, names))

    def only(self, names: Iterable[str]) -> "RemoteFolder":
        """As `LocalFolder.only`; without the manifest."""
        folder = copy.copy(self)
        folder.manifest = b""
        folder.files = {name: self.files[name] for name in names if name in self.files}
        return folder

    def _listed(self, name: str) -> RemoteFile:
        if name not in self.files:
            raise UserError(f"{self.location(self.index)}: does not list `{name}`")
        path, facts = PurePosixPath(name), self.files[name]
        if path.is_absolute() or ".." in path.parts or path.parts[0] == "file:":
            raise UserError(f"{self.location(self.index)}: `{path}` is not in the data set")
        url = name if is_remote(name) else join(self.url, name)
        return RemoteFile(url, facts["size"], facts["sha256"])

    def download(self, name: str) -> Path:
        """The path of a file's copy on this machine."""
        os.close(self.open(name))
        return self.cache.folder / str(self._listed(name).sha256)


Folder = LocalFolder | RemoteFolder


def open_folder(
    name: str | os.PathLike[str], remote: RemoteConfig, check_files: bool = True
) -> tuple[Folder, Manifest]:
    """A finished data set: its files and its manifest.

    Args:
        name: a path, or a URL (s3://, gs://, https://, hf://, file://).
        remote: how files at a URL are fetched and kept.
        check_files: compare the sizes of local files with the manifest, one `stat` for each.

    Raises:
        UserError: no finished data set there, an empty one, or no way to reach it.
    """
    text = os.fspath(name)
    if not is_remote(text):
        path = Path(text)
        manifest = read_manifest(path, check_files)
        if not is_remote(manifest.shards[0].tar):  # of a set, all tars are at URLs or none is
            return LocalFolder(path), manifest
        text = f"file://{path.absolute()}"
    # It needs locks of POSIX, which not every machine that reads local folders has.
    from mmalign.data.storage.cache import ShardCache

    folder = RemoteFolder(text, ShardCache(remote))
    manifest = parse_manifest(folder.manifest, folder.location(MANIFEST), folder.download)
    folder.files = manifest.files
    if manifest.samples == 0:
        raise UserError(f"{folder}: the data set is empty")
    return folder, manifest


def read_file(folder: Folder, name: str) -> bytes:
    """All bytes of a small file, such as an index; errors as `LocalFolder.open`."""
    with os.fdopen(folder.open(name), "rb") as file:
        return file.read()


class Recent(Generic[K, V]):
    """Values by key, made when they are asked for; only the `most` that were used last are kept.

    Any number of threads may ask. A thread holds `lock` while it uses a value that has to be closed.
    """

    def __init__(
        self, make: Callable[[K], V], most: int, close: Callable[[V], None] | None = None
    ) -> None:
        self.most = most
        self.lock = threading.RLock()
        self._make, self._close = make, close
        self._values: OrderedDict[K, V] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Another process makes its own values, for example descriptors.
        return {**self.__dict__, "_values": OrderedDict(), "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock())

    def __del__(self) -> None:
        self.close()

    def __getitem__(self, key: K) -> V:
        """The value; valid until `most` others were asked for."""
        with self.lock:
            if key not in self._values:
                self.close(self.most - 1)
                self._values[key] = self._make(key)
            self._values.move_to_end(key)
            return self._values[key]

    def close(self, keep: int = 0) -> None:
        with self.lock:
            while len(self._values) > keep:
                value = self._values.popitem(last=False)[1]
                if self._close is not None:
                    self._close(value)


OpenFiles = Recent[str, int]
"""Descriptors of local files by their path. Several data sets may share it: each gets what it needs."""


def open_files() -> OpenFiles:
    # A stream opens two files per shard and may go through thousands of shards. A process usually has 1,024
    # descriptors and needs most of them for sockets, pipes and batches on their way.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(1, min(256, limit // 4))
    return Recent(partial(os.open, flags=os.O_RDONLY), most, os.close)


@contextmanager
def opened(folder: Folder, name: str, files: OpenFiles, wait: bool = True) -> Iterator[Any]:
    """A descriptor for one read; errors as `LocalFolder.open`.

    None, only without `wait`: the file is announced and still to be downloaded.
    """
    if isinstance(folder, LocalFolder):
        with files.lock:
            yield files[folder.location(name)]
        return
    # Not kept open: the cache could not remove it. Opening it costs some microseconds.
    descriptor = folder.open(name) if wait else folder.open_if_here(name)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
