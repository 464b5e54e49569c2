"""A data set at a URL is read like the folder that it was copied from, also while the server fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flaky_server import Answer, FlakyServer
from shard_sets import make_set
from tiny import tiny_tokenizer

from mmalign.core.batch import Batch
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess
from mmalign.data.shards.reader import ShardSet
from mmalign.data.storage import remote
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder, open_sets

SAMPLES = 24
STEPS = 9


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set(tmp_path / "train", SAMPLES)


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle_shards", [2, 64])
def test_a_set_at_a_url_gives_the_same_stream(
    server: FlakyServer, folder: Path, tmp_path: Path, workers: int, shuffle_shards: int
) -> None:
    server.answers["/set/00001.tar"] = [Answer(status=503), Answer(cut=700)]
    server.answers["/set/00002.index.jsonl"] = [Answer(body=b"wrong")]
    here = stream(str(folder), tmp_path, shuffle_shards=shuffle_shards)
    there = stream(f"{server.url}/set", tmp_path / "cache", workers, shuffle_shards=shuffle_shards)
    for one, other in zip(here, there, strict=True):
        assert one.key_B == other.key_B and one.unusable == other.unusable == ()
        assert one.image_BCHW is not None and other.image_BCHW is not None
        assert np.array_equal(one.image_BCHW, other.image_BCHW)
        assert np.array_equal(one.token_NL, other.token_NL)


def test_a_second_run_fetches_the_manifest_alone(server: FlakyServer, tmp_path: Path) -> None:
    stream(f"{server.url}/set", tmp_path)
    before = len(server.log)
    stream(f"{server.url}/set", tmp_path)
    assert {path for _, path, _ in server.log[before:]} == {"/set/manifest.json"}


def test_what_is_missing_is_one_sentence(server: FlakyServer, tmp_path: Path) -> None:
    config = RemoteConfig(cache=str(tmp_path), retries=0, timeout=1)
    with pytest.raises(UserError, match=r"/nowhere/manifest\.json: no such file there"):
        ShardSet(f"{server.url}/nowhere", config)
    del server.files["/set/00001.tar"]
    shard_set = ShardSet(f"{server.url}/set", config)
    with pytest.raises(UserError, match=r"/set/00001\.tar: no such file there"):
        shard_set.read(5)
    server.files["/set/manifest.json"] = b"[]"
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        ShardSet(f"{server.url}/set", config)
