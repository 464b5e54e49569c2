"""Reading through the index: byte for byte what was indexed, or a refusal with its reason."""

import errno
import json
import os
import pickle
import random
import re
import resource
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile_shards import samples, tar_of
from shard_sets import make_set, open_descriptors

from mmalign.core.commit import sha256_of
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.reasons import REASONS
from mmalign.data.shards import reader
from mmalign.data.shards.folder import open_files
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import MANIFEST
from mmalign.data.shards.reader import (
    ShardSet,
    UnusableSample,
    captions_in,
    parse_member,
)
from mmalign.data.shards.scan import Rules
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.order import GlobalOrder, open_sets


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "RETRY_WAITS", (0.01, 0.01))


def reason_of(shards: ShardSet, number: int = 0) -> str:
    with pytest.raises(UnusableSample) as caught:
        shards.read(number)
    assert caught.value.key == shards.keys[number]
    assert caught.value.shard.endswith(shards.manifest.shards[shards.locate(number)[0]].file)
    assert f"sample `{shards.keys[number]}`" in str(caught.value)
    return caught.value.reason


def rewrite_rows(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first row of the index, and the manifest with it."""
    path = folder / "00000.index.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(rows[0])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("kind", ["image", "json"])
def test_a_changed_byte_is_refused(tmp_path: Path, kind: str) -> None:
    folder = make_set(tmp_path / "set", 8)
    row = json.loads((folder / "00000.index.jsonl").read_text(encoding="utf-8").splitlines()[0])
    data = bytearray((folder / "00000.tar").read_bytes())
    data[row[kind][1] + 5] ^= 1
    (folder / "00000.tar").write_bytes(data)
    shards = ShardSet(folder)
    assert reason_of(shards) == "checksum"
    assert shards.read(1).key == "k001"


def test_a_shard_that_shrinks_or_goes_under_a_reader(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 8)
    shards = ShardSet(folder)
    shards.read(0)
    with (folder / "00000.tar").open("r+b") as file:
        file.truncate(600)
    assert reason_of(shards) == "cut off"
    (folder / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"00001\.tar: cannot be read .*when tried again") as caught:
        shards.read(4)
    assert not isinstance(caught.value, UnusableSample)  # the machine's fault, and no sample's
    with pytest.raises(UserError, match=r"00000\.tar: missing or of another size.*verify"):
        ShardSet(folder)


def test_rows_without_checksums_are_read_as_before(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 4)
    before = ShardSet(folder).read(0)

    def drop_checksums(row: dict[str, Any]) -> None:
        row["image"].pop()
        row["json"].pop()

    rewrite_rows(folder, drop_checksums)
    assert ShardSet(folder).read(0) == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("image", ["jpg", 512, reader.MAX_IMAGE_BYTES + 1, 0], "too large"),
        ("image", ["jpg", -1, 4, 0], "read error"),
        ("image", ["jpg", "512", 4, 0], "index"),
        ("image", ["jpg"], "index"),
        ("image", ["jpg", 2**70, 4, 0], "index"),
        ("json", None, "index"),
        ("langs", ["en", "en", "en"], "caption"),
    ],
)
def test_rows_that_are_not_of_the_format(
    tmp_path: Path, field: str, value: object, reason: str
) -> None:
    folder = make_set(tmp_path / "set", 4)
    rewrite_rows(folder, lambda row: row.update({field: value}))
    assert reason_of(ShardSet(folder)) == reason


def test_a_damaged_index_is_one_sentence(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 4)
    path = folder / "00000.index.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"k000", b"k009"))
    with pytest.raises(UserError, match=r"00000\.index\.jsonl: damaged.*mmalign data index"):
        ShardSet(folder).read(1)
    rewrite_rows(make_set(tmp_path / "other", 4), lambda row: row.pop("langs"))
    with pytest.raises(UserError, match="not an index of mmalign shards"):
        ShardSet(tmp_path / "other").read(0)


def test_foreign_shards_are_read_by_their_manifest(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_of(samples(2)))
    index(str(tmp_path), Rules("json:caption", "json:LANGUAGE"))
    pair = ShardSet(tmp_path).read(1)
    assert pair.image == samples(2)[3][1]
    assert [(c.lang, c.text) for c in pair.captions] == [("sw", "caption 1 of a dog ñ 漢")]
    assert (pair.source, pair.license) == (tmp_path.name, "unknown")


def test_captions_of_every_layout() -> None:
    assert captions_in("a dog", "txt") == [("a dog", None)]
    assert captions_in({"c": "a dog"}, "json:c") == [("a dog", None)]
    assert captions_in({"c": ["a", "b"]}, "json:c") == [("a", None), ("b", None)]
    assert captions_in({"c": [{"lang": "sw", "text": "mbwa"}]}, "json:c") == [("mbwa", "sw")]
    assert captions_in({"d": "a dog"}, "json:c") == []
    for wrong in (
        {"c": 1},
        {"c": [{"text": 1}]},
        {"c": "a\0b"},
        {"c": ["x"] * 2000},
        {"c": [None]},
    ):
        with pytest.raises(UnusableSample) as caught:
            captions_in(wrong, "json:c")
        assert caught.value.reason == "caption"
    with pytest.raises(UnusableSample, match="characters"):
        captions_in("x" * 10_000_000, "txt")


def test_json_and_text_that_cannot_be_read() -> None:
    for data in (b"{", b"[1]", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000):
        with pytest.raises(UnusableSample) as caught:
            parse_member("json", data)
        assert caught.value.reason == "json"
    for data in (b"\xff", b"\xed\xa0\x80"):
        with pytest.raises(UnusableSample) as caught:
            parse_member("txt", data)
        assert caught.value.reason == "not UTF-8"
    with pytest.raises(UnusableSample) as caught:
        captions_in(parse_member("json", rb'{"c": "\ud800"}'), "json:c")
    assert caught.value.reason == "not UTF-8"


def test_a_refusal_travels_between_processes() -> None:
    for reason in REASONS:
        error = UnusableSample(reason, "detail", "00000.tar", "k1")
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.reason, again.shard, again.key) == (
            str(error),
            reason,
            "00000.tar",
            "k1",
        )


def test_a_process_keeps_few_files_open_and_reads_on(tmp_path: Path) -> None:
    shards = ShardSet(make_set(tmp_path / "set", 40))
    shards.starts.most, shards.files.most = 2, 3
    before = open_descriptors()
    for number in (*range(40), 0, 39, 5):
        assert shards.read(number).key == f"k{number:03d}"
        assert len(open_descriptors() - before) <= 3
    shards.close()
    assert open_descriptors() <= before
    assert shards.read(7).key == "k007"


def test_languages_are_found_without_parsing_and_with(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 6)
    known = ShardSet(folder).languages
    assert known[2] == ("en", "en", "ja", "sw")
    rewrite_rows(folder, lambda row: row.update(key='"langs": ["xx"], \\"langs\\": ["yy"]'))
    assert ShardSet(folder).languages == known
    path = folder / "00000.index.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"langs": [', '"langs":['))
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert ShardSet(folder).languages == known


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE])
def test_what_the_machine_lacks_is_not_counted_as_a_bad_sample(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(tmp_path / "set", 8)
    shards = ShardSet(folder)
    shards.read(0)

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("open", "pread"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            for sample in (0, 4):  # of an open shard and of another
                with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
                    ShardSet(folder).read(sample)
                assert caught.value.errno == number


def test_a_file_that_was_replaced_is_read_after_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: every read of the open descriptor fails, and the path leads to a new file."""
    shards = ShardSet(make_set(tmp_path / "set", 8))
    shards.read(0)
    stale, pread = set(shards.files._values.values()), os.pread

    def read(descriptor: int, size: int, offset: int) -> bytes:
        if descriptor in stale:
            stale.discard(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read)
    assert shards.read(1).key == "k001"


def test_the_number_of_descriptors_follows_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((1024, 256), (2**20, 256), (128, 32), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert open_files().most == most


def test_descriptors_go_to_the_set_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten sets, of which one is large: every shard is opened once."""
    sizes = [40, *[4] * 9]
    folders = [str(make_set(tmp_path / str(n), size)) for n, size in enumerate(sizes)]
    config = validate(DataConfig, {"train": folders}, "test")
    opens, system_open = Counter[str](), os.open

    def count(path: str, *arguments: Any, **named: Any) -> int:
        opens[os.fspath(path)] += 1
        return system_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", count)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4 * 40, 4 * 40))
    sets = GlobalOrder(open_sets(config), config, seed=0).sets
    shards = sum(len(one.manifest.shards) for one in sets)
    assert shards == 19
    before = opens.total()
    for _ in range(3):
        for one in sets:
            for sample in range(len(one)):
                one.read(sample)
    # One index is read when its rows are counted, and opened once for its rows; a tar is opened once.
    assert opens.total() - before == 3 * shards


def test_threads_may_read_one_set(tmp_path: Path) -> None:
    shards = ShardSet(make_set(tmp_path / "set", 80))
    shards.files.most = shards.starts.most = 2  # each closes what the others read
    numbers = [number for seed in range(8) for number in random.Random(seed).sample(range(80), 80)]
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda number: shards.read(number).key, numbers))
    assert keys == [f"k{number:03d}" for number in numbers]
