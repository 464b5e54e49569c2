"""Published sets: each file of the publisher's layout is read, and what is missing or invalid is named."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_sets import (
    build_and_read,
    captions_of,
    refusal,
    replace_line,
    write_json_lines,
    write_lines,
    write_pictures,
)
from shard_sets import make_image

XM3600 = {
    "quz": ["puka papa", "puka"],
    "he": ["כדור אדום"],
    "zh": ["一个红球", " 红色的球\n", "球"],
    "te": ["ఎర్ర బంతి", "  "],
}
XTD10 = {
    "XTD10": ("en", "es", "it", "ko", "pl", "ru", "tr", "zh"),
    "MIC": ("de", "fr"),
    "STAIR": ("jp",),
}
XFLICKRCO = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
MULTI30K = ("cs", "de", "en", "fr")
FLICKR8K = {"train": ["a_1.jpg", "b_2.jpg"], "dev": ["c_3.jpg"], "test": ["e_5.jpg", "d_4.jpg"]}
COCO = [f"COCO_{split}_00000{n}.jpg" for n, split in enumerate(["train2014", "val2014"] * 2)]
FLICKR30K = ["100.jpg", "20.jpg", "3.jpg"]
TEXTS = {"jp": "赤いボール", "ja": "赤いボール", "ko": "공", "ru": "мяч", "zh": "红球", "cs": "míč"}


def text(lang: str, number: int) -> str:
    return f"{TEXTS.get(lang, lang)} {number}"


def write_xm3600(root: Path) -> None:
    rows = []
    for number in range(3):
        texts = {
            lang: {
                "caption": [f"{text} {number}" if text.strip() else text for text in some],
                "caption/tokenized": ["never read"],
            }
            for lang, some in XM3600.items()
        }
        rows.append({"image/key": f"000{number}abc", "image/locale": "quz", **texts})
    write_json_lines(root / "captions.jsonl", rows)
    write_pictures(root / "images", [f"000{number}abc.jpg" for number in range(3)])


def write_xtd10(root: Path) -> None:
    write_lines(root / "XTD10" / "test_image_names.txt", COCO)
    for part, languages in XTD10.items():
        end = "\r\n" if part == "XTD10" else "\n"  # as in the release
        for lang in languages:
            path = root / part / f"test_1kcaptions_{lang}.txt"
            write_lines(path, [text(lang, n) for n in range(4)], end)
    write_pictures(root.with_name("coco") / "train2014", COCO[::2])
    write_pictures(root.with_name("coco") / "val2014", COCO[1::2])


def write_multi30k(root: Path) -> None:
    task = root / "data" / "task1"
    write_lines(task / "image_splits" / "test_2016_flickr.txt", FLICKR30K)
    (task / "raw").mkdir()
    for lang in MULTI30K:
        lines = "".join(text(lang, n) + "\n" for n in range(3))
        (task / "raw" / f"test_2016_flickr.{lang}.gz").write_bytes(gzip.compress(lines.encode()))
    write_pictures(root.with_name("flickr30k") / "flickr30k-images", FLICKR30K)


def write_xflickrco(root: Path) -> None:
    names = [*FLICKR30K[:2], "COCO_val2014_9.jpg"]
    for lang in XFLICKRCO:
        texts = [text(lang, number) for number in range(3)]
        if lang == "de":
            texts[1] = ""  # as in the release
        rows = [{"sentences": [t], "img_path": name} for t, name in zip(texts, names, strict=True)]
        write_json_lines(root / "annotations" / lang / "test.jsonl", rows)
    write_pictures(root.with_name("flickr30k") / "flickr30k_images", names[:2])
    write_pictures(root.with_name("coco") / "val2014", names[2:])


def write_flickr8k(root: Path) -> None:
    names = sorted(name for names in FLICKR8K.values() for name in names)
    # The publisher's file has captions of such an image, which does not exist.
    captioned = [*names, "f_6.jpg.1"]
    lines = [f"{name}#{n}\tA ball, number {n} of {name} ." for name in captioned for n in range(5)]
    write_lines(root / "Flickr8k_text" / "Flickr8k.token.txt", lines)
    for split, listed in FLICKR8K.items():
        write_lines(root / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt", listed)
    write_pictures(root / "Flicker8k_Dataset", names)


def written(kind: str, tmp_path: Path) -> list[Path]:
    """The folders of a set: the publisher's, and those of the images of other sets."""
    SETS[kind][0](tmp_path / kind)
    return [tmp_path / kind, *(p for p in sorted(tmp_path.iterdir()) if p.name != kind)]


def check_xm3600(pairs: dict[str, list[Any]]) -> None:
    assert [pair.key for pair in pairs["test"]] == ["0000abc", "0001abc", "0002abc"]
    second = pairs["test"][1]
    assert captions_of(second) == {
        "quz": ["puka papa 1", "puka 1"],
        "he": ["כדור אדום 1"],
        "zh": ["一个红球 1", "红色的球\n 1", "球 1"],
        "te": ["ఎర్ర బంతి 1"],  # the blank one is left out
    }
    assert second.image == make_image(1, "JPEG")
    assert (second.source, second.license[:19]) == ("xm3600", "captions: CC-BY-4.0")


def check_xtd10(pairs: dict[str, list[Any]]) -> None:
    assert [pair.picture for pair in pairs["test"]] == COCO
    for number, pair in enumerate(pairs["test"]):
        codes = ["de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh"]
        assert captions_of(pair) == {code: [text(code, number)] for code in codes}
    assert pairs["test"][2].image == make_image(1, "JPEG")  # the second image of train2014


def check_multi30k(pairs: dict[str, list[Any]]) -> None:
    assert [pair.picture for pair in pairs["test"]] == FLICKR30K
    assert captions_of(pairs["test"][2]) == {lang: [text(lang, 2)] for lang in MULTI30K}


def check_xflickrco(pairs: dict[str, list[Any]]) -> None:
    assert [pair.picture for pair in pairs["test"]] == [*FLICKR30K[:2], "COCO_val2014_9.jpg"]
    assert captions_of(pairs["test"][2]) == {lang: [text(lang, 2)] for lang in XFLICKRCO}
    assert "de" not in captions_of(pairs["test"][1])  # the blank one is left out
    assert [pair.image for pair in pairs["test"]] == [make_image(n, "JPEG") for n in (0, 1, 0)]


def check_flickr8k(pairs: dict[str, list[Any]]) -> None:
    found = {split: [pair.picture for pair in some] for split, some in pairs.items()}
    assert found == {"train": FLICKR8K["train"], "val": FLICKR8K["dev"], "test": FLICKR8K["test"]}
    expected = [f"A ball, number {n} of e_5.jpg ." for n in range(5)]
    assert captions_of(pairs["test"][0]) == {"en": expected}


SETS: dict[str, tuple[Callable[[Path], None], Callable[[dict[str, list[Any]]], None]]] = {
    "xm3600": (write_xm3600, check_xm3600),
    "xtd10": (write_xtd10, check_xtd10),
    "multi30k": (write_multi30k, check_multi30k),
    "xflickrco": (write_xflickrco, check_xflickrco),
    "flickr8k": (write_flickr8k, check_flickr8k),
}


@pytest.mark.parametrize("kind", SETS)
def test_the_publishers_files_become_pairs(kind: str, tmp_path: Path) -> None:
    SETS[kind][1](build_and_read(tmp_path / "out", kind, *written(kind, tmp_path)))


@pytest.mark.parametrize("kind", ["xm3600", "multi30k", "flickr8k"])
def test_files_may_be_unpacked_and_in_other_folders(kind: str, tmp_path: Path) -> None:
    folders = written(kind, tmp_path / "in")
    flat, images = tmp_path / "flat", tmp_path / "images"
    flat.mkdir()
    images.mkdir()
    for path in [p for folder in folders for p in folder.rglob("*") if p.is_file()]:
        data = path.read_bytes()
        if path.suffix == ".gz":
            (flat / path.stem).write_bytes(gzip.decompress(data))
        else:
            ((images if path.suffix == ".jpg" else flat) / path.name).write_bytes(data)
    SETS[kind][1](build_and_read(tmp_path / "out", kind, flat, images))


BROKEN = [
    ("xm3600", "captions.jsonl", '{"image/key": ', "not valid JSON ("),
    ("xm3600", "captions.jsonl", "[1]", "must be a JSON object"),
    ("xm3600", "captions.jsonl", '{"en": {"caption": ["x"]}}', "`image/key` must be a text"),
    ("xm3600", "captions.jsonl", '{"image/key": "0001abc"}', "no field is a language with its"),
    (
        *("xm3600", "captions.jsonl", '{"image/key": "0001abc", "en": {"caption": "x"}}'),
        "`en`: `caption` must be a list of texts",
    ),
    (
        *("xm3600", "captions.jsonl", '{"image/key": "0001abc", "e": {"caption": ["x"]}}'),
        "`e` is no BCP-47 language code",
    ),
    (
        *("xm3600", "captions.jsonl", '{"image/key": "0000abc", "en": {"caption": ["x"]}}'),
        "the image `0000abc` is in an earlier line too",
    ),
    ("xtd10", "STAIR/test_1kcaptions_jp.txt", " ", "is blank; get the file again"),
    (
        *("xflickrco", "annotations/ja/test.jsonl", '{"sentences": ["x"], "img_path": "88.jpg"}'),
        "the image `88.jpg` is not in ",
    ),
    ("flickr8k", "Flickr8k_text/Flickr8k.token.txt", "a_1.jpg#0 A ball", "must look like `name"),
    ("flickr8k", "Flickr8k_text/Flickr8k.token.txt", "a_1.jpg\tA ball", "must look like `name"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return {kind: written(kind, tmp_path_factory.mktemp(kind)) for kind in SETS}


@pytest.mark.parametrize(("kind", "file", "line", "reason"), BROKEN)
def test_an_invalid_line_is_named(
    sets: dict[str, list[Path]], tmp_path: Path, kind: str, file: str, line: str, reason: str
) -> None:
    path = sets[kind][0] / file
    before = path.read_bytes()
    replace_line(path, 2, line)
    sentence = refusal(tmp_path / "out", kind, *sets[kind])
    path.write_bytes(before)
    assert sentence.startswith(f"{path}, line 2: {reason}")


def test_files_of_lines_must_fit_together(sets: dict[str, list[Path]], tmp_path: Path) -> None:
    root = sets["xtd10"][0]
    path = root / "MIC" / "test_1kcaptions_fr.txt"
    before = path.read_bytes()
    for count in (3, 5):
        write_lines(path, [text("fr", n) for n in range(count)])
        assert refusal(tmp_path / "out", "xtd10", *sets["xtd10"]) == (
            f"{path}: has {count} captions, but {root}/XTD10/test_image_names.txt names 4 images; "
            "get both from one release"
        )
    path.write_bytes(before)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folders = written("xtd10", tmp_path / "a")
    sentence = refusal(tmp_path / "out", "xtd10", folders[0])
    names = folders[0] / "XTD10" / "test_image_names.txt"
    assert sentence.startswith(
        f"{names}, line 1: the image `{COCO[0]}` is not in {folders[0]} nor in a subfolder "
    )
    (folders[0] / "XTD10" / "test_1kcaptions_ko.txt").unlink()
    sentence = refusal(tmp_path / "out", "xtd10", *folders)
    listed = ", ".join(map(str, folders))
    assert sentence.startswith(
        f"{listed}: no `XTD10/test_1kcaptions_ko.txt` there; name the folder"
    )
    folders = written("multi30k", tmp_path / "b")
    cut = folders[0] / "data" / "task1" / "raw" / "test_2016_flickr.de.gz"
    cut.write_bytes(cut.read_bytes()[:20])
    sentence = refusal(tmp_path / "out", "multi30k", *folders)
    assert sentence.startswith(f"{cut}: cannot be read (")
    folders = written("flickr8k", tmp_path / "c")
    listed_names = folders[0] / "Flickr8k_text" / "Flickr_8k.devImages.txt"
    write_lines(listed_names, ["none.jpg"])
    assert refusal(tmp_path / "out", "flickr8k", *folders) == (
        f"{listed_names}, line 1: Flickr8k.token.txt has no caption of `none.jpg`"
    )


def test_an_image_that_does_not_decode_stops_the_build(tmp_path: Path) -> None:
    (folder,) = written("xm3600", tmp_path)
    (folder / "images" / "0002abc.jpg").write_bytes(make_image(0, "JPEG")[:200])
    sentence = refusal(tmp_path / "out", "xm3600", folder)
    assert sentence.startswith(f"{folder}/captions.jsonl, line 3: the image `0002abc` does not")


def test_folders_must_be_named_and_exist(tmp_path: Path) -> None:
    assert refusal(tmp_path / "out", "xm3600") == (
        "xm3600: `source.folders` is empty; name the folders with `--from FOLDER`"
    )
    nowhere = tmp_path / "nowhere"
    assert refusal(tmp_path / "out", "xm3600", nowhere).startswith(f"{nowhere}: no such folder")
