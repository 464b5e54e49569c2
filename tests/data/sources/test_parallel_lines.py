"""XTD10 and Multi30k: line n of every file is picture n, and files that do not match are refused."""

import gzip
from pathlib import Path

import pytest
from published_sets import (
    build_and_read,
    captions_of,
    refusal,
    replace_line,
    write_lines,
    write_pictures,
)
from shard_sets import make_image

XTD10_FILES = {
    "XTD10": ("en", "es", "it", "ko", "pl", "ru", "tr", "zh"),
    "MIC": ("de", "fr"),
    "STAIR": ("jp",),
}
COCO_NAMES = [f"COCO_{split}_00000{n}.jpg" for n, split in enumerate(["train2014", "val2014"] * 2)]
FLICKR_NAMES = ["100.jpg", "20.jpg", "3.jpg"]
TEXTS = {
    "jp": "赤いボール",
    "ko": "빨간 공",
    "ru": "красный мяч",
    "zh": "红球",
    "cs": "červený míč",
}


def text(lang: str, number: int) -> str:
    return f"{TEXTS.get(lang, lang)} {number}"


@pytest.fixture
def xtd10(tmp_path: Path) -> list[Path]:
    """The publisher's folder, lines ended as in theirs, and COCO's."""
    captions, coco = tmp_path / "xtd10", tmp_path / "coco"
    write_lines(captions / "XTD10" / "test_image_names.txt", COCO_NAMES)
    for part, languages in XTD10_FILES.items():
        for lang in languages:
            path = captions / part / f"test_1kcaptions_{lang}.txt"
            write_lines(
                path, [text(lang, n) for n in range(4)], "\r\n" if part == "XTD10" else "\n"
            )
    write_pictures(coco / "train2014", COCO_NAMES[::2])
    write_pictures(coco / "val2014", COCO_NAMES[1::2])
    return [captions, coco]


@pytest.fixture
def multi30k(tmp_path: Path) -> list[Path]:
    """The publisher's folder and Flickr30k's."""
    task = tmp_path / "multi30k" / "data" / "task1"
    write_lines(task / "image_splits" / "test_2016_flickr.txt", FLICKR_NAMES)
    (task / "raw").mkdir()
    for lang in ("cs", "de", "en", "fr"):
        lines = "".join(text(lang, n) + "\n" for n in range(3))
        (task / "raw" / f"test_2016_flickr.{lang}.gz").write_bytes(gzip.compress(lines.encode()))
    write_pictures(tmp_path / "flickr30k" / "flickr30k-images", FLICKR_NAMES)
    return [tmp_path / "multi30k", tmp_path / "flickr30k"]


def test_xtd10_has_one_caption_in_eleven_languages(xtd10: list[Path], tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "xtd10", *xtd10)["test"]
    assert [pair.picture for pair in pairs] == COCO_NAMES
    for number, pair in enumerate(pairs):
        codes = ["de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh"]
        expected = {code: [text("jp" if code == "ja" else code, number)] for code in codes}
        assert captions_of(pair) == expected
    assert pairs[2].image == make_image(1, "JPEG")  # the second picture of train2014


def test_multi30k_has_one_caption_in_four_languages(multi30k: list[Path], tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "multi30k", *multi30k)["test"]
    assert [pair.picture for pair in pairs] == FLICKR_NAMES
    assert captions_of(pairs[2]) == {lang: [text(lang, 2)] for lang in ("cs", "de", "en", "fr")}
    assert pairs[2].image == make_image(2, "JPEG")


def test_unpacked_files_in_one_folder_are_read_too(multi30k: list[Path], tmp_path: Path) -> None:
    expected = build_and_read(tmp_path / "out", "multi30k", *multi30k)
    flat = tmp_path / "flat"
    write_lines(flat / "test_2016_flickr.txt", FLICKR_NAMES)
    for lang in ("cs", "de", "en", "fr"):
        write_lines(flat / f"test_2016_flickr.{lang}", [text(lang, n) for n in range(3)])
    write_pictures(flat, FLICKR_NAMES)
    assert build_and_read(tmp_path / "again", "multi30k", flat) == expected


@pytest.mark.parametrize("change", [-1, 1])
def test_as_many_captions_as_names(xtd10: list[Path], tmp_path: Path, change: int) -> None:
    path = xtd10[0] / "MIC" / "test_1kcaptions_fr.txt"
    write_lines(path, [text("fr", n) for n in range(4 + change)])
    assert refusal(tmp_path / "out", "xtd10", *xtd10) == (
        f"{path}: has {4 + change} captions, but {xtd10[0]}/XTD10/test_image_names.txt names 4 images; "
        "get both from one release"
    )


def test_a_blank_line_is_refused_as_lines_are_numbers(xtd10: list[Path], tmp_path: Path) -> None:
    path = xtd10[0] / "STAIR" / "test_1kcaptions_jp.txt"
    replace_line(path, 2, " ")
    assert refusal(tmp_path / "out", "xtd10", *xtd10) == (
        f"{path}, line 2: is blank; get the file again"
    )


def test_what_is_missing_is_named(xtd10: list[Path], multi30k: list[Path], tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "out", "xtd10", xtd10[0])
    names = xtd10[0] / "XTD10" / "test_image_names.txt"
    assert sentence.startswith(f"{names}, line 1: the image `{COCO_NAMES[0]}` is neither in ")
    (xtd10[0] / "XTD10" / "test_1kcaptions_ko.txt").unlink()
    sentence = refusal(tmp_path / "out", "xtd10", *xtd10)
    assert sentence.startswith(f"{xtd10[0]}, {xtd10[1]}: no `XTD10/test_1kcaptions_ko.txt` there")
    cut = multi30k[0] / "data" / "task1" / "raw" / "test_2016_flickr.de.gz"
    cut.write_bytes(cut.read_bytes()[:20])
    sentence = refusal(tmp_path / "out", "multi30k", *multi30k)
    assert sentence.startswith(f"{cut}: is no readable UTF-8 text (")
