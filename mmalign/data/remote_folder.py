"""A data set at a URL, read like a folder.

    url -> manifest.json, fetched anew -> {name: RemoteFile(url, size, sha256)} -> ShardCache -> descriptor

Only what the manifest lists is fetched, and only with the bytes that it lists.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mmalign.data.cache import ShardCache
from mmalign.data.protocols import shown
from mmalign.data.remote import RemoteConfig, RemoteFile, fetch, join
from mmalign.data.shards import MANIFEST
from mmalign.errors import UserError


class RemoteFolder:
    """A data set at a URL: its manifest, and its other files through the cache.

    Attributes:
        manifest: the bytes of manifest.json, fetched anew.
    """

    def __init__(self, url: str, cache: ShardCache) -> None:
        """
        Raises:
            UserError: there is no manifest that lists files, or as `download`.
        """
        self.url = url
        self.cache = cache
        self.manifest = _read(RemoteFile(join(url, MANIFEST)), cache.config)
        try:
            files = json.loads(self.manifest)["files"]
            self._files = {
                _inside(name, url): RemoteFile(join(url, name), facts["size"], facts["sha256"])
                for name, facts in files.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{shown(join(url, MANIFEST))}: not a manifest of mmalign shards"
            ) from None

    def __str__(self) -> str:
        return shown(self.url)

    def place(self, name: str) -> str:
        """The URL of a file, without what is secret in it."""
        return shown(join(self.url, name))

    def open(self, name: str) -> int:
        """A descriptor of the file `name`, as `ShardCache.open`."""
        return self.cache.open(self._file(name))

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch the named files in the background."""
        self.cache.prefetch(self._file(name) for name in names)

    def _file(self, name: str) -> RemoteFile:
        if name not in self._files:
            raise UserError(f"{self.place(MANIFEST)}: does not list `{name}`")
        return self._files[name]


def _read(file: RemoteFile, config: RemoteConfig) -> bytes:
    """The bytes of a small file that no manifest lists; it may change, so it is not cached."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        fetch(file, target, config)
        return target.read_bytes()


def _inside(name: str, url: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{shown(join(url, MANIFEST))}: `{name}` is no file of the data set")
    return name
