"""`mmalign data verify`: whole sets pass, and what is damaged is named."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from frozen_towers import frozen_tower, make_set_to_embed
from hostile_shards import samples, tar_of
from shard_sets import make_image, make_set
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.commit import warning_of
from mmalign.data.shards.index import index
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.shards.scan import Rules
from mmalign.data.verify import describe, verify
from mmalign.evaluation.feature_cache import write_features


def problems(folder: Path, decode: bool = False) -> list[tuple[str, str, str | None]]:
    found = verify(folder, decode).problems
    return [(p["file"], p["reason"], p.get("key")) for p in found]


def test_a_valid_set_passes(tmp_path: Path) -> None:
    report = verify(make_set(tmp_path / "set", 10), True, processes=2)
    counts = {"whole": True, "shards": 3, "samples": 10}
    assert report.to_json() == {**counts, "features": {}, "problems": []}


def test_untrusted_names_are_printed_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\nset: complete, 9 samples\x1b[2J\x7f\x9b31m"
    sentences = [
        describe({"file": name, "reason": "checksum", "key": name, "detail": name}),
        str(UnusableSample("checksum", name, name, name)),
    ]
    with warning_of(name):
        raise OSError(errno.EIO, "no\x9b")
    sentences.append(capsys.readouterr().err.removesuffix("\n"))
    for sentence in sentences:
        assert sentence.isprintable() and "\\x9b31m" in sentence, sentence


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 16)
    picture = ShardSet(folder).read(1).image
    first = folder / "00000.tar"
    first.write_bytes(first.read_bytes().replace(picture, bytes(len(picture))))
    second = folder / "00001.tar"
    second.write_bytes(second.read_bytes()[:3000])
    (folder / "00002.tar").unlink()
    rows = folder / "00003.index.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"k012", b"k013"))
    (folder / "sizes.json").write_text("{}")
    found = problems(folder)
    assert ("sizes.json", "size", None) in found
    assert [p for p in found if p[0] == "00000.tar"] == [
        ("00000.tar", "sha256", None),
        ("00000.tar", "checksum", "k001"),
    ]
    assert ("00001.tar", "size", None) in found
    assert ("00001.tar", "cut off", "k007") in found
    assert [p for p in found if p[0] == "00002.tar"] == [("00002.tar", "missing", None)]
    assert [p for p in found if p[0].startswith("00003")] == [
        ("00003.index.jsonl", "no index", None)
    ]


def test_a_broken_header_is_named_by_its_bytes(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 4)
    shard = folder / "00000.tar"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    damage = [p for p in verify(folder).problems if p["reason"] == "bad header"]
    assert [(p["file"], p["start"]) for p in damage] == [("00000.tar", 0)]


def test_decoding_finds_what_the_header_hides(tmp_path: Path) -> None:
    picture = make_image(0, "JPEG", 64)
    cut = picture[:-50]
    (tmp_path / "a.tar").write_bytes(tar_of([("k.jpg", cut), ("k.txt", b"a dog"), *samples(1)]))
    index(str(tmp_path), Rules("txt", "en"))
    assert problems(tmp_path) == []
    assert problems(tmp_path, decode=True) == [("a.tar", "does not decode", "k")]


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 8)
    runner = CliRunner()
    whole = runner.invoke(app, ["data", "verify", str(folder)])
    assert (whole.exit_code, "complete, 8 samples in 2 shards" in whole.output) == (
        0,
        True,
    )
    picture = ShardSet(folder).read(5).image
    shard = folder / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(picture, bytes(len(picture))))
    out = tmp_path / "report.json"
    damaged = runner.invoke(app, ["data", "verify", str(folder), "--json", str(out)])
    assert damaged.exit_code == 1
    assert "00001.tar, sample `k005`: a member's bytes are not those" in damaged.output
    assert json.loads(out.read_text())["problems"][1]["key"] == "k005"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with features of one tower."""
    data = make_set_to_embed(tmp_path_factory.mktemp("embedded") / "set", broken=False)
    write_features(frozen_tower(), data, workers=0)
    return data


def test_features_beside_the_shards_are_verified(embedded: Path, tmp_path: Path) -> None:
    data = shutil.copytree(embedded, tmp_path / "set")
    (features,) = (data / "features").iterdir()
    report = verify(data)
    assert (report.problems, report.features) == ((), {features.name: "whole"})
    rows, record = features / "00001.npy", features / "00002.json"
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    record.unlink()
    shutil.copytree(features, features.with_name("begun"))
    (features.with_name("begun") / "features.json").unlink()
    shutil.copytree(features, features.with_name("broken"))
    (features.with_name("broken") / "features.json").write_text("{}")
    assert verify(data).features == {
        **{"begun": "not finished", "broken": "damaged", features.name: "damaged"},
    }
    place = f"features/{features.name}"
    assert {("features/begun/features.json", "not finished", None)} < set(problems(data))
    assert [p for p in problems(data) if p[0].startswith(place)] == [
        (f"{place}/00001.npy", "sha256", None),
        (f"{place}/00002.json", "missing", None),
    ]
    ran = CliRunner().invoke(app, ["data", "verify", str(data)])
    assert (ran.exit_code, f"{place}/00002.json: missing" in ran.output) == (1, True)


def test_features_of_other_shards_are_not_called_damaged(embedded: Path, tmp_path: Path) -> None:
    (features,) = (embedded / "features").iterdir()
    other = make_set(tmp_path / "other", 8)
    shutil.copytree(features.parent, other / "features")
    report = verify(other)
    assert report.features == {features.name: "of other shards"}
    assert [p["reason"] for p in report.problems] == ["of other shards"]
    ran = CliRunner().invoke(app, ["data", "verify", str(other)])
    assert (ran.exit_code, "features.json: of other shards" in ran.output) == (1, True)
