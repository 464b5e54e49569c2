"""Where the files of a data set are: a folder of this machine, or one at a URL.

    name -> open_folder -> LocalFolder, RemoteFolder (remote_folder.py) -> manifest, descriptors, bytes

Readers ask for files by the names that the manifest gives them, and never learn which of the two it is.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from mmalign.core.errors import UserError
from mmalign.data.shards.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from mmalign.data.storage.remote import RemoteConfig, is_remote


class Folder(Protocol):
    """The files of a data set."""

    def place(self, name: str) -> str:
        """Where a file is, for messages."""
        ...

    def open(self, name: str) -> int:
        """A descriptor for reading a file; whoever asks closes it.

        Raises:
            OSError: it cannot be opened.
            UserError: it cannot be fetched.
        """
        ...

    def prefetch(self, names: Iterable[str]) -> None:
        """Files that will be asked for soon."""
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def place(self, name: str) -> str:
        return str(self.path / name)

    def open(self, name: str) -> int:
        return os.open(self.path / name, os.O_RDONLY)

    def prefetch(self, names: Iterable[str]) -> None:
        """Nothing: it is here."""


def open_folder(name: str | os.PathLike[str], remote: RemoteConfig) -> tuple[Folder, Manifest]:
    """A finished data set: its files and its manifest.

    Args:
        name: a path, or a URL (s3://, gs://, https://, hf://, file://).
        remote: how files at a URL are fetched and kept.

    Raises:
        UserError: no finished data set there, an empty one, or no way to it.
    """
    text = os.fspath(name)
    if not is_remote(text):
        return LocalFolder(Path(text)), read_manifest(Path(text))
    # Locks of POSIX, which not every machine that reads local folders has.
    from mmalign.data.shards.remote_folder import RemoteFolder
    from mmalign.data.storage.cache import ShardCache

    folder = RemoteFolder(text, ShardCache(remote))
    manifest = parse_manifest(folder.manifest, folder.place(MANIFEST))
    if manifest.samples == 0:
        raise UserError(f"{folder}: the data set is empty")
    return folder, manifest


def read_file(folder: Folder, name: str) -> bytes:
    """All bytes of a small file, such as an index.

    Raises:
        OSError, UserError: as `Folder.open`.
    """
    with os.fdopen(folder.open(name), "rb") as file:
        return file.read()
