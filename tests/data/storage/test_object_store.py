"""A store of objects: files written whole, in parts and again, listed and removed."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from s3_server import BUCKET, S3Server, s3_server

from mmalign.core.errors import UserError
from mmalign.data.storage import remote
from mmalign.data.storage.object_store import ObjectStore
from mmalign.data.storage.remote import RemoteConfig

QUICK = RemoteConfig(retries=2)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    with s3_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).makedirs(BUCKET, exist_ok=True)
        yield running


def check(store: ObjectStore, path: Path) -> None:
    path.write_bytes(b"abc")
    assert store.list_files() == store.list_files("x") == {}
    store.write("x/y z.bin", b"12")
    store.write("x2/z", path)
    assert store.list_files() == {"x/y z.bin": 2, "x2/z": 3}
    assert store.list_files("x") == {"x/y z.bin": 2}
    store.write("x/y z.bin", b"1234")
    assert store.list_files("x") == {"x/y z.bin": 4}
    store.remove(["x/y z.bin", "x/none"])
    assert store.list_files("x") == {}
    assert store.read("x2/z") == b"abc"
    with pytest.raises(UserError, match="no such file there"):
        store.read("x/y z.bin")
    store.check_writable()
    assert store.list_files() == {"x2/z": 3}


def test_a_folder_of_files_is_a_store(tmp_path: Path) -> None:
    check(ObjectStore(f"file://{tmp_path}/a b", QUICK), tmp_path / "file")


def test_a_bucket_is_a_store(server: S3Server, tmp_path: Path) -> None:
    check(ObjectStore("s3://bucket/a b", QUICK), tmp_path / "file")


def test_what_cannot_be_written_is_refused(server: S3Server) -> None:
    for url, sentence in (
        ("https://host/run", "a run lies in a folder or at a URL of s3://"),
        ("s3://bucket/run?key=secret", "holds a secret"),
        ("s3://user:secret@bucket/run", "holds a secret"),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            ObjectStore(url, QUICK)
        assert "secret@" not in str(error.value) and "key" not in str(error.value)
    with pytest.raises(UserError, match="no such file there"):
        ObjectStore("s3://none/run", QUICK).check_writable()
    server.refuse = lambda method, path: 403 if method == "DELETE" else None
    with pytest.raises(UserError, match=r"refused .*check the credentials"):
        ObjectStore("s3://bucket/run", QUICK).check_writable()


def test_a_large_file_goes_in_parts(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 50 MiB otherwise; S3 takes no smaller ones.
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize: 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(b"0" * (11 * 2**20))
    store = ObjectStore("s3://bucket/large", QUICK)
    failed: list[str] = []

    def second_part_once(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("file") and len(failed) < 2:
            failed.append(path)
            return 503
        return None

    server.refuse = second_part_once
    try:
        server.requests.clear()
        store.write("file", path)
    finally:
        server.refuse = lambda method, path: None
    # Three parts, of which two were sent twice, and not the complete file again.
    assert sum(method == "PUT" for method, _ in server.requests) == 5
    assert store.list_files() == {"file": path.stat().st_size}
