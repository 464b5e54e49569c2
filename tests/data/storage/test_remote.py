"""Fetching files: what breaks is resumed, what is wrong is refused, and no message shows a secret."""

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from flaky_server import Answer, FlakyServer

from mmalign.core.errors import UserError
from mmalign.data.storage import protocols, remote
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import (
    RemoteConfig,
    RemoteFile,
    download,
    fetch,
    fetch_range,
    is_remote,
    join,
)

DATA = random.Random(0).randbytes(3 * 2**20 + 7)
NAME = "/set/00000.tar"
CONFIG = RemoteConfig(retries=3, timeout=0.5)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    pytest.importorskip("aiohttp", reason="https needs the extra `remote`")
    with FlakyServer() as running:
        running.files[NAME] = DATA
        yield running


def listed(url: str, data: bytes = DATA) -> RemoteFile:
    return RemoteFile(url, len(data), hashlib.sha256(data).hexdigest())


def refusal(file: RemoteFile, config: RemoteConfig = CONFIG) -> str:
    with pytest.raises(UserError) as error:
        fetch(file, config)
    assert error.value.__cause__ is None  # a library's own text may hold the URL
    return str(error.value)


def test_a_whole_file_takes_one_request(server: FlakyServer) -> None:
    assert fetch(listed(server.url + NAME), CONFIG) == DATA
    assert server.log == [("GET", NAME, 0)]


def test_a_file_that_nobody_listed_is_fetched_as_it_is(server: FlakyServer) -> None:
    assert fetch(RemoteFile(server.url + NAME), CONFIG) == DATA
    server.answers[NAME] = [Answer(cut=1000)]
    assert fetch(RemoteFile(server.url + NAME), CONFIG) == DATA


def test_an_unlisted_file_is_bounded(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_UNLISTED", 1000)
    assert "more than 1000 bytes" in refusal(RemoteFile(server.url + NAME))


def test_it_goes_on_where_it_broke(server: FlakyServer) -> None:
    # A moment of silence, in which all that was sent arrives: a break throws away what was on its way.
    server.answers[NAME] = [Answer(cut=1_000_000, stall=0.3), Answer(cut=1_500_000, stall=0.3)]
    assert fetch(listed(server.url + NAME), CONFIG) == DATA
    assert server.requests(NAME) == [0, 1_000_000, 2_500_000]


FAULTS = {
    "503 three times": [Answer(status=503)] * 3,
    "other statuses": [Answer(status=429), Answer(status=500), Answer(status=408)],
    "stall": [Answer(cut=100_000, stall=2)],
    "silence": [Answer(cut=0, stall=2)],
    "no ranges": [Answer(cut=900_000), Answer(ranges=False, cut=1_900_000), Answer(ranges=False)],
    "range too late": [Answer(cut=900_000), Answer(shift=5)],
    "range too early": [Answer(cut=900_000), Answer(shift=-5)],
    "wrong bytes": [Answer(body=DATA[::-1])],
    "too short": [Answer(body=DATA[:-1])],
    "too long": [Answer(body=DATA + b"x")],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_overcome(server: FlakyServer, fault: str) -> None:
    server.answers[NAME] = list(FAULTS[fault])
    assert fetch(listed(server.url + NAME), CONFIG) == DATA
    assert server.answers[NAME] == []


@pytest.mark.parametrize("kind", ["seconds", "date", "nonsense"])
def test_a_server_that_asks_for_a_longer_wait_gets_it(
    server: FlakyServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    said = {"seconds": "7", "date": later, "nonsense": "soon"}[kind]
    server.answers[NAME] = [Answer(status=503, headers={"Retry-After": said})]
    assert fetch(listed(server.url + NAME), CONFIG) == DATA
    low, high = {"seconds": (7, 8.4), "date": (55, 72), "nonsense": (0, 0.01)}[kind]
    assert low <= waits[0] <= high


def test_the_default_tries_last_minutes(
    server: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.undo()  # the waits of the tests
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.answers[NAME] = [Answer(status=503)] * 99
    refusal(listed(server.url + NAME), RemoteConfig())
    assert sum(waits) > 120


def test_a_range_is_one_request_of_its_bytes(server: FlakyServer) -> None:
    file = listed(server.url + NAME)
    server.answers[NAME] = [Answer(status=503), Answer(cut=50)]
    assert fetch_range(file, 1000, 100, CONFIG) == DATA[1000:1100]
    assert server.requests(NAME) == [1000] * 3 and server.sent == 2 * 100
    assert fetch_range(file, 0, 10, CONFIG) == DATA[:10]
    # Servers that send complete files, or another range, or a shorter file.
    for answer in (Answer(ranges=False), Answer(body=DATA[:50])):
        server.answers[NAME] = [answer]
        assert fetch_range(file, 0, 100, CONFIG) is None
    server.answers[NAME] = [Answer(status=404)]
    with pytest.raises(UserError, match="no such file there"):
        fetch_range(file, 0, 100, CONFIG)


def test_a_slow_server_is_waited_for(server: FlakyServer) -> None:
    small = server.files["/slow"] = DATA[:4096]
    server.answers["/slow"] = [Answer(pause=0.2)]  # 0.8 s in all, over the limit for silence
    assert fetch(listed(server.url + "/slow", small), CONFIG) == small
    assert server.requests("/slow") == [0]


def test_tries_that_get_on_are_no_failures(server: FlakyServer) -> None:
    server.answers[NAME] = [Answer(cut=3 * 2**19, stall=0.3), Answer(status=503)] * 2
    assert fetch(listed(server.url + NAME), RemoteConfig(retries=2)) == DATA
    assert len(server.requests(NAME)) == 5


def test_redirects_are_followed(server: FlakyServer) -> None:
    server.answers["/old"] = [Answer(status=302, location=NAME)] * 2
    server.answers[NAME] = [Answer(cut=1_000_000, stall=0.3)]
    assert fetch(listed(server.url + "/old"), CONFIG) == DATA
    assert server.requests(NAME) == [0, 1_000_000]


def test_a_refusal_is_not_tried_again(server: FlakyServer) -> None:
    for status in (404, 410, 403, 401, 400):
        server.log.clear()
        server.answers[NAME] = [Answer(status=status)]
        sentence = refusal(listed(server.url + NAME))
        assert ("no such file" if status in (404, 410) else f"HTTP {status}") in sentence
        assert server.requests(NAME) == [0]


def test_a_server_that_stays_away_ends_in_one_sentence(server: FlakyServer) -> None:
    server.answers[NAME] = [Answer(status=503)] * 9
    sentence = refusal(listed(server.url + NAME))
    assert "4 tries in a row failed (HTTP 503)" in sentence
    assert len(server.requests(NAME)) == 4
    with FlakyServer() as gone:
        url = gone.url + NAME
    assert "4 tries in a row failed" in refusal(listed(url))


def test_other_bytes_than_listed_are_refused_after_a_second_try(server: FlakyServer) -> None:
    for served in (DATA[::-1], DATA[:-1], DATA + b"x", b""):
        server.log.clear()
        server.files[NAME] = served
        assert "also when fetched again" in refusal(listed(server.url + NAME))
        assert server.requests(NAME).count(0) == 2


def test_no_message_shows_a_secret(server: FlakyServer) -> None:
    url = server.url.replace("://", "://me:pa55word@") + NAME + "?sig=abc123&x=1"
    server.answers[NAME] = [Answer(status=403)]
    sentences = [refusal(listed(url))]
    server.answers[NAME] = [Answer(status=500)] * 4
    sentences.append(refusal(listed(url)))
    sentences.append(refusal(listed(url, DATA[1:])))
    for sentence in sentences:
        assert "localhost" in sentence and NAME in sentence
        assert not any(secret in sentence for secret in ("pa55word", "me:", "abc123"))


def test_bytes_that_are_there_are_not_fetched_again(server: FlakyServer, tmp_path: Path) -> None:
    part = tmp_path / "part"
    for start, first in (
        (DATA[:2_000_000], 2_000_000),
        (DATA, None),
        (b"wrong", 5),
        (DATA + b"x", len(DATA) + 1),
    ):
        server.log.clear()
        part.write_bytes(start)
        with part.open("a+b", buffering=0) as out:
            download(listed(server.url + NAME), out, CONFIG)
        assert part.read_bytes() == DATA
        assert server.requests(NAME)[:1] == ([] if first is None else [first])


def test_a_full_disk_is_one_sentence_and_gives_the_room_back(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "there").write_bytes(DATA)
    part = tmp_path / "part"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 5, limits[1]))
    try:
        with (
            part.open("a+b", buffering=0) as out,
            pytest.raises(UserError, match="the disk is full") as error,
        ):
            download(listed(f"file://{tmp_path}/there"), out, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).startswith(f"{tmp_path}: the disk is full")
    assert part.stat().st_size == 0


def test_a_disk_that_tells_late_that_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there").write_bytes(DATA)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        fetch(listed(f"file://{tmp_path}/there"), CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_files_of_a_slow_disk_are_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "BLOCK", 1_000_000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "there").write_bytes(DATA)
    url = f"file://{tmp_path}/a/there"
    assert fetch(listed(url), CONFIG) == DATA
    assert fetch(RemoteFile(url), CONFIG) == DATA
    assert "no such file" in refusal(listed(url + "x"))
    assert "also when fetched again" in refusal(listed(url, DATA[1:]))


def test_an_unknown_scheme_is_refused() -> None:
    for url in ("pipe://cat x", "ftp://host/x", "simplecache::s3://bucket/x"):
        assert "is not read" in refusal(RemoteFile(url))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import fsspec  # noqa: F401

    # The package has a mapping of the same name where the module would be.
    loaded: Any = sys.modules["fsspec.registry"]
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # an earlier test may have loaded it
        monkeypatch.delitem(loaded._registry, name, raising=False)
    assert "pip install 'mmalign[remote]'" in refusal(RemoteFile("gs://bucket/x"))


@pytest.mark.parametrize("size, sha256", [(-1, None), (1.5, None), (1, "../" * 21 + "x"), (1, 7)])
def test_listed_facts_must_be_facts(size: int, sha256: str | None) -> None:
    with pytest.raises(ValueError, match="validation error for RemoteFile"):
        RemoteFile("https://host/x", size, sha256)


def test_urls() -> None:
    assert is_remote("s3://bucket/set") and is_remote("file:///x") and not is_remote("data/x/train")
    assert join("s3://bucket/set/", "a b.tar") == "s3://bucket/set/a b.tar"
    assert join("https://host/set", "a b.tar") == "https://host/set/a%20b.tar"
    assert join("https://host/set/?sig=1", "a.tar") == "https://host/set/a.tar?sig=1"
    assert shown("https://me:pw@host/x?sig=1#y") == "https://[redacted]@host/x"
    assert shown("hf://datasets/a/b@main/x") == "hf://datasets/a/b@main/x"


def test_waits_double_differ_and_end(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    state = random.getstate()
    server.answers[NAME] = [Answer(status=503)] * 9
    refusal(listed(server.url + NAME), RemoteConfig(retries=8))
    for wait, longest in zip(waits, (0.5, 1, 2, 4, 8, 16, 30, 30), strict=True):
        assert longest / 2 <= wait <= longest
    assert waits[6] != waits[7]
    assert random.getstate() == state  # the run's own draws are not touched
