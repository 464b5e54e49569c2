"""Building in parallel: the same bytes from any number of processes, after any stop; no row lost unnamed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image

from mmalign.core.commit import exclusive
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build, merge
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards import pack
from mmalign.data.shards.reader import ShardSet

ROWS = 23


def write_source(folder: Path, rows: int = ROWS) -> list[dict[str, Any]]:
    """Images in a jsonl folder; every fifth one is of the split `val`."""
    folder.mkdir()
    lines = []
    for number in range(rows):
        (folder / f"{number}.png").write_bytes(make_image(number, size=24))
        captions = [{"lang": lang, "text": f"{lang} {number}"} for lang in ("en", "sw")]
        split = "val" if number % 5 == 4 else "train"
        lines.append(
            {"id": f"p{number}", "image": f"{number}.png", "captions": captions, "split": split}
        )
    write_lines(folder, lines)
    return lines


def write_lines(folder: Path, lines: list[Any]) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "pairs.jsonl").write_text(text)


def recipe(folder: Path, **fields: Any) -> RecipeConfig:
    source = {"kind": "jsonl", "folders": [str(folder)]}
    tree = {"name": "stories", "samples_per_shard": 4, "source": source, **fields}
    return validate(RecipeConfig, tree, "x.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refusals(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(folder: Path) -> list[str]:
    return ShardSet(folder).keys


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    lines = write_source(tmp_path / "source")
    write_lines(tmp_path / "source", ["{", *lines[:9], "[]", *lines[9:]])
    (tmp_path / "source" / "14.png").write_bytes(make_image(14)[:40])
    config = recipe(tmp_path / "source", max_bad_fraction=0.2, withhold={"fraction": 0.3})
    built = []
    for processes in (1, 3):
        out = tmp_path / f"by {processes}"
        build(config, out, processes=processes)
        built.append(contents(out))
    assert built[0] == built[1]
    expected = {"train/00004.tar", "val/00000.tar", "withheld/00000.tar", "refused.jsonl"}
    assert expected < built[0].keys()
    assert [path.name for path in tmp_path.glob("*.building")] == []


KILLED = """
import sys, time
from pathlib import Path
from mmalign.core.config import load_config
from mmalign.data import recipe
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import File
read = File.read
def slowly(self):
    time.sleep(0.1)
    return read(self)
File.read = slowly
config = load_config(RecipeConfig, Path(sys.argv[1]))
recipe.build(config, Path(sys.argv[2]), processes=2)
"""


def workers_of(process: int) -> list[int]:
    """The processes that a process has started, where Linux tells."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in listed.read_text().split()] if listed.is_file() else []


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_build_that_is_killed_continues_after_the_last_finished_shard(tmp_path: Path) -> None:
    write_source(tmp_path / "source", rows=40)
    config = recipe(tmp_path / "source")
    (tmp_path / "recipe.yaml").write_text(config.model_dump_json())
    work = tmp_path / "out.building"
    arguments = [str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
    while process.poll() is None and len(list((work / ".build").glob("*.json"))) < 3:
        time.sleep(0.005)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # The workers end with it. A loaded machine may need seconds for that.
    deadline = time.monotonic() + 60
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "the workers outlive the build"
        time.sleep(0.01)
    finished = [path.stem for path in (work / ".build").glob("*.json")]
    assert 3 <= len(finished) < 10
    assert not (tmp_path / "out").exists()
    inodes = {
        name: (work / name.replace("-", "/")).with_suffix(".tar").stat().st_ino for name in finished
    }
    (work / "train" / "00007.tar").write_text("a part of a shard")

    build(config, tmp_path / "out", processes=3)
    build(config, tmp_path / "in one go", processes=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "in one go")
    for name, inode in inodes.items():
        path = (tmp_path / "out" / name.replace("-", "/")).with_suffix(".tar")
        assert path.stat().st_ino == inode  # it was not written again
    assert not work.exists()


def stop_midway(config: RecipeConfig, out: Path) -> None:
    """A build that stops at an invalid image, which is then fixed."""
    picture = Path(config.source.folders[0]) / "22.png"  # type: ignore[union-attr]
    valid, stat = picture.read_bytes(), picture.stat()
    picture.write_text("no image")
    with pytest.raises(UserError, match=r"22\.png does not decode"):
        build(config.model_copy(update={"max_bad_fraction": 0.0}), out)
    picture.write_bytes(valid)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_changed_since_the_stop_is_made_again(tmp_path: Path) -> None:
    lines = write_source(tmp_path / "source")
    config = recipe(tmp_path / "source")
    stop_midway(config, tmp_path / "out")
    (tmp_path / "source" / "0.png").write_bytes(make_image(77, size=24))
    write_lines(tmp_path / "source", [line for line in lines if line["split"] == "train"])
    build(config, tmp_path / "out")
    build(config, tmp_path / "new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")
    assert ShardSet(tmp_path / "out" / "train").read(0).image == make_image(77, size=24)
    assert not (tmp_path / "out" / "val").exists()
    other = recipe(tmp_path / "source", samples_per_shard=5)  # uses no shard of the first one
    stop_midway(config, tmp_path / "b")
    build(other, tmp_path / "b")
    build(other, tmp_path / "c")
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lines = write_source(source)
    write_lines(source, ["not json", *lines, {**lines[0], "id": "x", "image": "none.png"}])
    (source / "6.png").write_text("no picture")
    out = tmp_path / "out"
    train, val = build(recipe(source, max_bad_fraction=0.2), out)
    assert train.samples + val.samples == ROWS - 1
    assert "p6" not in keys(out / "train")
    assert train.refused == {
        "00000.tar": {"json": 1},
        "00001.tar": {"not an image": 1},
        "00005.tar": {"missing": 1},
    }
    named = refusals(out / "refused.jsonl")
    assert [line["reason"] for line in named] == ["json", "not an image", "missing"]
    assert named[0]["what"].startswith(f"{source}/pairs.jsonl, line 1: not valid JSON (")
    assert named[1]["what"].startswith(f"{source}/pairs.jsonl, line 8: the image {source}/6.png")
    assert (named[2]["split"], named[2]["shard"]) == ("train", "00005.tar")
    manifests = build(recipe(source, max_bad_fraction=0.5), out)  # the limit changes no byte
    assert {manifest.split for manifest in manifests} == {"train", "val"}


def test_too_many_bad_rows_stop_the_build_and_it_says_where(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lines = write_source(source)
    write_lines(source, [*lines, "{", "{"])
    with pytest.raises(UserError) as caught:
        build(recipe(source), tmp_path / "out")
    told = str(caught.value)
    start = "recipe `stories`: 2 of 25 rows cannot be used (json: 2), over `max_bad_fraction` 0.05;"
    assert told.startswith(f"{start} the first is {source}/pairs.jsonl, line 24: not valid JSON (")
    assert told.endswith(f"{tmp_path}/out.building/refused.jsonl lists them")
    assert len(refusals(tmp_path / "out.building" / "refused.jsonl")) == 2
    assert not (tmp_path / "out").exists()
    build(recipe(source, max_bad_fraction=0.08), tmp_path / "out")


def test_a_shard_of_bad_rows_alone_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lines = write_source(source, rows=4)
    write_lines(source, [*lines[:2], "{", "{", *lines[2:]])
    (train,) = build(recipe(source, samples_per_shard=2, max_bad_fraction=0.5), tmp_path / "out")
    assert [(shard.file, shard.samples) for shard in train.shards] == [
        ("00000.tar", 2),
        ("00002.tar", 2),
    ]
    assert train.refused == {"00001.tar": {"json": 2}}
    assert keys(tmp_path / "out" / "train") == ["p0", "p1", "p2", "p3"]


def test_bad_rows_alone_are_no_data_set(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    write_lines(tmp_path / "source", ["{"] * 9)
    with pytest.raises(UserError, match="9 of 9 rows cannot be used"):
        build(recipe(tmp_path / "source"), tmp_path / "out")
    told = r"none of 9 rows of the source can be used \(json: 9\), the data set would be empty"
    with pytest.raises(UserError, match=told):
        build(recipe(tmp_path / "source", max_bad_fraction=1), tmp_path / "out")


def test_a_folder_that_is_not_of_a_build_is_left_alone(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    (tmp_path / "out.building").mkdir()
    (tmp_path / "out.building" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out\.building: is not of a build; move it away"):
        build(recipe(tmp_path / "source"), tmp_path / "out")
    assert contents(tmp_path / "out.building") == {"notes.txt": b"mine"}


def test_two_builds_do_not_write_to_one_place(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    config = recipe(tmp_path / "source")
    stop_midway(config, tmp_path / "out")
    held = exclusive(tmp_path / "out.building" / ".build")
    with held, pytest.raises(UserError, match=r"out\.building/\.build: in use by process \d+ on "):
        build(config, tmp_path / "out")
    build(config, tmp_path / "out")


def keep_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS: what a process has open and deletes stays in the folder under another name."""
    unlink = os.unlink

    def rename_locks(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(path).name == ".lock" and dir_fd is not None:
            os.rename(path, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", rename_locks)


def test_a_build_is_complete_where_open_files_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source")
    config = recipe(tmp_path / "source")
    build(config, tmp_path / "usual", processes=1)
    keep_open_files(monkeypatch)
    build(config, tmp_path / "out", processes=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


def test_a_build_that_ends_deletes_no_shard_when_another_job_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source")
    config = recipe(tmp_path / "source")
    build(config, tmp_path / "usual", processes=1)

    def fail(folder: Path, target: Path) -> None:
        (folder / ".build" / "part-0").mkdir(parents=True)  # of another job
        raise OSError("no space")

    monkeypatch.setattr("mmalign.data.recipe.replace_folder", fail)
    with pytest.raises(OSError, match="no space"):
        build(config, tmp_path / "out", processes=1)
    shards = sorted(path.name for path in (tmp_path / "usual").rglob("*.tar"))
    assert sorted(path.name for path in (tmp_path / "out.building").rglob("*.tar")) == shards


def test_a_part_may_start_while_another_makes_the_folder(tmp_path: Path) -> None:
    write_source(tmp_path / "in")
    (tmp_path / "out.building").mkdir()
    assert build(recipe(tmp_path / "in"), tmp_path / "out", processes=1, part=(0, 2)) == []


def test_parts_of_several_jobs_are_the_data_set_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "in")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(recipe(tmp_path / "in"), whole, processes=1)
    for number in (2, 0, 1):
        assert build(recipe(tmp_path / "in"), parts, processes=1, part=(number, 3)) == []
    assert not parts.exists()
    with (
        exclusive(tmp_path / "parts.building" / ".build" / "part-1"),
        pytest.raises(UserError, match="in use by process"),
    ):
        build(recipe(tmp_path / "in"), parts, processes=1)
    with pytest.raises(UserError, match="is of another recipe or no build; delete it"):
        build(recipe(tmp_path / "in", name="other"), parts, processes=1, part=(0, 3))
    shutil.copytree(tmp_path / "parts.building", tmp_path / "again.building")
    monkeypatch.setattr(pack, "write_pairs", None)  # nothing is packed again
    build(recipe(tmp_path / "in"), tmp_path / "again", processes=1)
    assert contents(tmp_path / "again") == contents(whole)
    shutil.rmtree(tmp_path / "in")  # merging does not read the source
    merge(parts)
    assert contents(parts) == contents(whole)
    assert not (tmp_path / "parts.building").exists()


def test_parts_that_do_not_fit_are_not_merged(tmp_path: Path) -> None:
    lines = write_source(tmp_path / "in")
    out, state = tmp_path / "out", tmp_path / "out.building" / ".build"
    with pytest.raises(UserError, match="no part is done"):
        merge(out)
    for number in (0, 2):
        build(recipe(tmp_path / "in"), out, processes=1, part=(number, 3))
    with pytest.raises(UserError, match="1 of 3 parts are not done; run `--part 1/3`"):
        merge(out)
    write_lines(tmp_path / "in", lines[1:])  # every row is in another place now
    build(recipe(tmp_path / "in"), out, processes=1, part=(1, 3))
    with pytest.raises(UserError, match="parts 0/3 and 1/3 are of different sources or options"):
        merge(out)
    write_lines(tmp_path / "in", lines)
    build(recipe(tmp_path / "in"), out, processes=1, part=(1, 3))
    report = json.loads((state / "train-00003.json").read_text())
    (tmp_path / "out.building" / "train" / report["file"]).write_bytes(b"")
    with pytest.raises(UserError, match="shard 3 of `train` is missing or incomplete"):
        merge(out)
    # Another number of parts finds what is there and makes what is not.
    for number in range(2):
        build(recipe(tmp_path / "in"), out, processes=1, part=(number, 2))
    merge(out)
    build(recipe(tmp_path / "in"), tmp_path / "whole", processes=1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("id", "a\ud800", "not UTF-8"),
        ("id", "a\x01b", "row"),
        ("id", "k" * 2000, "name too long"),
        ("license", "\udcff", "not UTF-8"),
        ("attribution", "by \ud83d", "not UTF-8"),
        ("split", "tr\ud800in", "split"),
        ("captions", [{"lang": "e\ud800", "text": "x"}], "not UTF-8"),
        ("captions", [{"lang": "en", "text": "\ud800"}], "not UTF-8"),
    ],
)
def test_texts_without_bytes_are_refused_and_counted(
    tmp_path: Path, field: str, value: Any, reason: str
) -> None:
    lines = write_source(tmp_path / "source")
    lines[3][field] = value
    write_lines(tmp_path / "source", lines)
    manifests = build(recipe(tmp_path / "source", max_bad_fraction=1), tmp_path / "out")
    assert sum(manifest.samples for manifest in manifests) == ROWS - 1
    (refused,) = refusals(tmp_path / "out" / "refused.jsonl")
    assert refused["reason"] == reason
    assert "pairs.jsonl, line 4" in refused["what"]
    refused["what"].encode()
