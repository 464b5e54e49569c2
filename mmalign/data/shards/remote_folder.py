"""A data set at a URL, read like a folder.

    url -> manifest.json, fetched anew -> {name: RemoteFile(url, size, sha256)} -> ShardCache -> descriptor

Only what the manifest lists is fetched, and only with the bytes that it lists. A folder below it that has a
manifest of its own (features of an image tower) is read in the same way.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mmalign.core.errors import UserError
from mmalign.data.shards.manifest import MANIFEST
from mmalign.data.storage.cache import ShardCache
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, fetch, join


class RemoteFolder:
    """A data set at a URL: its manifest, and its other files through the cache.

    Attributes:
        index: name of its manifest.
        manifest: the bytes of that file, fetched anew.
    """

    def __init__(self, url: str, cache: ShardCache, index: str = MANIFEST) -> None:
        """
        Raises:
            UserError: there is no manifest that lists files, or as `download`.
        """
        self.url = url
        self.cache = cache
        self.index = index
        self.manifest = _read(RemoteFile(join(url, index)), cache.config)
        try:
            files = json.loads(self.manifest)["files"]
            self._files = {
                self._inside(name): RemoteFile(join(url, name), facts["size"], facts["sha256"])
                for name, facts in files.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.place(index)}: not a manifest that mmalign wrote") from None

    def __str__(self) -> str:
        return shown(self.url)

    def place(self, name: str) -> str:
        """The URL of a file, without what is secret in it."""
        return shown(join(self.url, name))

    def inner(self, name: str, index: str) -> "RemoteFolder":
        """The folder `name` in this one, which has the manifest `index`."""
        return RemoteFolder(join(self.url, name), self.cache, index)

    def open(self, name: str) -> int:
        """A descriptor of the file `name`, as `ShardCache.open`."""
        return self.cache.open(self._file(name))

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch the named files in the background."""
        self.cache.prefetch(self._file(name) for name in names)

    def _file(self, name: str) -> RemoteFile:
        if name not in self._files:
            raise UserError(f"{self.place(self.index)}: does not list `{name}`")
        return self._files[name]

    def _inside(self, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self.place(self.index)}: `{name}` is no file of the data set")
        return name


def _read(file: RemoteFile, config: RemoteConfig) -> bytes:
    """The bytes of a small file that no manifest lists; it may change, so it is not cached."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch(file, target, config)
        return target.read_bytes()
