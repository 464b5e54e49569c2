"""S3 (moto's server), Google's storage and the hub's files, each over its real library from a server here."""

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator

import fsspec
import pytest
from flaky_server import Answer, FlakyServer
from s3_server import s3_server

from mmalign.core.errors import UserError
from mmalign.data.storage import protocols, remote
from mmalign.data.storage.listing import facts_of, list_tars
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, fetch, fetch_range

DATA = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
CONFIG = RemoteConfig(retries=3, timeout=0.5)
HUB_FILE = "/datasets/user/name/resolve/main/set/0.tar"
GOOGLE_FILE = "/download/storage/v1/b/bucket/o/set%2F0.tar"


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(protocols, "BLOCK", 30_000)
    protocols._filesystem.cache_clear()
    yield
    protocols._filesystem.cache_clear()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3 needs the extra `remote`")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server here, with one file in it."""
    with s3_server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.environment["AWS_ENDPOINT_URL"])
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        # moto keeps its buckets as long as the process lives
        store.makedirs("bucket", exist_ok=True)
        store.pipe_file("bucket/set/a b.tar", DATA)
        yield "s3://bucket/set/a b.tar"


@pytest.fixture
def flaky() -> Iterator[FlakyServer]:
    with FlakyServer() as running:
        yield running


@pytest.fixture
def flaky_s3(keys: None, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> FlakyServer:
    monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.url)
    flaky.files["/bucket/0.tar"] = DATA
    return flaky


@pytest.fixture
def hub(flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> FlakyServer:
    """What the hub's library asks for before it reads a file, and the file."""
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": flaky.url})
    entry = {"type": "file", "path": "set/0.tar", "size": len(DATA), "oid": "b" * 40}
    flaky.files = {
        "/api/datasets/user/name": json.dumps({"id": "user/name", "siblings": []}).encode(),
        "/api/datasets/user/name/tree/main/set": json.dumps([entry]).encode(),
        HUB_FILE: DATA,
    }
    return flaky


@pytest.fixture
def google(flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> FlakyServer:
    pytest.importorskip("gcsfs", reason="gs needs the extra `remote`")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", flaky.url)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    flaky.files[GOOGLE_FILE] = DATA
    return flaky


def refusal(file: RemoteFile) -> str:
    with pytest.raises(UserError) as error:
        fetch(file, CONFIG)
    return str(error.value)


def test_s3(bucket: str) -> None:
    assert fetch(RemoteFile(bucket, len(DATA), SHA256), CONFIG) == DATA
    assert fetch(RemoteFile(bucket), CONFIG) == DATA
    assert "no such file there" in refusal(RemoteFile("s3://bucket/none"))
    assert "no such file there" in refusal(RemoteFile("s3://none/x", 5, SHA256))
    for size, sha256 in ((len(DATA) + 1, SHA256), (len(DATA), "0" * 64), (len(DATA) - 1, SHA256)):
        assert "also when fetched again" in refusal(RemoteFile(bucket, size, sha256))


def test_s3_that_fails_now_and_then(flaky_s3: FlakyServer) -> None:
    well = Answer()
    for faults in (
        [Answer(status=503)] * 2,
        [well, Answer(status=500), well, Answer(cut=100)],
        [well, Answer(cut=100, stall=0.8)],
        [Answer(body=DATA[::-1])],
    ):
        flaky_s3.log.clear()
        flaky_s3.answers["/bucket/0.tar"] = list(faults)
        file = RemoteFile("s3://bucket/0.tar", len(DATA), SHA256)
        assert fetch(file, CONFIG) == DATA
        blocks = flaky_s3.requests("/bucket/0.tar")
        assert flaky_s3.answers["/bucket/0.tar"] == []
        if faults[0] is well:  # the first block is not fetched again
            assert blocks.count(0) == 1


def test_s3_that_is_away_is_tried_a_counted_number_of_times(flaky_s3: FlakyServer) -> None:
    flaky_s3.answers["/bucket/0.tar"] = [Answer(status=503)] * 50
    sentence = refusal(RemoteFile("s3://bucket/0.tar", len(DATA), SHA256))
    assert "4 tries in a row failed" in sentence
    assert len(flaky_s3.requests("/bucket/0.tar")) == 4
    flaky_s3.answers["/bucket/0.tar"] = [Answer(status=403)]
    sentence = refusal(RemoteFile("s3://bucket/0.tar", len(DATA), SHA256))
    assert "refused" in sentence and "FSSPEC_S3_ANON" in sentence


def test_s3_without_credentials(flaky_s3: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RemoteFile("s3://bucket/0.tar", len(DATA), SHA256)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "FSSPEC_S3_ANON=true" in refusal(file)
    assert flaky_s3.log == []
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})  # what the variable becomes
    protocols._filesystem.cache_clear()
    assert fetch(file, CONFIG) == DATA


def test_the_hub(hub: FlakyServer) -> None:
    url = "hf://datasets/user/name/set/0.tar"
    assert fetch(RemoteFile(url, len(DATA), SHA256), CONFIG) == DATA
    assert hub.requests(HUB_FILE) == [0, 30_000, 60_000, 90_000]  # and no byte ahead
    assert fetch(RemoteFile(url), CONFIG) == DATA
    hub.answers[HUB_FILE] = [Answer(), Answer(cut=100)]
    assert fetch(RemoteFile(url, len(DATA), SHA256), CONFIG) == DATA
    hub.answers[HUB_FILE] = [Answer(status=403)]
    assert "refused (HTTP 403)" in refusal(RemoteFile(url, len(DATA), SHA256))
    assert "no such file" in refusal(RemoteFile(url.replace("0.tar", "1.tar"), 5))
    assert "no such file" in refusal(RemoteFile("hf://datasets/user/none/0.tar", 5))


def test_google(google: FlakyServer) -> None:
    file = RemoteFile("gs://bucket/set/0.tar", len(DATA), SHA256)
    google.answers[GOOGLE_FILE] = [Answer(), Answer(cut=100)]
    assert fetch(file, CONFIG) == DATA
    assert google.requests(GOOGLE_FILE).count(0) == 1
    for status, word in ((404, "no such file"), (403, "refused"), (401, "refused (HTTP 401)")):
        google.log.clear()
        google.answers[GOOGLE_FILE] = [Answer(status=status)]
        assert word in refusal(file)
        assert len(google.requests(GOOGLE_FILE)) == 1


def check_ranges(server: FlakyServer, url: str, path: str) -> None:
    """One request for each range, and no byte besides it."""
    file = RemoteFile(url, len(DATA), SHA256)
    server.answers[path] = [Answer(status=503)]
    before, sent = len(server.requests(path)), server.sent
    assert fetch_range(file, 40_000, 50_000, CONFIG) == DATA[40_000:90_000]
    assert server.requests(path)[before:] == [40_000] * 2
    assert server.sent - sent < 50_000 + 1000  # the hub's library asks about the file first
    assert fetch_range(file, 99_990, 20, CONFIG) is None  # it ends before


def test_ranges_of_s3(flaky_s3: FlakyServer) -> None:
    check_ranges(flaky_s3, "s3://bucket/0.tar", "/bucket/0.tar")


def test_ranges_of_the_hub(hub: FlakyServer) -> None:
    check_ranges(hub, "hf://datasets/user/name/set/0.tar", HUB_FILE)


def test_ranges_of_google(google: FlakyServer) -> None:
    check_ranges(google, "gs://bucket/set/0.tar", GOOGLE_FILE)


def test_s3_that_asks_for_a_longer_wait(
    flaky_s3: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    asked = {"Retry-After": "7"}
    flaky_s3.answers["/bucket/0.tar"] = [Answer(status=503, headers=asked)]
    assert fetch(RemoteFile("s3://bucket/0.tar", len(DATA), SHA256), CONFIG) == DATA
    assert 7 <= waits[0] <= 8.4


def test_each_process_has_filesystems_of_its_own() -> None:
    here = protocols._filesystem(os.getpid(), "file", 1.0)
    assert protocols._filesystem(os.getpid(), "file", 1.0) is here
    there = []
    thread = threading.Thread(
        target=lambda: there.append(protocols._filesystem(os.getpid(), "file", 1.0))
    )
    thread.start()
    thread.join()
    assert there == [here]
    assert protocols._filesystem(os.getpid() + 1, "file", 1.0) is not here


def test_tars_of_s3_are_listed_with_what_changes_when_they_do(bucket: str) -> None:
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.pipe_file("bucket/listed/1.tar", DATA)
    store.pipe_file("bucket/listed/0.tar", DATA)
    store.pipe_file("bucket/listed/0.json", b"{}")
    urls = ["s3://bucket/listed/0.tar", "s3://bucket/listed/1.tar"]
    for source in ("s3://bucket/listed", "s3://bucket/listed/", "s3://bucket/lis*/*.tar"):
        assert list_tars(source) == urls
    assert list_tars("s3://bucket/listed/{0..1}.tar") == urls
    size, version = facts_of(urls[0])
    assert (size, facts_of(urls[1])) == (len(DATA), (size, version))
    store.pipe_file("bucket/listed/0.tar", DATA[::-1])
    protocols._filesystem.cache_clear()
    assert facts_of(urls[0])[1] != version
    with pytest.raises(UserError, match="no tars there"):
        list_tars("s3://bucket/none")
    with pytest.raises(UserError, match="no such file there; check the URL"):
        facts_of("s3://bucket/none.tar")


def test_tars_of_the_hub_are_listed(hub: FlakyServer) -> None:
    folder = {"type": "directory", "path": "set", "oid": "c" * 40, "size": 0}
    hub.files["/api/datasets/user/name/tree/main"] = json.dumps([folder]).encode()
    (url,) = list_tars("hf://datasets/user/name/set")
    assert url == "hf://datasets/user/name/set/0.tar"
    assert facts_of(url) == (len(DATA), "b" * 40)
