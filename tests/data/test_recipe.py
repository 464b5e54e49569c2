"""The recipe runner: the same recipe gives the same bytes, and nothing is lost by accident."""

import json
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data import recipe as runner
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.reader import ShardSet

LANGUAGES = ["en", "de", "ar"]
SPLITS = {"dev": 4, "test": 6}
SCENES = {
    "kind": "emoji_scenes",
    "train_scenes": 7,
    "test_scenes": 3,
    "image_size": 24,
    "languages": LANGUAGES,
    "entailment": {"train": 8, **SPLITS},
}


def scenes(name: str = "scenes", **fields: Any) -> RecipeConfig:
    tree = {"name": name, "samples_per_shard": 4, "source": SCENES, **fields}
    return validate(RecipeConfig, tree, "x.yaml")


def stories(folder: Path, rows: int = 8, **fields: Any) -> RecipeConfig:
    """A recipe of pictures with captions in two languages; the last picture is of split `val`."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(rows):
        (folder / f"{number}.png").write_bytes(make_image(number))
        captions = [{"lang": lang, "text": f"{lang} {number}"} for lang in ("en", "sw")]
        split = "val" if number == rows - 1 else "train"
        line = {"id": f"p{number}", "image": f"{number}.png", "captions": captions, "split": split}
        lines.append(json.dumps(line))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    source = {"kind": "jsonl", "folders": [str(folder)]}
    return validate(RecipeConfig, {"name": "stories", "source": source, **fields}, "x.yaml")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in state(folder).items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "scenes"
    build(scenes(), out)
    return out


def test_every_split_is_a_data_set_and_a_recipe_that_was_run_is_not_run_again(built: Path) -> None:
    before = state(built)
    test, train = build(scenes(), built)
    assert state(built) == before
    assert (train.split, train.samples) == ("train", 7)
    assert train.languages == {"en": 3, "ar": 2, "de": 2}
    assert (test.split, test.samples, test.languages) == ("test", 3, {"ar": 3, "de": 3, "en": 3})
    assert [shard.samples for shard in train.shards] == [4, 3]
    assert train.name == test.name == "scenes"
    assert train.recipe["source"]["test_scenes"] == 3
    assert ShardSet(built / "test").read(2).split == "test"


def test_the_same_recipe_gives_the_same_bytes_in_any_folder(built: Path, tmp_path: Path) -> None:
    build(scenes(), tmp_path / "other name")
    assert contents(tmp_path / "other name") == contents(built)
    build(scenes(seed=1), tmp_path / "seed")
    assert contents(tmp_path / "seed")["train/00000.tar"] != contents(built)["train/00000.tar"]


def test_another_recipe_is_refused_unless_forced(tmp_path: Path) -> None:
    out, config = tmp_path / "out", stories(tmp_path / "source")
    build(config, out)
    before = state(out)
    lines = (tmp_path / "source" / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "source" / "pairs.jsonl").write_text("\n".join(lines[:7]))
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=r"out: holds the data set of another recipe.*--force"):
        build(other, out)
    assert state(out) == before
    (manifest,) = build(other, out, force=True)
    assert manifest.recipe["seed"] == 1
    assert not (out / "val").exists()  # nothing of the older set is left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_force_builds_the_same_recipe_again(tmp_path: Path) -> None:
    out, config = tmp_path / "out", stories(tmp_path / "source")
    build(config, out)
    before = state(out)
    build(config, out, force=True)
    assert {name: data for name, (data, _) in before.items()} == contents(out)
    assert state(out) != before


@pytest.mark.parametrize("foreign", ["notes.txt", "train/00000.tar", "tasks/mine.tsv"])
def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "out" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for force in (False, True):
        with pytest.raises(
            UserError, match=rf"out: holds `{foreign.split('/')[0]}`, which is no data"
        ):
            build(scenes(), tmp_path / "out", force)
    assert contents(tmp_path) == {f"out/{foreign}": b"mine"}


def test_a_file_is_never_replaced_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is a file"):
        build(scenes(), tmp_path / "file", force=True)
    assert contents(tmp_path) == {"file": b"mine"}
    (tmp_path / "out").mkdir()
    build(stories(tmp_path / "source"), tmp_path / "out")
    # A source without tasks writes neither tasks nor words.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


def test_a_build_that_fails_leaves_no_data_set(tmp_path: Path) -> None:
    source = tmp_path / "source"
    config = stories(source, samples_per_shard=2)
    (source / "6.png").write_text("no picture")
    with pytest.raises(
        UserError, match=r"pairs\.jsonl, line 7: the image .*6\.png does not decode"
    ):
        build(config, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.building", "source"]
    (source / "6.png").write_bytes(make_image(6))
    build(config, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_forced_build_that_fails_leaves_the_older_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", stories(tmp_path / "source")
    build(config, out)
    before, other = state(out), config.model_copy(update={"seed": 1})

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(runner, "write_split", full_disk)
    with pytest.raises(OSError, match="no space"):
        build(other, out, force=True)
    assert state(out) == before
    monkeypatch.undo()
    build(other, out, force=True)
    build(other, tmp_path / "other")
    assert contents(out) == contents(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "source"]


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    nothing = scenes(source={**SCENES, "train_scenes": 0, "test_scenes": 0})
    with pytest.raises(UserError, match=r"recipe `scenes`: .* the data set would be empty"):
        build(nothing, tmp_path / "out")
    unused = stories(tmp_path / "source")
    (tmp_path / "source" / "pairs.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"recipe `stories`: .* the data set would be empty"):
        build(unused, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_recipe_without_folders_says_how_to_name_them(tmp_path: Path) -> None:
    config = validate(RecipeConfig, {"name": "x", "source": {"kind": "jsonl"}}, "x.yaml")
    with pytest.raises(UserError, match="--from FOLDER"):
        build(config, tmp_path / "out")


def test_withheld_captions_are_a_set_of_their_own(tmp_path: Path) -> None:
    config = stories(tmp_path / "source", rows=31, withhold={"fraction": 0.3})
    manifests = {manifest.split: manifest for manifest in build(config, tmp_path / "out")}
    assert manifests.keys() == {"train", "val", "withheld"}
    sets = {split: ShardSet(tmp_path / "out" / split) for split in manifests}
    assert len(sets["train"]) == len(sets["withheld"]) == 30
    captions = {
        split: {c.text for i in range(len(one)) for c in one.read(i).captions}
        for split, one in sets.items()
    }
    assert captions["train"] | captions["withheld"] == {
        f"{lang} {n}" for n in range(30) for lang in ("en", "sw")
    }
    assert not captions["train"] & captions["withheld"]
    assert 5 < len(captions["withheld"]) < 30
    assert captions["val"] == {"en 30", "sw 30"}  # only training pictures are withheld from


def table(path: Path) -> list[list[str]]:
    """The cells of a TSV file without quoting."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def test_the_category_task_is_in_the_layout_of_sib200(built: Path) -> None:
    folder = built / "tasks" / "emoji_category"
    assert sorted(path.name for path in folder.iterdir()) == [
        "test.ar.tsv",
        "test.de.tsv",
        "train.en.tsv",
    ]
    for path in folder.iterdir():
        header, *rows = table(path)
        assert header == ["id", "label", "text"]
        assert len(rows) == 200
        assert {len(row) for row in rows} == {3}
    assert ["1f984", "animals_nature", "einhorn"] in table(folder / "test.de.tsv")


def test_the_entailment_task_has_two_texts_a_row(built: Path) -> None:
    folder = built / "tasks" / "emoji_entailment"
    sizes = {"train.en": 8} | {f"{s}.{lang}": n for s, n in SPLITS.items() for lang in LANGUAGES}
    tables = {path.name.removesuffix(".tsv"): table(path) for path in folder.iterdir()}
    assert {name: len(rows) - 1 for name, rows in tables.items()} == sizes
    for header, *rows in tables.values():
        assert header == ["id", "label", "premise", "hypothesis"]
        assert all(row[2].count(", ") == 2 and len(row) == 4 for row in rows)
    ids = [[row[:2] for row in tables[f"test.{lang}"]] for lang in LANGUAGES]
    assert ids[0] == ids[1] == ids[2]


def test_the_word_lists_stand_beside_the_tasks(built: Path) -> None:
    folder = built / "words"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.tsv")}
    assert found == {"neighbours.tsv", "dictionaries/en-de.tsv", "dictionaries/en-ar.tsv"}
    assert table(folder / "neighbours.tsv")[0] == ["word", "neighbours"]
    header, *rows = table(folder / "dictionaries/en-de.tsv")
    assert header == ["en", "translation"]
    assert ["spider", "spinne"] in rows
