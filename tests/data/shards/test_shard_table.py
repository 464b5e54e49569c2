"""A manifest whose shards are in a table says what one that lists them says."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from shard_sets import make_pair, write_set

from mmalign.core.errors import UserError
from mmalign.data.shards import manifest as module
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import MANIFEST, Manifest, load_manifest, read_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
from mmalign.data.shards.shard_table import TABLE, ShardTable
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.verify import verify

PAIRS = [make_pair(n, (("en",), ("sw", "ja"), ())[n % 3]) for n in range(23)]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return write_set(tmp_path / "listed", PAIRS, 2)


@pytest.fixture
def tabled(tmp_path: Path, listed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "MOST_LISTED", 5)
    return write_set(tmp_path / "tabled", PAIRS, 2)


def check_equal(found: Manifest, expected: Manifest) -> None:
    assert isinstance(found.shards, ShardTable)
    assert len(found.shards) == len(expected.shards)
    assert list(found.shards) == list(expected.shards)
    assert found.shards[3] == expected.shards[3]
    assert found.samples == expected.samples
    assert found.languages == expected.languages
    assert {n: f for n, f in found.files.items() if n != TABLE} == expected.files
    assert len(found.files) == len(expected.files) + 1
    assert dict(found.file_sizes()) == {n: f["size"] for n, f in found.files.items()}
    assert (found.shard_bytes == expected.shard_bytes).all()
    for name in ("sample_S", "caption_S", "captioned_S", "languages", "caption_LS"):
        one, other = getattr(found.columns, name), getattr(expected.columns, name)
        assert np.array_equal(one, other), name
    assert found.part(found.shards[2]).shards == (expected.shards[2],)
    for name in ("", "zzz", "00000", "99999.tar", "00003.index.json"):
        assert name not in found.files


def test_a_table_says_what_a_list_says(tabled: Path, listed: Path) -> None:
    check_equal(read_manifest(tabled), read_manifest(listed))
    tree = json.loads((tabled / MANIFEST).read_text())
    assert (tree["format"], tree["shards"]) == (2, {"table": TABLE, "count": 12})
    assert tree["files"].keys() == {"sizes.json", TABLE}
    with safe_open(tabled / TABLE, framework="np") as tensors:  # by others
        assert tensors.get_tensor("counts")[0].tolist() == [2] * 11 + [1]
    shards = ShardSet(tabled)
    assert [shards.read(n) for n in range(23)] == PAIRS
    assert not verify(tabled).problems
    check_equal(pickle.loads(pickle.dumps(shards)).manifest, read_manifest(listed))


def test_tars_of_other_folders_are_in_a_table(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules, beside = Rules("json:captions"), tmp_path / "beside"
    expected = index(str(listed), rules, beside)[0]
    monkeypatch.setattr(module, "MOST_LISTED", 5)
    found = index(str(listed), rules, tmp_path / "more")[0]
    assert found.shards[0].path == str(listed.resolve() / "00000.tar")
    check_equal(found, expected)
    # A smaller set in its place has no table.
    monkeypatch.undo()
    assert not isinstance(index(str(listed), rules, tmp_path / "more")[0].shards, ShardTable)
    assert not (tmp_path / "more" / TABLE).exists()


def test_names_are_found_whatever_their_order(tmp_path: Path) -> None:
    names = ["b.tar", "a\udc80.tar", "漢.tar", "a.tar", "ab.tar"]
    shards = [module.Shard(name, n, n, {"en": n}) for n, name in enumerate(names)]
    facts = {"size": 1, "sha256": "0" * 64}
    files = {
        name: facts | {"size": 10 * n + k}
        for n, one in enumerate(shards)
        for k, name in enumerate((one.tar, one.index))
    }
    module.write_table(tmp_path / TABLE, shards, files)
    table = ShardTable(tmp_path / TABLE)
    assert [one.file for one in table] == names
    assert {name: table.facts(name) for name in files} == files


def test_a_remote_table_is_downloaded_once_through_the_cache(
    tabled: Path, listed: Path, tmp_path: Path
) -> None:
    remote = RemoteConfig(cache=str(tmp_path / "cache"), prefetch=0)
    shards = ShardSet(f"file://{tabled}", remote)
    check_equal(shards.manifest, read_manifest(listed))
    assert [shards.read(n) for n in (0, 22)] == [PAIRS[0], PAIRS[22]]
    sha256 = json.loads((tabled / MANIFEST).read_text())["files"][TABLE]["sha256"]
    assert (tmp_path / "cache" / sha256).is_file()
    (tabled / TABLE).write_bytes(b"other")
    check_equal(ShardSet(f"file://{tabled}", remote).manifest, read_manifest(listed))


def test_a_table_that_is_missing_or_damaged_is_named(tabled: Path) -> None:
    content = (tabled / TABLE).read_bytes()
    for damaged in (None, b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        (tabled / TABLE).unlink(missing_ok=True)
        if damaged is not None:
            (tabled / TABLE).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{TABLE}: missing or damaged; make the data set"):
            load_manifest(tabled)
    # A table that its manifest lists, and that is none.
    tree = json.loads((tabled / MANIFEST).read_text())
    tree["shards"]["table"] = "sizes.json"
    (tabled / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(UserError, match="not a manifest of mmalign shards"):
        load_manifest(tabled)
