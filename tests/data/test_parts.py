"""What jobs with `--part` make and `mmalign data merge` joins is the work of one process, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from data.shards.test_index import RULES, contents, write_tars
from pyarrow import parquet
from shard_sets import make_pair, make_set, write_set
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.select import select as module
from mmalign.data.select.describe import Options, describe
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import select
from mmalign.data.select.tables import merge_tables
from mmalign.data.shards import index as indexing
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import load_manifest
from mmalign.data.shards.reader import ShardSet


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None, done.exception
    return done.stdout


def test_parts_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = write_tars(tmp_path / "tars", 5)
    out, whole = tmp_path / "parts" / "set", tmp_path / "whole" / "set"
    index(str(tars), RULES, whole)
    for number in (1, 2, 0):
        assert index(str(tars), RULES, out, part=(number, 3)) is None
    monkeypatch.setattr(indexing, "scan_tars", None)  # no tar is looked at
    said = run("data", "merge", out)
    assert f"{out}: 15 images in 5 shards" in said
    assert contents(out) == contents(whole)
    (out / "00002.index.jsonl").unlink()
    with pytest.raises(UserError, match=r"00002\.index\.jsonl: missing, or of other rules"):
        indexing.merge(out)


def test_parts_of_a_table_are_one_table(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 21)
    tar = data / "00002.tar"
    tar.write_bytes(bytes(tar.stat().st_size))  # no sample of it can be used
    describe(data, tmp_path / "whole.parquet", Options())
    for number in range(4):
        describe(data, tmp_path / "parts" / f"{number}.parquet", Options(), (number, 4))
    run("data", "merge", tmp_path / "merged.parquet", tmp_path / "parts")
    merged, whole = ((tmp_path / f"{name}.parquet").read_bytes() for name in ("merged", "whole"))
    assert merged == whole

    parts = [str(tmp_path / "parts" / f"{number}.parquet") for number in range(4)]
    with pytest.raises(UserError, match="of 4 parts there are 0/4, 1/4, 3/4; name each part once"):
        merge_tables(tmp_path / "x.parquet", [*parts[:2], parts[3]])
    with pytest.raises(UserError, match="0/4, 1/4, 1/4, 2/4, 3/4; name each part once"):
        merge_tables(tmp_path / "x.parquet", [*parts, parts[1]])
    describe(data, tmp_path / "other.parquet", Options(near=False), (3, 4))
    with pytest.raises(UserError, match=r"other\.parquet: is of another data set or was made with"):
        merge_tables(tmp_path / "x.parquet", [*parts[:3], str(tmp_path / "other.parquet")])
    parquet.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "theirs.parquet")
    with pytest.raises(UserError, match=r"theirs\.parquet: not written by `mmalign data describe`"):
        merge_tables(tmp_path / "x.parquet", [*parts, str(tmp_path / "theirs.parquet")])
    assert not (tmp_path / "x.parquet").exists()


def choice_of(folder: Path) -> tuple[Path, SelectConfig]:
    """A set whose shards differ in languages and leaks, and rules for it."""
    pairs = [make_pair(n, ("en", "sw") if n < 12 else ("ja", "en", "de")) for n in range(22)]
    data = write_set(folder / "data", pairs)
    write_set(folder / "test", [pairs[2], pairs[14]])
    scores = {f"k{n:03d}": n % 7 / 7 for n in range(22) if n != 5}
    table = pyarrow.table({"key": list(scores), "score": list(scores.values())})
    parquet.write_table(table, folder / "scores.parquet")
    tree: dict[str, Any] = {
        "tables": [str(folder / "scores.parquet")],
        "columns": {"score": {"min": 0.2, "max": 0.8}, "characters": {"min": 8}},
        "languages": ["en", "ja"],
        "leaks": {"against": [str(folder / "test")], "images": "near", "texts": True},
    }
    return data, validate(SelectConfig, tree, "rules")


@pytest.mark.parametrize("count", [2, 7])  # of more parts than shards, the last is empty
def test_parts_of_a_choice_are_the_choice(tmp_path: Path, count: int) -> None:
    data, config = choice_of(tmp_path)
    whole = select(str(data), tmp_path / "whole", config)
    out = tmp_path / "parts"
    for number in reversed(range(count)):
        assert not (out / "manifest.json").exists()
        assert select(str(data), out, config, part=(number, count)) is None
    assert whole is not None and len(whole.removed["samples"]) > 3
    assert "00001.index.jsonl" in contents(out)
    said = run("data", "merge", out)
    assert contents(out) == contents(tmp_path / "whole")
    assert list(json.loads((out / "manifest.json").read_text())["removed"]["samples"]) == list(
        whole.removed["samples"]
    )
    assert f"{out}: {whole.manifest.samples} of 22 samples" in said
    assert ShardSet(out).keys == ShardSet(tmp_path / "whole").keys


def test_a_choice_in_parts_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    data, config = choice_of(tmp_path)
    for rule in ({"duplicates": {"texts": True}}, {"balance": {"captions_per_language": 2}}):
        rules = validate(SelectConfig, rule, "rules")
        with pytest.raises(
            UserError, match=f"the rule `{next(iter(rule))}` compares samples of all"
        ):
            select(str(data), tmp_path / "out", rules, part=(0, 2))
    select(str(data), tmp_path / "out", config, part=(0, 2))
    other = config.model_copy(update={"languages": ("en",)})
    select(str(data), tmp_path / "out", other, part=(1, 2))
    with pytest.raises(UserError, match="are of different sources or options"):
        module.merge(tmp_path / "out")
    none = validate(SelectConfig, {"columns": {"characters": {"min": 1000}}}, "rules")
    for number in range(2):
        select(str(data), tmp_path / "out", none, part=(number, 2))
    with pytest.raises(UserError, match="the rules leave no sample; `characters < 1000"):
        module.merge(tmp_path / "out")
    assert load_manifest(data).samples == 22
    done = CliRunner().invoke(app, ["data", "merge", str(tmp_path / "none")])
    assert "none: no parts of `data build`, `index` or `select` there" in str(done.exception)
