"""The door of all sources: names that no file can hold are refused, languages have one spelling."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.sources.jsonl import Jsonl
from mmalign.data.sources.kinds import read_rows


def line(number: int, *languages: str, **fields: Any) -> dict[str, Any]:
    captions = [{"lang": lang, "text": f"{lang} {number}"} for lang in languages or ("en",)]
    return {"id": f"p{number}", "image": "0.png", "captions": captions, **fields}


def recipe(folder: Path, *lines: Any, **fields: Any) -> RecipeConfig:
    folder.mkdir(exist_ok=True)
    (folder / "0.png").write_bytes(make_image(0))
    # ASCII: json.dumps writes half of a surrogate pair as an escape.
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tree = {"name": "set", "source": {"kind": "jsonl", "folders": [str(folder)]}, **fields}
    return validate(RecipeConfig, tree, "x.yaml")


HALF, CONTROL = "half of a surrogate pair", "a control character"


@pytest.mark.parametrize(
    ("fields", "reason", "told"),
    [
        ({"id": "a\ud800"}, "not UTF-8", f"the id `a\\ud800` holds {HALF}"),
        ({"id": "a\x1b[2J"}, "row", f"the id `a\\x1b[2J` holds {CONTROL}"),
        ({"license": "a\udcff"}, "not UTF-8", f"the licence `a\\udcff` holds {HALF}"),
        ({"license": "a\x00"}, "row", f"the licence `a\\x00` holds {CONTROL}"),
        ({"attribution": {"author": "\ud83d"}}, "not UTF-8", f"`author: \\ud83d` holds {HALF}"),
        ({"image": "\udce9.png"}, "missing", "the image `\\udce9.png` is not in"),
        ({"image": "a\x00.png"}, "missing", "the image `a\\x00.png` is not in"),
        ({"split": "a\ud800"}, "split", "the split `a\\ud800` must be letters"),
        ({"same_picture_as": "\ud800"}, "row", "`same_picture_as` names `\\ud800`, which no"),
        ({"captions": [{"lang": "e\ud800", "text": "x"}]}, "not UTF-8", "the language `e\\ud800`"),
        ({"captions": [{"lang": "en", "text": "\ud800"}]}, "not UTF-8", "line 2: "),
    ],
)
def test_a_name_that_no_file_can_hold_is_one_refused_row(
    tmp_path: Path, fields: dict[str, Any], reason: str, told: str
) -> None:
    config = recipe(tmp_path / "set", line(0), line(1, **fields), max_bad_fraction=0.5)
    (manifest,) = build(config, tmp_path / "out")
    assert manifest.samples == 1
    (refused,) = (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["reason"] == reason
    assert told in json.loads(refused)["what"]
    assert refused.isprintable()


def test_an_image_whose_file_name_is_not_utf8_is_refused_and_named(tmp_path: Path) -> None:
    config = recipe(tmp_path / "set", line(0), line(1, image="caf\udce9.png"), max_bad_fraction=0.5)
    try:
        (tmp_path / "set" / "caf\udce9.png").write_bytes(make_image(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    build(config, tmp_path / "out")
    refused = json.loads((tmp_path / "out" / "refused.jsonl").read_text())
    assert refused["reason"] == "not UTF-8"
    assert "caf\\udce9.png` holds half" in refused["what"]


def test_a_recipe_and_its_folders_hold_no_such_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe: `name` holds half of a surrogate pair"):
        build(recipe(tmp_path / "set", line(0), name="a\ud800"), tmp_path / "out")
    for name in ("caf\udce9", "a\nb"):
        source = Jsonl(kind="jsonl", folders=(os.fspath(tmp_path / name),))
        with pytest.raises(UserError, match=r"the name holds .*; rename the folder") as caught:
            list(source.read(0))
        assert str(caught.value).isprintable()


def test_a_language_has_one_spelling_and_changes_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(0, "EN", "iw", "zh_CN"), line(1, "en", "he", "zh-hans"), line(2, "EN")]
    fields = {"withhold": {"fraction": 0.01, "variants": [["IW", "yi"]]}}
    manifests = build(recipe(tmp_path / "set", *lines, **fields), tmp_path / "out")
    assert manifests[0].languages == {"en": 3, "he": 2, "zh-CN": 1, "zh-Hans": 1}
    tree = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())
    assert tree["respelled"] == {"EN": 2, "iw": 1, "zh-hans": 1, "zh_CN": 1}
    assert "`EN` -> `en`: 2" in capsys.readouterr().out


def test_a_code_that_is_none_is_refused(tmp_path: Path) -> None:
    respelled = Counter[str]()
    source = recipe(tmp_path / "set", line(0, "e"), line(1, "EN")).source
    first, second = read_rows(source, 0, respelled)
    assert isinstance(first, LazyPair) and isinstance(second, LazyPair)
    with pytest.raises(BadRow, match="`e` is no BCP-47 language code"):
        first.load()
    assert second.pair.captions[0].lang == "en"
    assert +respelled == {"EN": 1}
