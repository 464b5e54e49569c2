"""Untrusted rows reach the files of the source's folders and no others."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image
from typer.testing import CliRunner

from mmalign.cli.app import app
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import load_manifest
from mmalign.data.sources import rows
from mmalign.data.sources.jsonl import Jsonl
from mmalign.data.sources.published import Flickr8k
from mmalign.data.sources.table import Table

CAPTIONS = {"by_language": {"en": "caption"}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A source's folder with one image, and a secret image beside it."""
    for name in ("set/inside.png", "secret/passport.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(make_image(1))
    return tmp_path / "set"


def read_table(*folders: Path, image: str, **fields: Any) -> LazyPair | BadRow:
    (folders[0] / "t.csv").write_text(f"image,caption\n{image},a dog\n")
    tree = {"kind": "table", "files": ["t.csv"], "captions": CAPTIONS, "folders": folders, **fields}
    source: Any = validate(Table, json.loads(json.dumps(tree, default=str)), "x.yaml")
    (found,) = source.read(0)
    return found


def read_jsonl(*folders: Path, image: str, **fields: Any) -> LazyPair | BadRow:
    line = {"id": "1", "image": image, "captions": [{"lang": "en", "text": "a dog"}]}
    for folder in folders:
        (folder / "pairs.jsonl").write_text(json.dumps(line) + "\n" if folder == folders[0] else "")
    tree = {"kind": "jsonl", "folders": list(map(str, folders)), **fields}
    (found,) = validate(Jsonl, tree, "x.yaml").read(0)
    return found


READERS = (read_table, read_jsonl)


@pytest.mark.parametrize("read", READERS)
def test_names_that_lead_outside_are_refused(read: Any, home: Path) -> None:
    assert read(home, image="inside.png").load().image == make_image(1)
    secret = home.parent / "secret" / "passport.png"
    (home / "link.png").symlink_to(secret)
    (home / "folder").symlink_to(secret.parent)
    names = ("../secret/passport.png", str(secret), "link.png", "folder/passport.png")
    for name in names:
        found = read(home, image=name)
        assert isinstance(found, BadRow) and found.reason == "outside", name
        assert "give --allow-outside" in str(found)
        allowed = read(home, image=name, allow_outside=True)
        assert isinstance(allowed, LazyPair) and allowed.load().image == make_image(1)


@pytest.mark.parametrize("read", READERS)
def test_links_into_the_sources_and_into_the_hubs_cache_are_followed(
    read: Any, home: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "link.png").symlink_to(home / "inside.png")
    assert isinstance(read(other, home, image="link.png"), LazyPair)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1f", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "2e").write_bytes(make_image(2))
    (snapshot / "a.png").symlink_to("../../blobs/2e")
    assert read(snapshot, image="a.png").load().image == make_image(2)


@pytest.mark.parametrize("read", READERS)
def test_only_regular_files_of_limited_size_are_read(
    read: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(home / "pipe.png")
    (home / "folder.png").mkdir()
    for name in ("zero.png", "pipe.png", "folder.png", "a" * 300):
        found = read(home, image=name, allow_outside=True)
        assert isinstance(found, BadRow) and found.reason == "missing", name
    monkeypatch.setattr(rows, "MAX_IMAGE_BYTES", 10)
    found = read(home, image="inside.png")
    assert isinstance(found, BadRow) and found.reason == "too large"


def test_files_with_rows_are_inside_too(home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret" / "pairs.jsonl").write_text('{"id": "1"}\n')
    (home / "pairs.jsonl").symlink_to(tmp_path / "secret" / "pairs.jsonl")
    source = validate(Jsonl, {"kind": "jsonl", "folders": [str(home)]}, "x.yaml")
    with pytest.raises(UserError, match=r"pairs\.jsonl: leads out of .*--allow-outside"):
        list(source.read(0))
    tree = {"kind": "table", "files": ["../secret/t.csv"], "captions": CAPTIONS}
    (tmp_path / "secret" / "t.csv").write_text("image,caption\n")
    table = validate(Table, {**tree, "folders": [str(home)]}, "x.yaml")
    with pytest.raises(UserError, match=r"t\.csv: leads out of"):
        list(table.read(0))


def test_a_published_set_reads_no_image_from_outside(home: Path, tmp_path: Path) -> None:
    (home / "Flickr8k.token.txt").write_text("../secret/passport.png#0\ta dog\n")
    for split in ("train", "dev", "test"):
        (home / f"Flickr_8k.{split}Images.txt").write_text("../secret/passport.png\n")
    source = validate(Flickr8k, {"kind": "flickr8k", "folders": [str(home)]}, "x.yaml")
    with pytest.raises(BadRow, match="is outside of"):
        list(source.read(0))


def test_the_command_line_allows_it_and_the_recipe_stays_the_same(
    home: Path, tmp_path: Path
) -> None:
    line = {"id": "1", "image": "../secret/passport.png", "license": "CC0-1.0"}
    line |= {"captions": [{"lang": "en", "text": "a dog"}]}
    (home / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "r.yaml").write_text("name: r\nsource: {kind: jsonl}\n")
    words = ["data", "build", str(tmp_path / "r.yaml"), "--from", str(home), "--processes", "1"]
    refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")])
    assert refused.exit_code != 0
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--allow-outside"])
    assert done.exit_code == 0, done.output
    recipe = load_manifest(tmp_path / "b" / "train").recipe
    assert "allow_outside" not in json.dumps(recipe)
