"""Appended shards: the set is that of both sources, and what it was before can still be read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.shards.test_index import RULES, write_tars
from data.test_building import contents, recipe, write_lines, write_source
from shard_sets import make_image
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.errors import UserError
from mmalign.data import append as module
from mmalign.data.append import append_rows, append_tars
from mmalign.data.recipe import build
from mmalign.data.shards import manifest as manifests
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import Manifest, load_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.verify import verify


def more_rows(folder: Path, language: str = "de") -> Path:
    """A folder of images that the first source does not have, with captions in another language."""
    lines = write_source(folder, rows=9)
    for number, line in enumerate(lines):
        (folder / line["image"]).write_bytes(make_image(100 + number))
        line |= {"id": f"n{number}", "captions": [{"lang": language, "text": f"neu {number}"}]}
    write_lines(folder, [*lines, "{"])
    return folder


def check_is(found: Manifest | None, expected: Manifest) -> None:
    """An order of samples that is made of either is the same."""
    assert found is not None and found.sha256 == expected.sha256
    assert list(found.shards) == list(expected.shards)
    for name in ("sample_S", "caption_S", "captioned_S", "languages", "caption_LS"):
        assert np.array_equal(getattr(found.columns, name), getattr(expected.columns, name)), name
    assert found.languages == expected.languages
    assert (found.shard_bytes == expected.shard_bytes).all()


@pytest.mark.parametrize("most_listed", [1000, 3])  # 3: the shards are in tables
def test_rows_are_appended_in_new_shards_and_the_old_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_listed: int
) -> None:
    monkeypatch.setattr(manifests, "MOST_LISTED", most_listed)
    write_source(tmp_path / "one")
    out = tmp_path / "set"
    build(recipe(tmp_path / "one", max_bad_fraction=0.2), out)
    before, old = load_manifest(out / "train"), contents(out)
    new = recipe(more_rows(tmp_path / "two"), max_bad_fraction=0.2)
    done = {one.folder.name: one for one in append_rows(new, out, processes=1)}
    assert {name: (one.shards, one.known) for name, one in done.items()} == {
        "train": (2, 0),
        "val": (1, 0),
    }
    now = contents(out)
    for name, data in old.items():
        if name.endswith((".tar", ".index.jsonl")):
            assert now[name] == data
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("set.")]

    grown = ShardSet(out / "train")
    assert [shard.file for shard in grown.manifest.shards] == [f"{n:05d}.tar" for n in range(7)]
    assert grown.keys[-8:] == [f"n{n}" for n in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert grown.read(len(grown) - 1).image == make_image(108)
    assert grown.manifest.languages == {"en": 19, "sw": 19, "de": 8}
    assert verify(out / "train").problems == ()
    tree = json.loads((out / "train" / "manifest.json").read_text())
    assert tree["licenses"] == {"unknown": 27}
    assert json.loads((out / "train" / "sizes.json").read_text())["00006.tar"] == 4
    assert len((out / "refused.jsonl").read_text().splitlines()) == 1

    check_is(grown.manifest.as_of(before.sha256), before)
    check_is(ShardSet(out / "train", as_of=before.sha256).manifest, before)
    assert grown.manifest.as_of("0" * 64) is None
    assert grown.manifest.as_of(grown.manifest.sha256) is grown.manifest

    # Once more, and each earlier state is still known.
    third = recipe(more_rows(tmp_path / "three", "fr"), max_bad_fraction=0.2)
    append_rows(third, out, processes=1)
    last = load_manifest(out / "train")
    check_is(last.as_of(before.sha256), before)
    check_is(last.as_of(grown.manifest.sha256), grown.manifest)
    check_is(
        getattr(last.as_of(grown.manifest.sha256), "as_of", lambda _: None)(before.sha256), before
    )
    names = {path.name for path in (out / "train").glob("*.safetensors")}
    assert names == ({"shards-9.safetensors"} if most_listed == 3 else set())


def test_an_append_that_was_stopped_goes_on_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "one")
    new = recipe(more_rows(tmp_path / "two"), max_bad_fraction=0.2)
    sets = []
    for name in ("stopped", "in one go"):
        out = tmp_path / name / "set"
        build(recipe(tmp_path / "one"), out)
        sets.append(out)
    append_rows(new, sets[1])

    write = module.write_manifest

    def fail(folder: Path, *args: Any) -> None:
        if folder.name == "val":  # the split after `train`
            raise OSError("no space left")
        write(folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", fail)
        with pytest.raises(OSError, match="no space"):
            append_rows(new, sets[0])
    assert load_manifest(sets[0] / "val").samples == 4  # it is as it was
    append_rows(new, sets[0])
    assert contents(sets[0]) == contents(sets[1])
    again = append_rows(new, sets[0])
    assert [(one.shards, one.known) for one in again] == [(0, 2), (0, 1)]
    assert contents(sets[0]) == contents(sets[1])


def test_tars_are_appended_by_the_rules_of_the_set(tmp_path: Path) -> None:
    first = write_tars(tmp_path / "first", 2)
    out = tmp_path / "set"
    index(str(first), RULES, out)
    before = load_manifest(out)
    second = write_tars(tmp_path / "second", 3)  # of the same names as the first
    found = append_tars(out, [str(first / "00001.tar"), str(second)])
    assert (found.shards, found.known) == (3, 1)
    files = [shard.file for shard in found.manifest.shards]
    assert files == ["00000.tar", "00001.tar", *(f"second-0000{n}.tar" for n in range(3))]
    assert verify(out).problems == () and found.manifest.samples == 15
    assert found.manifest.refused["second-00002.tar"] == {"no caption": 1}
    assert len((out / "refused.jsonl").read_text().splitlines()) == 5
    check_is(found.manifest.as_of(before.sha256), before)
    assert append_tars(out, [str(second)]).shards == 0
    with pytest.raises(UserError, match="has shards that were appended"):
        index(str(first), RULES, out)


def test_what_cannot_be_appended_to_is_one_sentence(tmp_path: Path) -> None:
    write_source(tmp_path / "one")
    build(recipe(tmp_path / "one", withhold={"fraction": 0.3}), tmp_path / "withheld")
    build(recipe(tmp_path / "one"), tmp_path / "set")
    sets = {
        "withheld": "chooses captions among all rows",
        "set/train": "name the folder that holds the splits",
        "none": "no data set; make it with",
    }
    for name, reason in sets.items():
        command = ["data", "append", str(tmp_path / name), "--from", str(tmp_path / "one")]
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, UserError) and reason in str(done.exception), name
    done = CliRunner().invoke(app, ["data", "append", str(tmp_path / "set")])
    assert "--from is missing" in str(done.exception)


def test_the_command_says_what_is_new(tmp_path: Path) -> None:
    write_source(tmp_path / "one")
    out = tmp_path / "set"
    build(recipe(tmp_path / "one", max_bad_fraction=0.2), out)
    more_rows(tmp_path / "two")
    (tmp_path / "two" / "pairs.jsonl").write_text(
        "".join((tmp_path / "two" / "pairs.jsonl").read_text().splitlines(True)[:-1])
    )
    done = CliRunner().invoke(app, ["data", "append", str(out), "--from", str(tmp_path / "two")])
    assert done.exception is None, done.exception
    lines = done.stdout.splitlines()
    assert f"{out}/train: 2 new shards" in lines
    assert f"{out}/train: 27 images, 46 captions in 3 languages" in lines
