"""Appended shards: the set is that of both sources, and what it was before can still be read."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.shards.test_index import RULES, write_tars
from data.test_building import contents, recipe, write_lines, write_source
from shard_sets import make_image
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data import append as module
from mmalign.data.append import append_rows, append_tars
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards import foreign_tars
from mmalign.data.shards import manifest as manifests
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import Manifest, load_manifest, read_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
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


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[], Any]) -> None:
    """Run what appends, with a full disk at the manifest of a folder."""
    write = module.write_manifest

    def fail(folder: Path, *args: Any) -> None:
        if folder.name == name:
            raise OSError("no space left")
        write(folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", fail)
        with pytest.raises(OSError, match="no space"):
            run()


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

    stop_at(monkeypatch, "val", lambda: append_rows(new, sets[0]))  # the split after `train`
    assert load_manifest(sets[0] / "val").samples == 4  # it is as it was
    append_rows(new, sets[0])
    assert contents(sets[0]) == contents(sets[1])
    again = append_rows(new, sets[0])
    assert [(one.shards, one.known) for one in again] == [(0, 2), (0, 1)]
    assert contents(sets[0]) == contents(sets[1])


@pytest.mark.parametrize("change", ["a caption", "a row more", "no row that can be used"])
def test_a_stopped_append_replaces_no_shard_if_its_source_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write_source(tmp_path / "one")
    out, two = tmp_path / "set", more_rows(tmp_path / "two")
    build(recipe(tmp_path / "one"), out)
    new = recipe(two, max_bad_fraction=0.9)
    stop_at(monkeypatch, "val", lambda: append_rows(new, out, processes=1))
    before = contents(out / "train")
    assert "00006.tar" in before

    lines = [json.loads(line) for line in (two / "pairs.jsonl").read_text().split("\n")[:-1]]
    first, *others = lines
    if change == "a caption":
        lines = [{**first, "captions": [{"lang": "de", "text": "besser"}]}, *others]
    elif change == "a row more":
        lines.insert(0, {**first, "id": "n99"})
    else:  # of the first shard of `train`
        lines = [*(line if n > 4 else {**line, "captions": []} for n, line in enumerate(lines))]
    source = (two / "pairs.jsonl").read_bytes()
    write_lines(two, lines)
    with pytest.raises(UserError, match=r"train/00005\.tar: .* the source has changed since; rest"):
        append_rows(new, out, processes=1)
    assert contents(out / "train") == before
    assert verify(out / "train").problems == ()

    (two / "pairs.jsonl").write_bytes(source)
    assert [(one.shards, one.known) for one in append_rows(new, out)] == [(0, 2), (1, 0)]
    assert ShardSet(out / "val").keys[-1] == "n4"


def test_a_damaged_set_is_reported_before_any_work(tmp_path: Path) -> None:
    write_source(tmp_path / "one")
    out = tmp_path / "set"
    build(recipe(tmp_path / "one"), out)
    (out / "val" / "00000.tar").write_bytes(b"cut off")
    before = contents(out)
    with pytest.raises(UserError, match=r"val/00000\.tar: missing or of another size"):
        append_rows(recipe(more_rows(tmp_path / "two"), max_bad_fraction=0.2), out)
    assert contents(out) == before
    assert not (tmp_path / "set.appending").exists()

    tars = write_tars(tmp_path / "first", 2)
    index(str(tars), RULES, tmp_path / "indexed")
    before = contents(tmp_path / "indexed")
    (tars / "00000.tar").unlink()
    with pytest.raises(UserError, match=r"first/00000\.tar: missing or of another size"):
        append_tars(tmp_path / "indexed", [str(write_tars(tmp_path / "second", 1))])
    assert contents(tmp_path / "indexed") == before


def test_another_image_with_a_known_id_is_refused(tmp_path: Path) -> None:
    lines = write_source(tmp_path / "one")
    out = tmp_path / "set"
    build(recipe(tmp_path / "one"), out)
    before = contents(out)
    two = tmp_path / "two"
    write_source(two, rows=6)
    for number in (0, 3):  # the other ids are of the same images
        (two / f"{number}.png").write_bytes(make_image(100 + number, size=24))
    reason = (
        r"train/00000\.index\.jsonl: the set has an image of other bytes .* `p[03]` of the new "
    )
    with pytest.raises(UserError, match=reason + r".*\(2 such identities in all\); rename the ids"):
        append_rows(recipe(two), out, processes=1)
    assert contents(out) == before

    # Renamed, they are appended; `same_picture_as` names another file of an image that the set has.
    renamed = [
        {**line, "id": f"new{n}"} if n in (0, 3) else line for n, line in enumerate(lines[:6])
    ]
    (two / "variant.png").write_bytes(make_image(1, size=30))
    variant = {**lines[1], "id": "v", "image": "variant.png", "same_picture_as": "p1"}
    write_lines(two, [*renamed, variant])
    append_rows(recipe(two), out, processes=1)
    grown = ShardSet(out / "train")
    ids = dict(zip(grown.keys, grown.picture_ids.tolist(), strict=True))
    assert ids["v"] == ids["p1"] and len({ids["new0"], ids["p0"], ids["new3"], ids["p3"]}) == 4


def table_of(folder: Path, name: str, numbers: Sequence[int]) -> RecipeConfig:
    """A recipe of a table of images whose paths say nothing about the folder."""
    (folder / name).mkdir(parents=True)
    rows = ["image,caption"]
    for position, number in enumerate(numbers):
        (folder / name / f"{position}.png").write_bytes(make_image(number))
        rows.append(f"{position}.png,text {number}")
    (folder / name / "t.csv").write_text("\n".join(rows) + "\n")
    columns = {"by_language": {"en": "caption"}}
    source = {"kind": "table", "folders": [str(folder / name)], "files": ["t.csv"]}
    tree = {"name": "t", "samples_per_shard": 4, "source": {**source, "captions": columns}}
    return validate(RecipeConfig, tree, "x.yaml")


def test_another_image_with_a_known_path_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "set"
    build(table_of(tmp_path, "one", range(5)), out)
    with pytest.raises(UserError, match=r"`2\.png`.*\(1 such identities.*\(or paths\)"):
        append_rows(table_of(tmp_path, "two", [0, 1, 9]), out, processes=1)
    (done,) = append_rows(table_of(tmp_path, "three", [0, 1, 2, 3, 4, 30, 31]), out, processes=1)
    assert done.shards == 2
    assert len(set(ShardSet(out / "train").picture_ids.tolist())) == 7


def test_tars_whose_captions_name_the_identity_are_compared_too(tmp_path: Path) -> None:
    for name, numbers in (("one", range(5)), ("two", [0, 1, 9])):
        build(table_of(tmp_path, name, numbers), tmp_path / f"{name} built")
    out, (one, two) = tmp_path / "set", (tmp_path / f"{n} built" / "train" for n in ("one", "two"))
    index(str(one), Rules("json:captions"), out)
    before = load_manifest(out).sha256
    with pytest.raises(UserError, match=r"`2\.png`.*\(1 such identities"):
        append_tars(out, [str(two)])
    assert read_manifest(out).sha256 == before


def test_tars_of_equal_names_in_several_folders_get_distinct_names(tmp_path: Path) -> None:
    for crawl in ("crawl1", "crawl2"):
        for name in ("a", "b"):
            write_tars(tmp_path / crawl / name / "shards", 1)
    out = tmp_path / "set"
    index(f"{tmp_path}/crawl1/{{a,b}}/shards/*.tar", RULES, out)
    # Named in two ways, a tar is still one.
    more = [f"{tmp_path}/crawl2/{{a,b}}/shards", f"{tmp_path}/crawl2/a/../a/shards"]
    found = append_tars(out, more)
    files = [shard.file for shard in found.manifest.shards]
    old, new = ([f"{before}{name}-shards-00000.tar" for name in "ab"] for before in ("", "crawl2-"))
    assert (files, found.shards, found.known) == ([*old, *new], 2, 0)
    assert verify(out).problems == () and found.manifest.samples == 12


def test_names_of_shards_are_distinct_or_it_is_an_error(tmp_path: Path) -> None:
    # Joined by hyphens, `x-y/z.tar` and `x/y-z.tar` are equal, and need the folder above.
    tars = [
        str(tmp_path / name) for name in ("1/x-y/z.tar", "1/x/y-z.tar", "1/x/z.tar", "2/x/z.tar")
    ]
    names = [job.shard.file for job in foreign_tars.jobs_of(tars[1:], tmp_path, RULES, {"y-z.tar"})]
    assert len(set(names)) == 3 and "y-z.tar" not in names
    names = [job.shard.file for job in foreign_tars.jobs_of([tars[2], tars[3]], tmp_path, RULES)]
    assert names == ["1-x-z.tar", "2-x-z.tar"]
    with pytest.raises(UserError, match=r"x/y-z\.tar: .*`.*1-x-y-z\.tar`, even with all folders"):
        foreign_tars.jobs_of([tars[0], tars[1]], tmp_path, RULES, {"z.tar"})
    (tmp_path / "3").symlink_to(tmp_path / "2")
    with pytest.raises(UserError, match="named twice, also through a link; name it once"):
        foreign_tars.jobs_of([tars[3], tars[3].replace("/2/", "/3/")], tmp_path, RULES)


def test_refusals_are_counted_once_if_a_stopped_append_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_tars, "MAX_REFUSALS", 3)
    tars, more = write_tars(tmp_path / "first", 2), write_tars(tmp_path / "second", 4)
    write_source(tmp_path / "one")
    rows = recipe(more_rows(tmp_path / "two"), max_bad_fraction=0.9)
    write_lines(
        tmp_path / "two", ["{"] * 5 + (tmp_path / "two/pairs.jsonl").read_text().split("\n")
    )
    listed = []
    for name in ("stopped", "in one go"):
        built, indexed = tmp_path / name / "built", tmp_path / name / "set"
        build(recipe(tmp_path / "one"), built)
        index(str(tars), RULES, indexed)
        append_both: tuple[Callable[[], Any], ...] = (
            partial(append_rows, rows, built, processes=1),
            partial(append_tars, indexed, [str(more)]),
        )
        for folder, append in zip(("train", "set"), append_both, strict=True):
            if name == "stopped":
                stop_at(monkeypatch, folder, append)
            append()
        listed.append([(one / "refused.jsonl").read_bytes() for one in (built, indexed)])
    assert listed[0] == listed[1]
    assert [json.loads(one.splitlines()[-1]) for one in listed[1]] == [{"more": 3}] * 2


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
