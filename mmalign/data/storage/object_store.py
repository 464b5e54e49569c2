"""A folder in a store of objects (S3, Google's), where files are written whole and nothing can be renamed.

    file or bytes -> write -> URL/name     one request, or one per part of a large file; tried again
    URL           -> list_files -> {name: size} listed anew each time
    URL/name      -> read, fetch           a small file; a large one that a manifest lists

A folder in it that must be complete or absent has a manifest, which is written last and removed first. These
stores show a write to whoever reads after it, so a manifest that is there tells of files that are there.
"""

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmalign.core.errors import UserError
from mmalign.data.storage.cache import cache_folder, usable_folder
from mmalign.data.storage.listing import check_no_secret
from mmalign.data.storage.protocols import filesystem_of, scheme_of, shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download, join, retried

WRITABLE = ("s3", "gs", "file")
_PART_TRIES = 5  # of a part of a large file, before the complete file is sent again


class ObjectStore:
    """The files below a URL, by their names relative to it.

    Every method raises a UserError where the store refuses, or does not answer after all tries.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        if scheme_of(url) not in WRITABLE:
            named = ", ".join(f"{one}://" for one in WRITABLE)
            raise UserError(f"{shown(url)}: a run lies in a folder or at a URL of {named}")
        check_no_secret(url)
        self.url = url.rstrip("/")
        self._config = config

    def check_writable(self) -> None:
        """Write a small file and remove it."""
        name = f".trial-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.remove([name])

    def list_files(self, below: str = "") -> dict[str, int]:
        """Sizes in bytes, by name, of all files in the folder `below`; none if there is no such folder."""

        def find() -> dict[str, int]:
            filesystem = self._filesystem()
            filesystem.invalidate_cache()  # others write there too
            root = filesystem._strip_protocol(self.url)
            try:
                found = filesystem.find(f"{root}/{below}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {path.removeprefix(f"{root}/"): one["size"] for path, one in found.items()}

        return retried(find, self.url, self._config)

    def write(self, name: str, content: Path | bytes) -> None:
        """Write a file, replacing the one of that name."""

        def put() -> None:
            if isinstance(content, bytes):
                self._filesystem().pipe_file(self._at(name), content)
            else:
                self._filesystem().put_file(str(content), self._at(name))

        retried(put, self._at(name), self._config)

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        url = self._at(name)
        # Not by the size in a listing, which may be of the file before.
        data: bytes = retried(lambda: self._filesystem().cat_file(url), url, self._config)
        return data

    def remote_file(self, name: str, facts: dict[str, Any]) -> RemoteFile:
        """A file as a manifest lists it (`size`, `sha256`); a ValueError if these are not valid."""
        return RemoteFile(self._at(name), facts["size"], facts["sha256"])

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Download a file to the path `target`, as `download` does."""
        with target.open("a+b", buffering=0) as out:
            download(file, out, self._config)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, one after the other; one that is not there is left out."""
        for url in map(self._at, names):
            retried(partial(self._delete, url), url, self._config)

    def _delete(self, url: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem().rm_file(url)

    def _at(self, name: str) -> str:
        return join(self.url, name)

    def _filesystem(self) -> Any:
        return filesystem_of(self.url, self._config.timeout, _PART_TRIES)


def local_folder(url: str, config: RemoteConfig, purpose: str) -> Path:
    """A folder of this host for the files of a URL, below that of downloaded shards; it may be missing."""
    unique = hashlib.sha256(url.encode()).hexdigest()[:16]
    # Under its own name, which model cards show.
    return usable_folder(cache_folder(config)) / purpose / unique / Path(urlsplit(url).path).name
