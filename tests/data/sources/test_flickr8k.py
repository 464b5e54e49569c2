"""Flickr8k: three splits, five captions a picture in their order."""

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

SPLITS = {"train": ["a_1.jpg", "b_2.jpg"], "dev": ["c_3.jpg"], "test": ["e_5.jpg", "d_4.jpg"]}
NAMES = sorted(name for names in SPLITS.values() for name in names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flickr8k"
    named = [
        *NAMES,
        "f_6.jpg.1",
    ]  # the publisher's file names such a picture, too, which is not there
    lines = [f"{name}#{n}\tA ball, number {n} of {name} ." for name in named for n in range(5)]
    write_lines(folder / "Flickr8k_text" / "Flickr8k.token.txt", lines)
    for split, names in SPLITS.items():
        write_lines(folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt", names)
    write_pictures(folder / "Flicker8k_Dataset", NAMES)
    return folder


def test_splits_and_captions_are_the_publishers(folder: Path, tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "flickr8k", folder)
    found = {split: [pair.picture for pair in some] for split, some in pairs.items()}
    assert found == {"train": SPLITS["train"], "val": SPLITS["dev"], "test": SPLITS["test"]}
    assert captions_of(pairs["test"][0]) == {
        "en": [f"A ball, number {n} of e_5.jpg ." for n in range(5)]
    }


def test_text_files_may_lie_beside_the_pictures(folder: Path, tmp_path: Path) -> None:
    expected = build_and_read(tmp_path / "out", "flickr8k", folder)
    for path in list((folder / "Flickr8k_text").iterdir()):
        path.rename(folder / path.name)
    assert build_and_read(tmp_path / "again", "flickr8k", folder) == expected


@pytest.mark.parametrize("line", ["a_1.jpg#0 A ball", "a_1.jpg\tA ball"])
def test_a_broken_line_is_named(folder: Path, tmp_path: Path, line: str) -> None:
    path = folder / "Flickr8k_text" / "Flickr8k.token.txt"
    replace_line(path, 4, line)
    assert refusal(tmp_path / "out", "flickr8k", folder) == (
        f"{path}, line 4: must look like `name.jpg#0`, a tab, and a caption"
    )


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "Flicker8k_Dataset" / "c_3.jpg").unlink()
    listed = folder / "Flickr8k_text" / "Flickr_8k.devImages.txt"
    sentence = refusal(tmp_path / "out", "flickr8k", folder)
    assert sentence.startswith(f"{listed}, line 1: the image `c_3.jpg` is neither in {folder} ")
    write_lines(listed, ["none.jpg"])
    assert refusal(tmp_path / "out", "flickr8k", folder) == (
        f"{listed}, line 1: Flickr8k.token.txt has no caption of `none.jpg`"
    )
    listed.unlink()
    sentence = refusal(tmp_path / "out", "flickr8k", folder)
    assert sentence.startswith(f"{folder}: no `Flickr_8k.devImages.txt` there")
