"""`mmalign data stats`: what is counted is what was written, whoever wrote it and however it is read."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_shards import sample, samples, tar_of
from PIL import Image
from shard_sets import make_image, make_pair, make_set, write_set
from tiny import tiny_tokenizer
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.errors import UserError
from mmalign.data.shards.index import index
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
from mmalign.data.stats.chart import check_target, draw
from mmalign.data.stats.summary import lines, quantiles, summarise
from mmalign.data.stats.survey import Options, survey


def stats(folder: Path, options: Options | None = None) -> dict[str, Any]:
    return summarise(survey(folder, options or Options()))


def test_languages_captions_and_files_are_counted(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 9)
    tree = stats(folder)
    assert (tree["samples"], tree["pictures"], tree["captions"]) == (9, 9, 21)
    assert {lang: facts["captions"] for lang, facts in tree["languages"].items()} == {
        "en": 12,
        "sw": 6,
        "ja": 3,
    }
    assert tree["languages"]["en"]["samples"] == 9
    assert tree["languages"]["sw"]["name"] == "Swahili"
    assert tree["captions_per_picture"] == {"p5": 1, "p50": 2, "p95": 4, "max": 4, "mean": 7 / 3}
    assert tree["languages_per_sample"]["max"] == 3
    assert tree["formats"] == {"PNG": 3, "JPEG": 3, "WEBP": 3}
    assert tree["sizes"] == [[16, 16, 9]]
    assert tree["shapes"] == {"landscape": 0, "portrait": 0, "square": 9}
    assert tree["sources"] == {"test": 9}
    assert tree["licenses"] == {"CC0-1.0": 9}
    pictures = [len(ShardSet(folder).read(i).image) for i in range(9)]
    assert tree["bytes"]["pictures"] == sum(pictures)
    assert tree["picture_bytes"]["max"] == max(pictures)
    assert tree["unusable"] == {"samples": 0, "reasons": {}, "named": []}


def test_lengths_are_those_of_the_captions_and_of_the_tokenizer(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 8)
    tokenizer = tmp_path / "tokenizer"
    tiny_tokenizer().save(tokenizer)
    tree = stats(folder, Options(tokenizer=str(tokenizer)))
    shards = ShardSet(folder)
    texts = [c.text for i in range(8) for c in shards.read(i).captions if c.lang == "sw"]
    facts = tree["languages"]["sw"]
    assert facts["characters"] == quantiles([len(text) for text in texts])
    ids = tiny_tokenizer().inner(texts)["input_ids"]
    assert facts["tokens"] == quantiles([len(one) for one in ids])


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(range(1, 101)) == {"p5": 5, "p50": 50, "p95": 95, "max": 100}
    assert quantiles([3, 9], [98, 2]) == {"p5": 3, "p50": 3, "p95": 3, "max": 9}


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 14)
    assert stats(folder, Options(processes=3)) == stats(folder)


def test_some_shards_are_drawn_by_the_seed(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 40)
    tree = stats(folder, Options(shards=2, seed=1))
    assert tree["shards"] == {"read": 2, "of": 10, "seed": 1}
    assert tree["samples"] == 8
    assert tree == stats(folder, Options(shards=2, seed=1))
    draws = [survey(folder, Options(shards=2, seed=s)).manifest.shards for s in range(5)]
    assert any(drawn != draws[0] for drawn in draws)
    assert any("chosen with seed 1" in line for line in lines(tree, folder))
    assert stats(folder, Options(shards=99))["shards"]["seed"] is None


def test_turned_pictures_are_measured_upright(tmp_path: Path) -> None:
    encoded, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16)).save(encoded, "JPEG", exif=exif)
    pair = replace(make_pair(0, ("en",)), image=encoded.getvalue())
    tree = stats(write_set(tmp_path / "set", [pair]))
    assert (tree["width"]["max"], tree["height"]["max"]) == (16, 32)


def test_damaged_samples_are_counted_by_reason_and_named(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 12)
    picture = ShardSet(folder).read(1).image
    first = folder / "00000.tar"
    first.write_bytes(first.read_bytes().replace(picture, bytes(len(picture))))
    (folder / "00001.tar").unlink()
    tree = stats(folder)
    assert tree["samples"] == 7
    assert tree["unusable"]["reasons"] == {"read error": 4, "checksum": 1}
    assert tree["unusable"]["named"][0] == {
        "file": "00000.tar",
        "key": "k001",
        "reason": "checksum",
        "detail": ".jpg",
    }
    for tar in folder.glob("*.tar"):
        tar.unlink()
    with pytest.raises(UserError, match="no sample can be read"):
        survey(folder, Options())


def test_shards_of_others_are_counted_too_with_what_was_refused(tmp_path: Path) -> None:
    cut = make_image(0, "JPEG", 64)[:-50]
    members = [*samples(3), *sample(2, "copy"), ("x.jpg", b"no picture"), ("x.txt", b"a")]
    (tmp_path / "a.tar").write_bytes(tar_of([*members, ("y.jpg", cut), ("y.txt", b"a")]))
    index(str(tmp_path), Rules("txt", "en"))
    tree = stats(tmp_path)
    assert tree["refused"] == {"not an image": 1}
    assert tree["unusable"]["reasons"] == {"does not decode": 1}
    assert (tree["samples"], tree["pictures"]) == (4, 3)
    assert tree["licenses"] == {"unknown": 4}
    assert tree["duplicates"]["exact"] == {"samples": 1, "under_another_identity": 0}
    (one,) = tree["duplicates"]["examples"]["exact"]
    assert [s["key"] for s in one["samples"]] == ["copy", "000000002"]
    assert stats(tmp_path, Options(near=False))["samples"] == 5


def test_what_a_test_set_shares_is_named(tmp_path: Path) -> None:
    train = make_set(tmp_path / "train", 6)
    pairs = [make_pair(number, ("en",)) for number in (2, 101)]
    pairs = [replace(pair, key=f"t{pair.key}", picture=f"t{pair.key}") for pair in pairs]
    test = write_set(tmp_path / "test", pairs)
    options = Options(near=False)
    leaks = summarise(survey(train, options), survey(test, options))["leaks"]
    assert (leaks["samples"], leaks["exact"], leaks["of"]) == (1, 1, 2)
    assert leaks["examples"] == [
        {
            "samples": [
                {"shard": "00000.tar", "key": "k002"},
                {"shard": "00000.tar", "key": "tk002"},
            ],
            "distance": 0,
        }
    ]


def test_a_terminal_is_not_steered_by_a_data_set(tmp_path: Path) -> None:
    pair = replace(make_pair(0, ("en",)), license="\x1b[2Jfree", source="a\nb")
    folder = write_set(tmp_path / "set", [pair])
    text = list(lines(stats(folder), folder))
    assert any("\\x1b[2Jfree" in line for line in text)
    assert not any("\x1b" in line or "\n" in line for line in text)


@pytest.mark.parametrize("languages", [0, 50])  # 50 need two columns
def test_the_chart_is_drawn_for_any_number_of_languages(tmp_path: Path, languages: int) -> None:
    tree = stats(write_set(tmp_path / "set", [make_pair(0, ("en",))]))
    (english,) = tree["languages"].values()
    tree["languages"] = {f"q{number}": english for number in range(languages)}
    files = [tmp_path / "new" / name for name in ("a.svg", "b.svg", "c.png")]
    for file in files:
        draw(tree, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert np.asarray(Image.open(files[2])).std() > 5


def test_the_command_says_draws_and_writes(tmp_path: Path) -> None:
    folder, run = make_set(tmp_path / "set", 8), tmp_path / "run"
    tiny_tokenizer().save(run / "tokenizer")
    (run / "config.yaml").touch()  # what makes a folder a run
    (folder / "00001.tar").unlink()
    tree, picture = tmp_path / "out" / "stats.json", tmp_path / "out" / "stats.png"
    arguments = ["data", "stats", str(folder), "--tokenizer", str(run), "--json", str(tree)]
    done = CliRunner().invoke(app, [*arguments, "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    assert "4 samples, 4 images, 8 captions in 3 languages" in done.output
    assert "cannot be used: 4 samples (read error: 4)" in done.output
    assert f"mmalign data verify {folder}" in done.output
    written = json.loads(tree.read_text())
    assert written["languages"]["en"]["tokens"]["max"] > 2
    assert picture.stat().st_size > 10_000
    with pytest.raises(UserError, match=r"ends in \.png or \.svg"):
        check_target(Path("stats.bmp"))
