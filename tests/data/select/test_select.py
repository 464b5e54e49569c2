"""Sets that are chosen: by tables and rules, with reasons, and read like any other set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import csv, parquet
from shard_sets import make_pair, make_set, write_set

from mmalign.core.config import load_config, validate
from mmalign.core.errors import UserError
from mmalign.data.select.describe import Options, describe
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import Selected, select
from mmalign.data.select.tables import merge_tables
from mmalign.data.shards.manifest import load_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stats import survey
from mmalign.data.stats.summary import summarise
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.verify import verify

RULES = Path(__file__).parents[3] / "data_recipes" / "rules"


def choose(data: Path, out: Path, **rules: Any) -> Selected:
    return select(str(data), out, validate(SelectConfig, rules, "rules"))


def keys(folder: Path) -> list[str]:
    shard_set = ShardSet(folder)
    return [shard_set.read(i).key for i in range(len(shard_set))]


def write_table(path: Path, **columns: Any) -> str:
    table = pyarrow.table(columns)
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_by_key_chooses_samples_and_no_tar_is_written(tmp_path: Path, suffix: str) -> None:
    data = make_set(tmp_path / "data", 10)
    before = {path: path.read_bytes() for path in data.iterdir()}
    scores = {
        f"k{i:03d}": i / 10 for i in reversed(range(9))
    }  # not the order of the set; one is missing
    table = write_table(
        tmp_path / f"scores.{suffix}",
        key=list(scores),
        clip_score=list(scores.values()),
        source=["web" if i % 2 else "book" for i in range(9)],
    )
    found = choose(
        data,
        tmp_path / "out",
        tables=[table],
        columns={"clip_score": {"min": 0.2, "max": 0.7}, "source": {"in": ["web"]}},
    )
    assert keys(tmp_path / "out") == ["k003", "k005", "k007"]
    assert found.removed["samples"] == {
        "clip_score < 0.2": 2,
        "clip_score > 0.7": 1,
        "source is another": 3,
        f"not in scores.{suffix}": 1,
    }
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    assert list((tmp_path / "out").glob("*.tar")) == []
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert tree["removed"] == found.removed
    assert tree["selected_from"]["manifest_sha256"] == load_manifest(data).sha256
    assert tree["recipe"]["select"]["columns"]["clip_score"] == {"min": 0.2, "max": 0.7}


def test_a_chosen_set_is_verified_counted_trained_on_and_chosen_from(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 20)
    choose(data, tmp_path / "a", languages=["en", "sw"])
    choose(tmp_path / "a", tmp_path / "b", languages=["sw"])
    report = verify(tmp_path / "b", decode_images=True)
    assert report.problems == () and report.samples == 13
    tree = summarise(survey.survey(tmp_path / "b", survey.Options()))
    assert tree["languages"].keys() == {"sw"} and tree["captions"] == 13
    order = GlobalOrder([ShardSet(tmp_path / "b")], DataConfig(train=("b",)), 0)
    assert sorted(order.order(0).tolist()) == list(range(13))
    # A sample of four captions (en, en, ja, sw) has its Swahili one, and not the one at its place.
    pairs = [ShardSet(tmp_path / "b").read(i) for i in range(13)]
    assert all([c.lang for c in pair.captions] == ["sw"] for pair in pairs)
    assert all(c.text.startswith("sw ") for pair in pairs for c in pair.captions)


def test_captions_are_chosen_by_a_value_for_each(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", [make_pair(i, ("en", "sw", "ja")) for i in range(6)])
    scores = [[0.9, 0.1, None], [0.1, 0.1, 0.1], [0.9, 0.9, 0.9], [], None, [0.1, 0.2, 0.8]]
    scores[3] = [0.1, 0.8, 0.9]
    table = write_table(
        tmp_path / "t.parquet", key=[f"k{i:03d}" for i in range(6)], clip_score=scores
    )
    scores[5] = [0.1, 0.2]
    table = write_table(
        tmp_path / "t.parquet", key=[f"k{i:03d}" for i in range(6)], clip_score=scores
    )
    with pytest.raises(UserError, match="`clip_score` has 2 values for a sample of 3 captions"):
        choose(data, tmp_path / "out", tables=[table], columns={"clip_score": {"min": 0.5}})
    # A row without a list, as of a sample that could not be scored, is a missing value.
    scores[5] = [0.1, 0.2, 0.8]
    write_table(tmp_path / "t.parquet", key=[f"k{i:03d}" for i in range(6)], clip_score=scores)
    rules: dict[str, Any] = {"tables": [table], "columns": {"clip_score": {"min": 0.5}}}
    without = choose(data, tmp_path / "without", **rules)
    assert without.removed["samples"] == {"clip_score < 0.5": 1, "clip_score is missing": 1}
    choose(data, tmp_path / "with", **rules, missing="keep")
    assert "k004" in keys(tmp_path / "with") and "k004" not in keys(tmp_path / "without")
    scores[4] = [0.1, 0.7, 0.1]
    write_table(tmp_path / "t.parquet", key=[f"k{i:03d}" for i in range(6)], clip_score=scores)
    found = choose(data, tmp_path / "out", tables=[table], columns={"clip_score": {"min": 0.5}})
    shard_set = ShardSet(tmp_path / "out")
    langs = {
        (p := shard_set.read(i)).key: [c.lang for c in p.captions] for i in range(len(shard_set))
    }
    assert langs == {
        "k000": ["en"],
        "k002": ["en", "sw", "ja"],
        "k003": ["sw", "ja"],
        "k004": ["sw"],
        "k005": ["ja"],
    }
    assert found.removed == {
        "samples": {"clip_score < 0.5": 1},
        "captions": {"clip_score is missing": 1, "clip_score < 0.5": 9},
    }
    kept = choose(
        data,
        tmp_path / "kept",
        tables=[table],
        columns={"clip_score": {"min": 0.5}},
        missing="keep",
    )
    assert sum(kept.manifest.languages.values()) == 9


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 3)
    nan = float("nan")
    table = write_table(
        tmp_path / "t.parquet", key=["k000", "k001", "k002"], clip_score=[0.9, nan, 0.1]
    )
    rules: dict[str, Any] = {"tables": [table], "columns": {"clip_score": {"min": 0.5}}}
    found = choose(data, tmp_path / "out", **rules)
    assert keys(tmp_path / "out") == ["k000"]
    assert found.removed["samples"] == {"clip_score < 0.5": 1, "clip_score is missing": 1}
    choose(data, tmp_path / "kept", **rules, missing="keep")
    assert keys(tmp_path / "kept") == ["k000", "k001"]


def test_all_files_of_a_table_have_its_columns(tmp_path: Path) -> None:
    data, tables = make_set(tmp_path / "data", 2), tmp_path / "tables"
    tables.mkdir()
    write_table(tables / "0.parquet", key=["k000"], clip_score=[0.9])
    write_table(tables / "1.parquet", key=["k001"], score=[0.9])
    with pytest.raises(
        UserError, match=r"1\.parquet: has no column `clip_score`; it has key, score"
    ):
        choose(data, tmp_path / "out", tables=[str(tables)], columns={"clip_score": {"min": 0.5}})


def test_parts_of_a_description_may_be_made_by_other_numbers_of_processes(tmp_path: Path) -> None:
    data, parts = make_set(tmp_path / "data", 8), []
    for number in range(2):
        parts.append(str(tmp_path / f"{number}.parquet"))
        options = Options(near=False, processes=1 + number)
        describe(data, Path(parts[-1]), options, (number, 2))
    assert merge_tables(tmp_path / "all.parquet", parts) == 8
    describe(data, tmp_path / "one.parquet", Options(near=False))
    assert (tmp_path / "all.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_repeats_within_the_set_and_of_a_test_set_are_removed(tmp_path: Path) -> None:
    pairs = [make_pair(i, ("en",)) for i in range(12)]
    pairs[3] = replace(pairs[3], image=pairs[1].image)
    pairs[5] = replace(pairs[5], captions=pairs[2].captions)
    data = write_set(tmp_path / "data", pairs)
    test = write_set(
        tmp_path / "test", [replace(pairs[i], key=f"t{i}", picture=f"t{i}") for i in (7, 9)]
    )
    found = choose(
        data,
        tmp_path / "out",
        duplicates={"images": "exact", "texts": True},
        leaks={"against": [str(test)], "images": "exact"},
    )
    assert keys(tmp_path / "out") == [f"k{i:03d}" for i in (0, 1, 2, 4, 6, 8, 10, 11)]
    assert found.removed["samples"] == {
        "leak of set/train, equal bytes": 2,
        "duplicate image, equal bytes": 1,
        "duplicate caption": 1,
    }


def test_a_copy_stays_where_the_first_one_is_removed(tmp_path: Path) -> None:
    pairs = [make_pair(i, ("en",)) for i in range(4)]
    pairs[2] = replace(pairs[2], image=pairs[1].image)
    data = write_set(tmp_path / "data", pairs)
    table = write_table(tmp_path / "t.parquet", key=["k000", "k001", "k002"], score=[1, 0, 1])
    rules = {"tables": [table], "columns": {"score": {"min": 1}}}
    choose(data, tmp_path / "out", **rules, duplicates={"images": "near"})
    assert keys(tmp_path / "out") == ["k000", "k002"]


def test_rules_on_captions_need_no_table(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 9)
    longest = max(len(c.text) for i in range(9) for c in ShardSet(data).read(i).captions)
    found = choose(data, tmp_path / "out", columns={"characters": {"max": longest - 1}})
    assert found.removed["captions"].keys() == {f"characters > {longest - 1}"}
    # The table that was made is used again, and so is one that was given.
    made = tmp_path / "out" / ".select"
    assert len(list(made.glob("*.parquet"))) == 1
    describe(data, tmp_path / "d.parquet", Options())
    choose(
        data,
        tmp_path / "other",
        tables=[str(tmp_path / "d.parquet")],
        duplicates={"images": "near"},
    )
    assert list((tmp_path / "other" / ".select").glob("*.parquet")) == []


def test_keys_of_several_shards_may_be_equal(tmp_path: Path) -> None:
    pairs = [replace(make_pair(i, ("en",)), key=f"k{i % 4}") for i in range(8)]
    data = write_set(tmp_path / "data", pairs)
    shards = ["00000.tar"] * 4 + ["00001.tar"] * 4
    columns = {"key": [p.key for p in pairs], "score": list(range(8))}
    by_key = write_table(tmp_path / "k.parquet", **columns)
    rules = {"score": {"min": 3, "max": 4}}
    with pytest.raises(UserError, match="has two rows for the sample `k0`"):
        choose(data, tmp_path / "out", tables=[by_key], columns=rules)
    by_both = write_table(tmp_path / "b.parquet", shard=shards, **columns)
    choose(data, tmp_path / "out", tables=[by_both], columns=rules)
    chosen = ShardSet(tmp_path / "out")
    assert [chosen.read(i).captions for i in range(2)] == [p.captions for p in pairs[3:5]]


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"columns": {"x": {"min": 1}}}, "columns.x: none of the tables has it"),
        ({"tables": ["no.csv"]}, "no.csv: no such table"),
        ({"columns": {"characters": {"min": 10**6}}}, "the rules leave no sample; `characters <"),
        ({"columns": {"license": {"min": 1}}}, "the bounds are not of the type of the column"),
        ({"languages": ["xx"]}, "languages: `xx` is not in the set; it has en, ja, sw"),
        ({"columns": {"characters": {}}}, "give `min`, `max` or `in`"),
    ],
)
def test_rules_that_cannot_be_applied_are_one_sentence(
    tmp_path: Path, rules: dict[str, Any], sentence: str
) -> None:
    data = make_set(tmp_path / "data", 6)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        choose(data, tmp_path / "out", **rules)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_with_another_data_set_is_not_overwritten(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 6)
    with pytest.raises(UserError, match="holds a data set of another kind"):
        choose(data, data, languages=["en"])
    choose(data, tmp_path / "out", languages=["en"])
    choose(data, tmp_path / "out", languages=["ja"])
    with pytest.raises(UserError, match="is the set that is chosen from"):
        choose(tmp_path / "out", tmp_path / "out", languages=["ja"])
    assert np.all([langs == ("ja",) for langs in ShardSet(tmp_path / "out").languages])


@pytest.mark.parametrize("path", sorted(RULES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_rules_that_come_with_mmalign_are_valid(path: Path) -> None:
    assert load_config(SelectConfig, path) != SelectConfig()
