"""Shards: what is written is what is read, byte for byte, by us and by webdataset."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset
from shard_sets import make_pair, write_set

from mmalign.core.batch import Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.folder import read_file
from mmalign.data.shards.manifest import MANIFEST, load_manifest, read_manifest
from mmalign.data.shards.reader import ShardSet


def make_pairs(count: int) -> list[Pair]:
    """Pictures in three formats, one or two captions each; four in a row are one picture."""
    return [
        make_pair(i, ("en", "sw")[: 1 + i % 2], picture=f"k{i - i % 4:03d}") for i in range(count)
    ]


def test_written_pairs_are_read_back(tmp_path: Path) -> None:
    pairs = make_pairs(10)
    shards = ShardSet(write_set(tmp_path / "a", pairs))
    assert [shards.read(i) for i in range(len(shards))] == pairs
    assert shards.manifest.samples == 10
    tree = json.loads(read_file(shards.folder, MANIFEST))
    assert tree["licenses"] == {"CC0-1.0": 10}
    assert shards.manifest.languages == {"en": 10, "sw": 5}
    assert [s.samples for s in shards.manifest.shards] == [4, 4, 2]
    assert shards.picture_ids[1] == shards.picture_ids[0] != shards.picture_ids[4]


def test_few_attributions_are_counted_in_the_manifest_and_many_are_not(tmp_path: Path) -> None:
    by_one = [replace(pair, attribution="drawn by one") for pair in make_pairs(6)]
    each = [replace(pair, attribution=f"author {i}") for i, pair in enumerate(make_pairs(102))]
    for name, pairs, size, expected in (
        ("one", [*by_one, make_pairs(7)[6]], 4, {"drawn by one": 6}),
        ("none", make_pairs(2), 4, None),
        ("many", each, 50, None),  # more than 100 over all shards
        ("crowd", each, 101, None),  # and in one of them
    ):
        folder = write_set(tmp_path / name, pairs, size)
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        assert tree.get("attributions") == expected, name


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_set(tmp_path / "a", make_pairs(6))
    second = write_set(tmp_path / "b", make_pairs(6))
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    pairs = make_pairs(4)
    folder = write_set(tmp_path / "a", pairs)
    samples = list(webdataset.WebDataset(str(folder / "00000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [p.key for p in pairs]
    assert samples[0]["png"] == pairs[0].image
    assert samples[1]["jpg"] == pairs[1].image
    assert samples[2]["webp"] == pairs[2].image
    assert samples[3]["txt"].decode() == pairs[3].captions[0].text
    assert len(json.loads(samples[3]["json"])["captions"]) == 2
    assert json.loads((folder / "sizes.json").read_text()) == {"00000.tar": 4}


def test_a_folder_without_manifest_is_no_data_set(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", make_pairs(4))
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"no manifest\.json.*mmalign data build"):
        read_manifest(folder)
    with pytest.raises(UserError, match="no such data set"):
        read_manifest(tmp_path / "nowhere")


def test_an_empty_set_and_a_cut_shard_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data set is empty"):
        read_manifest(write_set(tmp_path / "empty", []))
    folder = write_set(tmp_path / "a", make_pairs(4))
    shard = folder / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"00000\.tar: missing or of another size"):
        read_manifest(folder)


def test_each_file_is_looked_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "a", make_pairs(10))
    seen: Counter[str] = Counter()
    real = Path.stat

    def note(self: Path, **options: Any) -> Any:
        seen[self.suffix] += 1
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", note)
    read_manifest(folder)
    assert (seen[".tar"], seen[".jsonl"]) == (3, 3)
    read_manifest(folder, check_files=False)
    assert (seen[".tar"], seen[".jsonl"]) == (3, 3)


@pytest.mark.parametrize("url", ["file:///data/x", "s3://bucket/x", "file:/x"])
def test_a_url_is_not_taken_for_a_missing_folder(url: str) -> None:
    with pytest.raises(UserError, match="is a URL, which is not read here; give a folder"):
        load_manifest(Path(url))
