"""A data set at a URL is read like the folder that it was copied from, while the server fails; open files."""

import fcntl
import io
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flaky_server import Answer, FlakyServer
from PIL import Image
from shard_sets import make_pair, make_set, open_descriptors, write_set
from tiny import tiny_tokenizer

from mmalign.core.batch import Batch
from mmalign.core.commit import flush
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess
from mmalign.data.shards.folder import LocalFolder, Recent, RemoteFolder, read_file
from mmalign.data.shards.reader import ShardSet
from mmalign.data.storage import remote
from mmalign.data.storage.cache import ShardCache
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder, open_sets

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

SAMPLES = 24
STEPS = 9


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "train", SAMPLES)


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    pytest.importorskip("aiohttp", reason="https needs the extra `remote`")
    with FlakyServer() as running:
        for path in folder.iterdir():
            running.files[f"/set/{path.name}"] = path.read_bytes()
        yield running


def stream(name: str, cache: Path, workers: int = 0, **fields: Any) -> list[Batch]:
    kept = {"cache": str(cache), "retries": 3, "timeout": 1.0}
    config = validate(DataConfig, {"train": [name], "remote": kept, **fields}, "test")
    plan = GlobalOrder(open_sets(config), config, seed=3)
    view = Preprocess(8, config.augmentation)
    maker = BatchLoader(plan, config, tiny_tokenizer(), 32, view, 4, 0, 1)
    return list(batches(maker, 0, STEPS, workers))


@pytest.mark.parametrize(("workers", "shuffle_shards"), [(0, 64), (2, 2)])
def test_a_set_at_a_url_gives_the_same_stream(
    server: FlakyServer, folder: Path, tmp_path: Path, workers: int, shuffle_shards: int
) -> None:
    server.answers["/set/00001.tar"] = [Answer(status=503), Answer(cut=700)]
    server.answers["/set/00002.index.jsonl"] = [Answer(body=b"wrong")]
    here = stream(str(folder), tmp_path, shuffle_shards=shuffle_shards)
    url, cache = f"{server.url}/set", tmp_path / "cache"
    there = stream(url, cache, workers, shuffle_shards=shuffle_shards)
    for one, other in zip(here, there, strict=True):
        assert one.key_B == other.key_B and one.unusable == other.unusable == ()
        assert one.image_BCHW is not None and other.image_BCHW is not None
        assert np.array_equal(one.image_BCHW, other.image_BCHW)
        assert np.array_equal(one.token_NL, other.token_NL)
    # When all shards are complete, a run fetches only the manifest.
    shard_set = ShardSet(url, RemoteConfig(cache=str(cache)))
    for name in shard_set.manifest.files.keys() - {"sizes.json"}:
        read_file(shard_set.folder, name)
    before = len(server.log)
    stream(url, cache)
    assert {path for _, path, _ in server.log[before:]} == {"/set/manifest.json"}


@pytest.fixture
def noise(tmp_path: Path, server: FlakyServer) -> Path:
    """A set at /noise of 8 shards with 32 images of 30 kB."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(256):
        encoded = io.BytesIO()
        pixels = rng.integers(0, 256, (100, 100, 3), np.uint8)
        Image.fromarray(pixels).save(encoded, "PNG")
        pairs.append(replace(make_pair(number, ("en",)), image=encoded.getvalue()))
    folder = write_set(tmp_path / "noise", pairs, 32)
    for path in folder.iterdir():
        server.files[f"/noise/{path.name}"] = path.read_bytes()
    return folder


@contextmanager
def no_background(cache: Path) -> Iterator[None]:
    """While it lasts, nothing is downloaded ahead: the turns of all processes are taken."""
    cache.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for slot in range(RemoteConfig().prefetch):
            turn = stack.enter_context((cache / f"lock-slot-{slot}").open("w"))
            fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("first", [0, 4])
def test_a_start_reads_little_more_than_its_samples(
    server: FlakyServer, noise: Path, tmp_path: Path, first: int
) -> None:
    """The first batches of a run, or of one that goes on, before any shard is complete."""
    config = validate(DataConfig, {"train": [f"{server.url}/noise"]}, "test")
    cache = tmp_path / "cache"
    config = config.model_copy(update={"remote": RemoteConfig(cache=str(cache), timeout=10)})
    with no_background(cache):
        sets = open_sets(config)
        plan = GlobalOrder(sets, config, seed=3)
        maker = BatchLoader(plan, config, tiny_tokenizer(), 32, Preprocess(8), 32, 0, 1)
        batch = maker.make(first)
        needed = sum(len(ShardSet(noise).read(int(key[1:])).image) for key in batch.key_B)
        assert len({int(key[1:]) // 32 for key in batch.key_B}) == 8  # all shards
        assert needed < server.sent < 1.5 * needed
        assert not list(cache.glob("*.part"))
    here = GlobalOrder([ShardSet(noise)], config, seed=3)
    local = BatchLoader(here, config, tiny_tokenizer(), 32, Preprocess(8), 32, 0, 1).make(first)
    assert local.key_B == batch.key_B and np.array_equal(local.image_BCHW, batch.image_BCHW)


def test_bytes_of_a_range_that_are_wrong_do_not_make_a_bad_sample(
    server: FlakyServer, noise: Path, tmp_path: Path
) -> None:
    config = RemoteConfig(cache=str(tmp_path / "cache"), timeout=10)
    with no_background(tmp_path / "cache"):
        shard_set = ShardSet(f"{server.url}/noise", config)
        shard_set.prefetch([0, 1, 2, 3])
        damaged = bytes(len(server.files["/noise/00000.tar"]))
        for number, answer in enumerate((Answer(body=damaged), Answer(ranges=False))):
            server.answers[f"/noise/0000{number}.tar"] = [answer]
            assert shard_set.read(32 * number) == ShardSet(noise).read(32 * number)
            assert len(server.requests(f"/noise/0000{number}.tar")) == 2  # then the complete shard
        # A sample that is damaged in the store itself is refused, as in a folder.
        data = bytearray(server.files["/noise/00002.tar"])
        data[600] ^= 1
        server.files["/noise/00002.tar"] = bytes(data)
        with pytest.raises(UserError, match="also when fetched again"):
            shard_set.read(64)


def test_a_cache_that_is_too_small_is_refused_with_the_size_that_would_do(
    server: FlakyServer, noise: Path, tmp_path: Path
) -> None:
    def opened(gib: float) -> None:
        remote = {"cache": str(tmp_path / "cache"), "cache_gib": gib}
        train = {"train": [f"{server.url}/noise"], "remote": remote, "shuffle_shards": 2}
        open_sets(validate(DataConfig, train, "test"))

    with pytest.raises(UserError, match=r"cache_gib: 0\.002 GiB cannot hold the 4 shards") as found:
        opened(0.002)
    opened(float(re.findall(r"set it to ([0-9.]+)", str(found.value))[0]))


def test_what_is_missing_is_one_sentence(server: FlakyServer, tmp_path: Path) -> None:
    config = RemoteConfig(cache=str(tmp_path), retries=0, timeout=1)
    with pytest.raises(UserError, match=r"/nowhere/manifest\.json: no such file there"):
        ShardSet(f"{server.url}/nowhere", config)
    del server.files["/set/00001.tar"]
    shard_set = ShardSet(f"{server.url}/set", config)
    with pytest.raises(UserError, match=r"/set/00001\.tar: no such file there"):
        shard_set.read(5)


def cache_in(folder: Path) -> ShardCache:
    return ShardCache(RemoteConfig(cache=str(folder / "cache"), timeout=10))


def manifest(**files: object) -> bytes:
    return json.dumps({"name": "set", "files": files}).encode()


def test_a_folder_at_a_url_and_one_in_it(tmp_path: Path) -> None:
    outer, below = tmp_path / "set", tmp_path / "set" / "below" / "it"
    below.mkdir(parents=True)
    for path, index in ((outer, "manifest.json"), (below, "list.json")):
        (path / "0.tar").write_bytes(b"first" * 100)
        (path / index).write_bytes(manifest(**{"0.tar": flush(path / "0.tar")}))
    remote_folder = RemoteFolder(f"file://{outer}", cache_in(tmp_path))
    inner = remote_folder.inner("below/it", "list.json")
    assert str(inner) == f"file://{below}"
    for found, name in ((remote_folder, "set/manifest.json"), (inner, "below/it/list.json")):
        assert found.manifest == (tmp_path / "set" / name.removeprefix("set/")).read_bytes()
        found.prefetch(["0.tar"])
        assert read_file(found, "0.tar") == b"first" * 100
        with pytest.raises(UserError, match=rf"{name}: does not list `x\.tar`"):
            found.open("x.tar")


@pytest.mark.parametrize(
    "served, complaint",
    [
        (b"no JSON", "not a manifest"),
        (b"[]", "not a manifest"),
        (b'{"files": {"0.tar": 7}}', "not a manifest"),
        (b"\xff", "not a manifest"),
        (manifest(**{"../x": {"size": 1, "sha256": "0" * 64}}), "is not in the data set"),
        (manifest(**{"x": {"size": 1, "sha256": "../x"}}), "not a manifest that mmalign wrote"),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, served: bytes, complaint: str) -> None:
    (tmp_path / "manifest.json").write_bytes(served)
    with pytest.raises(UserError, match=complaint):
        RemoteFolder(f"file://{tmp_path}", cache_in(tmp_path))


@pytest.fixture
def letters(tmp_path: Path) -> LocalFolder:
    for name in "abc":
        (tmp_path / name).write_text(name * 3)
    return LocalFolder(tmp_path)


def test_the_file_that_was_used_longest_ago_is_closed(letters: LocalFolder) -> None:
    before = open_descriptors()
    files: Recent[str, int] = Recent(letters.open, 2, os.close)
    a, b = files["a"], files["b"]
    assert files["a"] == a  # used again, so that `b` goes first
    assert os.pread(files["c"], 3, 0) == b"ccc"
    assert len(open_descriptors() - before) == 2
    assert os.pread(a, 3, 0) == b"aaa"
    assert os.pread(files["b"], 3, 0) == b"bbb" and b is not None
    del files  # with their owner
    assert open_descriptors() <= before


def test_another_process_opens_its_own(letters: LocalFolder) -> None:
    files: Recent[str, int] = Recent(letters.open, 2, os.close)
    assert os.pread(files["a"], 3, 0) == b"aaa"
    before = open_descriptors()
    copy = pickle.loads(pickle.dumps(files))
    assert copy.most == 2 and open_descriptors() <= before
    assert os.pread(copy["a"], 3, 0) == b"aaa"
    copy.close()
    assert os.pread(files["a"], 3, 0) == b"aaa"
