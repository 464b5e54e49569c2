"""Tars are indexed where they lie, at URLs; the result is verified, counted, trained on and chosen from."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import Answer, FlakyServer
from shard_sets import make_set

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import select
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import load_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
from mmalign.data.stats.summary import summarise
from mmalign.data.stats.survey import Options, survey
from mmalign.data.storage import remote
from mmalign.data.storage.listing import list_tars
from mmalign.data.verify import verify

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")
RULES = Rules("json:captions")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = make_set(tmp_path / "tars", 10)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    return folder


@pytest.fixture
def server(tars: Path) -> Iterator[FlakyServer]:
    pytest.importorskip("aiohttp", reason="https needs the extra `remote`")
    with FlakyServer() as running:
        for path in tars.iterdir():
            running.files[f"/set/{path.name}"] = path.read_bytes()
        yield running


def same(one: ShardSet, two: ShardSet) -> bool:
    return [one.read(i) for i in range(len(one))] == [two.read(i) for i in range(len(two))]


def test_tars_of_a_web_server_are_indexed_and_used(
    tmp_path: Path, tars: Path, server: FlakyServer
) -> None:
    server.answers["/set/00001.tar"] = [Answer(status=503)]
    out = tmp_path / "index"
    urls = f"{server.url}/set/{{00000..00002}}.tar"
    manifest, _ = index(urls, RULES, out, processes=2) or (None, None)
    assert manifest is not None and manifest.samples == 10
    local, _ = index(str(tars), RULES, tmp_path / "local") or (None, None)
    assert local is not None
    for shard, here in zip(manifest.shards, local.shards, strict=True):
        assert shard.tar == f"{server.url}/set/{shard.file}"
        assert manifest.files[shard.tar] == local.files[here.tar]
        assert (out / shard.index).read_bytes() == (tmp_path / "local" / here.index).read_bytes()
    assert list(out.rglob("*.tar")) == []
    assert same(ShardSet(out), ShardSet(tmp_path / "local"))
    report = verify(out, decode_images=True, processes=2)
    assert report.problems == () and report.samples == 10
    assert summarise(survey(out, Options(processes=2)))["samples"] == 10
    rules = validate(SelectConfig, {"languages": ["ja"]}, "rules")
    chosen = select(str(out), tmp_path / "chosen", rules).manifest
    assert [shard.tar for shard in chosen.shards] == [shard.tar for shard in manifest.shards]
    assert {langs for langs in ShardSet(tmp_path / "chosen").languages} == {("ja",)}


def test_a_tar_that_changed_at_its_url_is_a_problem(tmp_path: Path, server: FlakyServer) -> None:
    out = tmp_path / "index"
    index(f"{server.url}/set/{{00000..00002}}.tar", RULES, out)
    body = bytearray(server.files["/set/00001.tar"])
    body[700] ^= 1
    server.files["/set/00001.tar"] = bytes(body)
    (problem,) = verify(out).problems
    assert problem["file"].endswith("/set/00001.tar") and "sha256" in problem["detail"]


def test_what_was_scanned_is_not_fetched_again(tmp_path: Path, server: FlakyServer) -> None:
    out, urls = tmp_path / "index", f"{server.url}/set/{{00000..00002}}.tar"
    assert index(urls, RULES, out, part=(0, 2)) is None
    assert index(urls, RULES, out, part=(1, 2)) is None
    assert not (out / "manifest.json").exists()
    asked = {name: len(server.requests(name)) for name in server.files}
    index(urls, RULES, out)
    assert {name: len(server.requests(name)) for name in server.files} == asked
    index(urls, RULES, tmp_path / "at once")
    parts, once = load_manifest(out), load_manifest(tmp_path / "at once")
    assert parts.shards == once.shards and parts.files == once.files


def test_folders_are_listed_where_the_store_can(tmp_path: Path, tars: Path) -> None:
    pytest.importorskip("fsspec")
    expected = [f"file://{path}" for path in sorted(tars.glob("*.tar"))]
    assert list_tars(f"file://{tars}") == expected
    assert list_tars(f"file://{tars}/0000[12].tar*") == expected[1:]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://host/set/", "a web server does not list its files"),
        ("https://host/a.tar?sig=hidden", "a URL with a query or a user holds a secret"),
        ("https://me:hidden@host/a.tar", "a URL with a query or a user holds a secret"),
        ("https://host/{a.tar", "not a valid pattern"),
        ("ftp://host/a.tar", "`ftp://` is not read"),
        ("s3://bucket/a.tar", "is a URL; name a folder of this machine with --out"),
    ],
)
def test_urls_that_cannot_be_indexed_are_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        index(url, RULES)
    assert "hidden" not in str(error.value)


def test_a_manifest_at_a_url_names_no_files_of_the_reader(
    tmp_path: Path, tars: Path, server: FlakyServer
) -> None:
    index(str(tars), RULES, tmp_path / "local")
    for path in (tmp_path / "local").iterdir():
        if path.is_file():
            server.files[f"/bad/{path.name}"] = path.read_bytes()
    tree = json.loads(server.files["/bad/manifest.json"])
    tree["files"] = {f"file://{name}": facts for name, facts in tree["files"].items()}
    server.files["/bad/manifest.json"] = json.dumps(tree).encode()
    with pytest.raises(UserError, match="is not in the data set"):
        ShardSet(f"{server.url}/bad")
