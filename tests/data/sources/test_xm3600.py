"""Crossmodal-3600: every caption in its order, in every language, and broken files are named."""

from pathlib import Path
from typing import Any

import pytest
from published_sets import (
    build_and_read,
    captions_of,
    refusal,
    replace_line,
    write_json_lines,
    write_pictures,
)
from shard_sets import make_image

CAPTIONS = {
    "quz": ["puka papa", "puka"],
    "he": ["כדור אדום"],
    "zh": ["一个红球", " 红色的球\n", "球"],
    "te": ["ఎర్ర బంతి", "  "],
}


def row(number: int) -> dict[str, Any]:
    texts = {
        lang: {
            "caption": [f"{text} {number}" if text.strip() else text for text in some],
            "caption/tokenized": ["never read"],
            "caption/tokenized/lowercase": ["never read"],
        }
        for lang, some in CAPTIONS.items()
    }
    return {"image/key": f"000{number}abc", "image/locale": "quz", **texts}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json_lines(tmp_path / "xm3600" / "captions.jsonl", [row(0), row(1), row(2)])
    names = [f"000{number}abc.jpg" for number in range(3)]
    write_pictures(tmp_path / "xm3600" / "images", names)
    return tmp_path / "xm3600"


def test_all_captions_come_back_in_the_publishers_order(folder: Path, tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "xm3600", folder)["test"]
    assert [pair.key for pair in pairs] == ["0000abc", "0001abc", "0002abc"]
    assert captions_of(pairs[1]) == {
        "quz": ["puka papa 1", "puka 1"],
        "he": ["כדור אדום 1"],
        "zh": ["一个红球 1", "红色的球\n 1", "球 1"],
        "te": ["ఎర్ర బంతి 1"],  # the blank one is left out
    }
    assert pairs[1].image == make_image(1, "JPEG")
    assert (pairs[1].source, pairs[1].license[:19]) == ("xm3600", "captions: CC-BY-4.0")


def test_pictures_may_lie_in_another_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "images").rename(tmp_path / "pictures")
    pairs = build_and_read(tmp_path / "out", "xm3600", folder, tmp_path / "pictures")["test"]
    assert len(pairs) == 3


def test_a_missing_picture_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "0001abc.jpg").unlink()
    assert refusal(tmp_path / "out", "xm3600", folder) == (
        f"{folder}/captions.jsonl, line 2: the image `0001abc.jpg` is neither in {folder} nor in a "
        "subfolder images; name its folder with `--from FOLDER`"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image/key": ', "not valid JSON ("),
        ("[1]", "must be a JSON object"),
        ('{"en": {"caption": ["x"]}}', "`image/key` must be a text"),
        ('{"image/key": "0001abc"}', "no field is a language with its captions"),
        ('{"image/key": "0001abc", "en": {"caption": "x"}}', "`en`: `caption` must be a list of"),
        ('{"image/key": "0001abc", "e": {"caption": ["x"]}}', "`e` is no BCP-47 language code"),
        ('{"image/key": "0000abc", "en": {"caption": ["x"]}}', "the image `0000abc` is in"),
    ],
)
def test_a_broken_line_is_named(folder: Path, tmp_path: Path, line: str, reason: str) -> None:
    replace_line(folder / "captions.jsonl", 2, line)
    sentence = refusal(tmp_path / "out", "xm3600", folder)
    assert sentence.startswith(f"{folder}/captions.jsonl, line 2: {reason}")


def test_a_picture_that_does_not_decode_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "0002abc.jpg").write_bytes(make_image(0, "JPEG")[:200])
    sentence = refusal(tmp_path / "out", "xm3600", folder)
    assert sentence.startswith(f"{folder}/captions.jsonl, line 3: the image `0002abc` does not")


def test_folders_must_be_named_and_exist(tmp_path: Path) -> None:
    assert refusal(tmp_path / "out", "xm3600") == (
        "xm3600: `source.folders` is empty; name the folders with `--from FOLDER`"
    )
    nowhere = tmp_path / "nowhere"
    assert refusal(tmp_path / "out", "xm3600", nowhere).startswith(f"{nowhere}: no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    sentence = refusal(tmp_path / "out", "xm3600", empty)
    assert sentence.startswith(f"{empty}: no `captions.jsonl` there; name the folder")
