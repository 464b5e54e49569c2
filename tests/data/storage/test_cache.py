"""The shared folder of downloaded shards: processes, kills, eviction, damage."""

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky_server import Answer, FlakyServer

from mmalign.core.errors import UserError
from mmalign.data.storage import cache as module
from mmalign.data.storage.cache import ShardCache, cache_folder, usable_folder
from mmalign.data.storage.remote import RemoteConfig, RemoteFile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

SIZE = 200_000
SHARDS = 20
DATA = [random.Random(number).randbytes(SIZE) for number in range(SHARDS)]
FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else multiprocessing


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    pytest.importorskip("aiohttp", reason="https needs the extra `remote`")
    with FlakyServer() as running:
        running.files = {f"/{number}.tar": data for number, data in enumerate(DATA)}
        yield running


@pytest.fixture
def shards(tmp_path: Path) -> list[RemoteFile]:
    """The same shards in a folder, for tests that need no server."""
    (tmp_path / "there").mkdir()
    for number, data in enumerate(DATA):
        (tmp_path / "there" / f"{number}.tar").write_bytes(data)
    return listed(f"file://{tmp_path}/there")


def listed(url: str) -> list[RemoteFile]:
    return [
        RemoteFile(f"{url}/{number}.tar", SIZE, hashlib.sha256(data).hexdigest())
        for number, data in enumerate(DATA)
    ]


def config_of(folder: Path, shards: float = 5, prefetch: int = 2) -> RemoteConfig:
    gib = shards * SIZE / 2**30
    return RemoteConfig(cache=str(folder / "cache"), cache_gib=gib, prefetch=prefetch, timeout=10)


def read(cache: ShardCache, file: RemoteFile) -> bytes:
    with os.fdopen(cache.open(file), "rb") as shard:
        return shard.read()


def path_of(cache: ShardCache, file: RemoteFile) -> Path:
    return cache.folder / str(file.sha256)


def names_in(folder: Path) -> set[str]:
    """The files of a cache, without its locks."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("lock-")}


def held_bytes(folder: Path) -> int:
    total = 0
    for path in (folder / "cache").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def in_a_child(work: Callable[[], None]) -> "multiprocessing.process.BaseProcess":
    child = FORK.Process(target=work, daemon=True)
    child.start()
    return child


def ended_well(child: "multiprocessing.process.BaseProcess") -> bool:
    child.join(60)
    return child.exitcode == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(config_of(tmp_path))


def test_a_file_is_downloaded_once(server: FlakyServer, cache: ShardCache, tmp_path: Path) -> None:
    file = listed(server.url)[0]
    assert [read(cache, file) for _ in range(3)] == [DATA[0]] * 3
    assert read(ShardCache(config_of(tmp_path)), file) == DATA[0]  # as another process would
    # Equal content at another URL is the same file.
    assert read(cache, RemoteFile("file:///nowhere/0.tar", SIZE, file.sha256)) == DATA[0]
    assert len(server.log) == 1
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_the_file_unused_longest_is_removed_first(
    shards: list[RemoteFile], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOUCH_NS", 0)
    (cache.folder / "notes.txt").write_text("of another program")
    left = cache.folder / f"{shards[9].sha256}.{SIZE}.part"  # of a download that nobody continued
    left.write_bytes(DATA[9][:1000])
    os.utime(left, (0, 0))
    for number in (0, 1, 2, 3, 4, 0, 5, 6):  # 0 is used again: 1 and 2 go
        read(cache, shards[number])
        time.sleep(0.01)
    kept = {str(shards[n].sha256) for n in (0, 3, 4, 5, 6)}
    assert names_in(cache.folder) == {"notes.txt", *kept}


def test_open_files_are_not_removed_and_the_limit_holds(
    shards: list[RemoteFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOUCH_NS", 0)
    cache = ShardCache(config_of(tmp_path, shards=2))
    first = cache.open(shards[0])
    for shard in shards[1:]:
        read(cache, shard)
    assert path_of(cache, shards[0]).exists()
    assert held_bytes(tmp_path) == 2 * SIZE
    os.close(first)
    read(cache, shards[1])
    read(cache, shards[2])
    assert not path_of(cache, shards[0]).exists()
    # More files are needed at once than there is room for: a sentence, when the wait was in vain.
    descriptors = [cache.open(shard) for shard in shards[:2]]
    hasty = ShardCache(config_of(tmp_path, shards=2).model_copy(update={"timeout": 0.1}))
    with pytest.raises(UserError, match=r"leave no room for .*2\.tar; raise `cache_gib`"):
        hasty.open(shards[2])
    assert held_bytes(tmp_path) == 2 * SIZE
    # If somebody else removes a file that is open, it can still be read.
    path_of(cache, shards[0]).unlink()
    assert os.pread(descriptors[0], SIZE, 0) == DATA[0]
    for descriptor in descriptors:
        os.close(descriptor)
    read(cache, RemoteFile(shards[0].url, 0, hashlib.sha256(b"").hexdigest()))
    assert held_bytes(tmp_path) <= 2 * SIZE
    small = ShardCache(config_of(tmp_path, shards=0.5))
    with pytest.raises(UserError, match="more than the whole cache; raise `cache_gib`"):
        small.open(shards[0])


def test_a_damaged_file_is_downloaded_again(shards: list[RemoteFile], tmp_path: Path) -> None:
    for damage in (b"", DATA[0][:-1], DATA[0] + b"x", b"x" + DATA[0][1:]):
        cache = ShardCache(config_of(tmp_path))  # as another process: each checks the content once
        path_of(cache, shards[0]).write_bytes(damage)
        assert read(cache, shards[0]) == DATA[0]


def test_a_file_is_hashed_once_for_all_processes(
    shards: list[RemoteFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, file_digest = [], hashlib.file_digest

    def count(file: Any, name: str) -> Any:
        hashed.append(os.fstat(file.fileno()).st_size)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", count)
    for _ in range(3):  # as other processes
        assert read(ShardCache(config_of(tmp_path)), shards[0]) == DATA[0]
    assert hashed == [0]  # the download began with nothing
    # A file of version 0.1.0 has no mark, and what was copied or changed has lost it.
    path = path_of(ShardCache(config_of(tmp_path)), shards[0])
    path.write_bytes(path.read_bytes())
    for _ in range(2):
        assert read(ShardCache(config_of(tmp_path)), shards[0]) == DATA[0]
    assert hashed == [0, SIZE]


def test_processes_divide_what_they_all_prefetch(server: FlakyServer, tmp_path: Path) -> None:
    files = listed(server.url)[:12]
    for number in range(12):
        server.answers[f"/{number}.tar"] = [Answer(pause=0.001)]

    def work() -> None:
        cache = ShardCache(config_of(tmp_path, shards=20, prefetch=3))
        cache.prefetch(files)
        wait_for(lambda: all(path_of(cache, file).exists() for file in files))
        assert [read(cache, file) for file in files] == DATA[:12]

    children = [in_a_child(work) for _ in range(4)]
    assert all([ended_well(child) for child in children])
    asked = [int(path[1:-4]) for _, path, _ in server.log]
    assert sorted(asked) == list(range(12))  # each once
    assert server.most_at_once == 3
    assert all(abs(number - place) <= 3 for place, number in enumerate(asked)), asked


def test_a_slow_store_is_not_asked_for_what_was_needed_before(
    server: FlakyServer, tmp_path: Path
) -> None:
    files = listed(server.url)
    cache = ShardCache(config_of(tmp_path, shards=3, prefetch=1))
    with cache._locked("slot-0"):  # another process downloads
        cache.prefetch(files[:1])
        wait_for(lambda: files[0] in cache._in_work)
        for number in range(1, 10):
            cache.prefetch(files[number : number + 2])  # a window and the next one
    wait_for(lambda: path_of(cache, files[10]).exists())
    assert [path for _, path, _ in server.log] == ["/0.tar", "/8.tar", "/9.tar", "/10.tar"]


def test_what_is_prefetched_waits_for_room(server: FlakyServer, tmp_path: Path) -> None:
    files = listed(server.url)
    cache = ShardCache(config_of(tmp_path, shards=2))
    held = [cache.open(file) for file in files[:2]]
    cache.prefetch(files[2:4])
    time.sleep(0.3)
    assert cache.open_if_here(files[2]) is None and held_bytes(tmp_path) == 2 * SIZE
    for descriptor in held:
        os.close(descriptor)
    wait_for(lambda: all(path_of(cache, file).exists() for file in files[2:4]))
    assert held_bytes(tmp_path) == 2 * SIZE


def test_an_interrupted_download_is_continued_or_replaced(
    shards: list[RemoteFile], cache: ShardCache
) -> None:
    for left in (b"", DATA[0][:1000], b"x" * 1000, DATA[0], DATA[0] + b"x"):
        path_of(cache, shards[0]).unlink(missing_ok=True)
        (cache.folder / f"{shards[0].sha256}.{SIZE}.part").write_bytes(left)
        assert read(cache, shards[0]) == DATA[0]
        assert names_in(cache.folder) == {shards[0].sha256}


def test_prefetched_files_are_read_without_a_download(
    server: FlakyServer, cache: ShardCache
) -> None:
    files = listed(server.url)
    server.answers["/0.tar"] = [Answer(status=404)]  # reported when the file is opened
    for _ in range(3):
        cache.prefetch(files[:3])
    wait_for(lambda: all(path_of(cache, file).exists() for file in files[1:3]))
    asked = len(server.log)
    assert [read(cache, file) for file in files[1:3]] == DATA[1:3]
    assert len(server.log) == asked == 3
    with pytest.raises(UserError, match="no such file there"):
        cache.open_if_here(files[0])
    assert read(cache, files[0]) == DATA[0]


def test_the_cache_works_in_forked_and_spawned_processes(
    server: FlakyServer, cache: ShardCache
) -> None:
    files = listed(server.url)
    cache.prefetch(files[:1])
    assert read(cache, files[1]) == DATA[1]

    def work() -> None:
        cache.prefetch(files[2:4])
        assert [read(cache, file) for file in files[:5]] == DATA[:5]

    children = [in_a_child(work) for _ in range(3)]
    assert [read(cache, file) for file in files[5:9]] == DATA[5:9]
    assert all([ended_well(child) for child in children])
    assert read(pickle.loads(pickle.dumps(cache)), files[0]) == DATA[0]


def test_processes_share_a_small_cache_and_one_is_killed(
    server: FlakyServer, tmp_path: Path
) -> None:
    """Four processes read 20 shards with room for 5; one is killed during a download."""
    files = listed(server.url)
    stalled = Answer(cut=150_000, stall=30)
    server.answers["/3.tar"] = [stalled]

    def work() -> None:
        cache = ShardCache(config_of(tmp_path))
        for number, file in enumerate(files):
            cache.prefetch(files[number + 1 : number + 3])
            assert read(cache, file) == DATA[number]

    victim = in_a_child(work)
    assert stalled.started.wait(60)
    part = tmp_path / "cache" / f"{files[3].sha256}.{SIZE}.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    others = [in_a_child(work) for _ in range(3)]
    time.sleep(0.5)  # until they wait for the victim's lock
    assert victim.pid is not None and len(server.requests("/3.tar")) == 1
    os.kill(victim.pid, signal.SIGKILL)
    assert all([ended_well(other) for other in others])
    resumed = server.requests("/3.tar")[1]
    assert 0 < resumed <= 150_000
    fetches = [len(server.requests(f"/{number}.tar")) for number in range(SHARDS)]
    assert max(fetches) <= 4 + 1  # a process for each, and one for the kill
    assert sum(fetches) <= 2.5 * SHARDS
    assert held_bytes(tmp_path) <= 5 * SIZE


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(
    shards: list[RemoteFile], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(path: Path, descriptor: int) -> bool:
        monkeypatch.undo()
        path.unlink()
        return module._is_at(path, descriptor)

    monkeypatch.setattr(module, "_is_at", remove)
    assert read(cache, shards[0]) == DATA[0]
    assert names_in(cache.folder) == {shards[0].sha256}


def test_a_waiting_process_continues_an_abandoned_download(
    shards: list[RemoteFile], cache: ShardCache
) -> None:
    part = cache.folder / f"{shards[0].sha256}.{SIZE}.part"
    part.write_bytes(DATA[0][:1000])
    with part.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = [in_a_child(lambda: check(cache, shards[0])) for _ in range(3)]
        time.sleep(0.2)
        assert all(child.is_alive() for child in waiting)
        fcntl.flock(held, fcntl.LOCK_UN)  # the children have copies of the descriptor
    assert all([ended_well(child) for child in waiting])
    assert names_in(cache.folder) == {shards[0].sha256}


def check(cache: ShardCache, file: RemoteFile) -> None:
    assert read(cache, file) == DATA[0]


def test_processes_that_read_in_different_orders(server: FlakyServer, tmp_path: Path) -> None:
    files = listed(server.url)

    def work(seed: int) -> None:
        cache = ShardCache(config_of(tmp_path))
        for number in random.Random(seed).sample(range(SHARDS), SHARDS):
            assert read(cache, files[number]) == DATA[number]

    children = [in_a_child(lambda seed=seed: work(seed)) for seed in range(4)]
    most, cache = 0, ShardCache(config_of(tmp_path))
    while any(child.is_alive() for child in children):
        # While files are counted, nothing is removed and no download begins.
        with cache._locked("trim"):
            most = max(most, held_bytes(tmp_path))
        time.sleep(0.005)
    assert all([ended_well(child) for child in children])
    assert most <= 5 * SIZE  # each process holds one, so the limit is never exceeded
    assert max(len(server.requests(f"/{number}.tar")) for number in range(SHARDS)) <= 4


def test_an_unusable_folder_is_reported_in_one_sentence(
    shards: list[RemoteFile], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made .*; name a folder of your own"):
        ShardCache(RemoteConfig(cache=str(tmp_path / "file" / "cache")))
    cache = ShardCache(config_of(tmp_path))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot be used \(No such file or directory\)"):
        cache.open(shards[0])


def test_a_folder_of_another_user_and_a_read_only_one_are_refused() -> None:
    def work() -> None:
        if os.getuid() == 0:  # root may do everything
            os.setuid(65534)
        with pytest.raises(UserError, match="belongs to another user"):
            usable_folder(Path("/"))
        with tempfile.TemporaryDirectory() as own:
            Path(own).chmod(0o500)
            with pytest.raises(UserError, match="cannot be written"):
                usable_folder(Path(own))

    assert ended_well(in_a_child(work))


def test_the_folder_comes_from_the_configuration_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMALIGN_CACHE", "~/elsewhere")
    assert cache_folder(RemoteConfig(cache="here")) == Path("here")
    assert cache_folder(RemoteConfig()) == Path.home() / "elsewhere"
    monkeypatch.delenv("MMALIGN_CACHE")
    assert cache_folder(RemoteConfig()) == Path.home() / ".cache" / "mmalign" / "shards"
