"""A data set at a URL is read like a folder, and gives away nothing that its manifest does not list."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.data.shards.folder import read_file
from mmalign.data.shards.remote_folder import RemoteFolder
from mmalign.data.storage.cache import ShardCache
from mmalign.data.storage.remote import RemoteConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

DATA = {"0.tar": b"first" * 100, "1.tar": b"second" * 100}


def cache_in(folder: Path) -> ShardCache:
    return ShardCache(RemoteConfig(cache=str(folder / "cache"), timeout=10))


def manifest(**files: object) -> bytes:
    return json.dumps({"name": "set", "files": files}).encode()


def write_listed(folder: Path, index: str) -> bytes:
    """The files with a manifest of them; what that holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in DATA.items():
        (folder / name).write_bytes(data)
    facts = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in DATA.items()
    }
    (folder / index).write_bytes(manifest(**facts))
    return manifest(**facts)


def test_a_folder_at_a_url(tmp_path: Path) -> None:
    listed = write_listed(tmp_path / "set", "manifest.json")
    folder = RemoteFolder(f"file://{tmp_path}/set", cache_in(tmp_path))
    assert folder.manifest == listed
    folder.prefetch(["1.tar"])
    assert read_file(folder, "0.tar") == DATA["0.tar"]
    descriptor = folder.open("1.tar")
    assert os.pread(descriptor, 10, 5) == DATA["1.tar"][5:15]
    os.close(descriptor)
    with pytest.raises(UserError, match=r"manifest\.json: does not list `x\.tar`"):
        folder.open("x.tar")


def test_a_folder_in_it_has_a_manifest_of_its_own(tmp_path: Path) -> None:
    write_listed(tmp_path / "set", "manifest.json")
    listed = write_listed(tmp_path / "set/below/it", "list.json")
    folder = RemoteFolder(f"file://{tmp_path}/set", cache_in(tmp_path)).inner(
        "below/it", "list.json"
    )
    assert folder.manifest == listed
    assert read_file(folder, "1.tar") == DATA["1.tar"]
    assert str(folder) == f"file://{tmp_path}/set/below/it"
    with pytest.raises(UserError, match=r"below/it/list\.json: does not list `x\.tar`"):
        folder.open("x.tar")


@pytest.mark.parametrize(
    "served, complaint",
    [
        (b"no JSON", "not a manifest"),
        (b"[]", "not a manifest"),
        (b'{"files": {"0.tar": 7}}', "not a manifest"),
        (b"\xff", "not a manifest"),
        (manifest(**{"../x": {"size": 1, "sha256": "0" * 64}}), "is no file of the data set"),
        (manifest(**{"x": {"size": 1, "sha256": "../x"}}), "no valid size and sha256"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, served: bytes, complaint: str) -> None:
    (tmp_path / "manifest.json").write_bytes(served)
    with pytest.raises(UserError, match=complaint):
        RemoteFolder(f"file://{tmp_path}", cache_in(tmp_path))


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such file there"):
        RemoteFolder(f"file://{tmp_path}", cache_in(tmp_path))
