"""Folders of the library `datasets`: splits, both forms of a picture, and rows that cannot be used."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.reader import ShardSet
from mmalign.data.sources import hf_dataset
from mmalign.data.sources.hf_dataset import HfDataset

CAPTIONS = {"by_language": {"en": "caption", "sw": "captions_sw"}}


def source(folder: Path, **fields: Any) -> HfDataset:
    tree = {"kind": "hf_dataset", "folders": [str(folder)], "captions": CAPTIONS, **fields}
    return validate(HfDataset, tree, "x.yaml")


def row(number: int, **fields: Any) -> dict[str, Any]:
    image = {"bytes": make_image(number), "path": None}
    texts = {"caption": f"dog {number}", "captions_sw": [f"mbwa {number}", "mbwa"]}
    return {"image": image, **texts, **fields}


def draft(folder: Path, cells: dict[str, Any], split: str | None = "test") -> LazyPair | BadRow:
    try:
        return source(folder).read_row(cells, folder, split, 7, "")
    except BadRow as bad:
        return bad


def test_a_row_becomes_a_draft(tmp_path: Path) -> None:
    found = draft(tmp_path / "set", row(1))
    assert isinstance(found, LazyPair)
    assert [(c.lang, c.text) for c in found.pair.captions] == [
        ("en", "dog 1"),
        ("sw", "mbwa 1"),
        ("sw", "mbwa"),
    ]
    assert (found.pair.key, found.pair.split, found.pair.source) == (
        "test-000000007",
        "test",
        "set",
    )
    again, other = draft(tmp_path, row(1), None), draft(tmp_path, row(2))
    assert isinstance(again, LazyPair) and isinstance(other, LazyPair)
    assert again.pair.picture == found.pair.picture != other.pair.picture  # equal bytes
    assert again.pair.split == "train"


@pytest.mark.parametrize(
    ("cells", "split", "reason"),
    [
        (row(0, caption=" ", captions_sw=None), "test", "no caption"),
        (row(0, caption=3), "test", "caption"),
        (row(0, image=None), "test", "no image"),
        (row(0, image=3), "test", "no image"),
        (row(0, image={"bytes": None, "path": "nowhere.jpg"}), "test", "missing"),
        (row(0, image={"bytes": None, "path": "a\x00.jpg"}), "test", "missing"),
        (row(0, image={"bytes": None, "path": "/dev/zero"}), "test", "missing"),
        (row(0), "a.b", "split"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, cells: dict[str, Any], split: str, reason: str
) -> None:
    bad = draft(tmp_path, cells, split)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
    assert str(bad).startswith(f"{tmp_path}, split `{split}`, row 7: ")


def test_a_picture_is_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(make_image(0))
    for image in ("0.png", {"bytes": None, "path": "0.png"}):
        found = draft(tmp_path, row(0, image=image))
        assert isinstance(found, LazyPair) and found.load().image == make_image(0)
    found = draft(tmp_path, row(0, image=make_image(0)))
    assert isinstance(found, LazyPair)
    assert found.pair.picture == hashlib.sha256(make_image(0)).hexdigest()


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    hf_dataset._open.cache_clear()
    with pytest.raises(UserError, match=r"needs the extra `recipes`; run pip install 'mmalign\["):
        list(source(tmp_path).read(seed=0))


def saved(folder: Path, split: str | None = None) -> Path:
    """Five rows, of which the last has the picture of the first."""
    datasets = pytest.importorskip("datasets")
    rows = [row(number % 4) for number in range(5)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "captions_sw": datasets.Sequence(datasets.Value("string")),
        }
    )
    made = datasets.Dataset.from_list(rows, features=features)
    if split is not None:
        made = datasets.DatasetDict({"train": made, split: made.select(range(2))})
    made.save_to_disk(str(folder))
    return folder


def test_what_save_to_disk_wrote_is_built(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", "validation")
    tree = {"name": "hf", "samples_per_shard": 2, "source": source(folder).model_dump()}
    config = validate(RecipeConfig, tree, "x.yaml")
    manifests = build(config, tmp_path / "out", processes=2)
    assert {m.split: m.samples for m in manifests} == {"train": 5, "validation": 2}
    train = ShardSet(tmp_path / "out" / "train")
    assert train.read(3).image == make_image(3)
    assert train.read(4).picture == train.read(0).picture != train.read(1).picture
    assert manifests[0].languages == {"sw": 10, "en": 5}


def test_a_folder_without_splits_is_for_training(tmp_path: Path) -> None:
    drafts = list(source(saved(tmp_path / "set")).read(seed=0))
    assert [d.pair.split for d in drafts if isinstance(d, LazyPair)] == ["train"] * 5


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    with pytest.raises(UserError, match="has no column `picture`; name one of image, caption"):
        list(source(folder, image="picture").read(seed=0))
    with pytest.raises(UserError, match="is no folder of `save_to_disk`"):
        list(source(tmp_path).read(seed=0))


def test_a_text_that_is_not_utf8_is_one_refused_row(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    # In a column that is read, and in one that is not.
    raw = {"caption": [b"dog 0", b"caf\xe9", b"dog 2", b"dog 3"], "note": [b"", b"", b"\xe9", b""]}
    for rows in (slice(4), slice(1, 2)):
        columns = {name: pyarrow.array(cells[rows]).view("string") for name, cells in raw.items()}
        columns["image"] = pyarrow.array([make_image(n) for n in range(4)][rows])
        made = datasets.Dataset(pyarrow.table(columns))
        folder = tmp_path / f"set-{len(made)}"
        made.save_to_disk(str(folder))
        config = source(folder, captions={"by_language": {"en": "caption"}})
        found = list(config.read(seed=0))
        bad = [one for one in found if isinstance(one, BadRow)]
        assert [one.reason for one in bad] == ["not UTF-8"]
        assert f"row {len(made) // 4}: is not UTF-8" in str(bad[0])
        loaded = [one.load() for one in found if isinstance(one, LazyPair)]
        assert [one.captions[0].text for one in loaded] == ["dog 0", "dog 2", "dog 3"][
            : len(loaded)
        ]
        assert len(loaded) == len(made) - 1
