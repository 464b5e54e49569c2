"""IGLUE's tests: languages meet on one picture, WIT also has a pool a language, and gaps are named."""

import base64
import gzip
from pathlib import Path

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

XFLICKRCO = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
NAMES = ["7.jpg", "8.jpg", "COCO_val2014_9.jpg"]
WIT = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")
WORDS = {"ar": "كرة", "el": "μπάλα", "ja": "ボール", "ko": "공", "ru": "мяч", "zh": "球"}


def word(lang: str) -> str:
    return WORDS.get(lang, lang)


@pytest.fixture
def xflickrco(tmp_path: Path) -> list[Path]:
    for lang in XFLICKRCO:
        texts = [f"{word(lang)} {number}" for number in range(3)]
        if lang == "de":
            texts[1] = ""  # as in the release
        rows = [
            {"sentences": [text], "id": number, "img_path": name}
            for number, (text, name) in enumerate(zip(texts, NAMES, strict=True))
        ]
        write_json_lines(tmp_path / "xFlickrCO" / "annotations" / lang / "test.jsonl", rows)
    write_pictures(tmp_path / "flickr30k" / "flickr30k_images", NAMES[:2])
    write_pictures(tmp_path / "coco" / "val2014", NAMES[2:])
    return [tmp_path / folder for folder in ("xFlickrCO", "flickr30k", "coco")]


def url(number: int) -> str:
    return f"https://upload.example.org/{number}/B%C3%A4{number}.jpg"


def wit_row(lang: str, number: int, text: str) -> dict[str, object]:
    return {
        "image_idx": number,
        "image_url": url(number),
        "meta_url": f"http://commons.example.org/{number}",
        "caption_reference_description": text,
        "language": lang,
        "wit_ix": f"wit-test_{number}",
    }


@pytest.fixture
def wit(tmp_path: Path) -> list[Path]:
    """Picture 0 has captions in every language, two in Arabic; picture n another one in language n."""
    for number, lang in enumerate(WIT, start=1):
        rows = [wit_row(lang, 0, word(lang)), wit_row(lang, number, f"{word(lang)} {number}")]
        if lang == "ar":
            rows.append(wit_row(lang, 0, "كرة حمراء"))
        if lang == "el":
            rows[1]["caption_reference_description"] = "\u00a0"  # as in the release
        write_json_lines(tmp_path / "wit" / "annotations" / f"test_{lang}.jsonl", rows)
    lines = [
        "\t".join([url(n), base64.b64encode(make_image(n, "JPEG")).decode(), "http://x"])
        for n in range(11, -1, -1)
    ]
    pixels = tmp_path / "image_data_test" / "image_pixels"
    write_lines(pixels / "part-00000.csv", ["image_url\tb64_bytes\tmetadata_url", *lines[:6]])
    packed = "".join(f"{line}\n" for line in [*lines[6:], lines[0]]).encode()
    (pixels / "part-00001.csv.gz").write_bytes(gzip.compress(packed))
    return [tmp_path / "wit", tmp_path / "image_data_test"]


def test_xflickrco_joins_the_languages_of_a_picture(xflickrco: list[Path], tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "xflickrco", *xflickrco)["test"]
    assert [pair.picture for pair in pairs] == NAMES
    assert captions_of(pairs[2]) == {lang: [f"{word(lang)} 2"] for lang in XFLICKRCO}
    assert "de" not in captions_of(pairs[1])  # the blank one is left out
    assert [pair.image for pair in pairs] == [make_image(n, "JPEG") for n in (0, 1, 0)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"sentences": "x", "img_path": "8.jpg"}', "`sentences` must be a list of texts"),
        ('{"sentences": ["x"], "img_path": 8}', "`img_path` must be a text"),
        ('{"sentences": ["x"], "img_path": "88.jpg"}', "the image `88.jpg` is neither in "),
        ('{"sentences": ["x"', "not valid JSON ("),
    ],
)
def test_a_broken_line_is_named(
    xflickrco: list[Path], tmp_path: Path, line: str, reason: str
) -> None:
    path = xflickrco[0] / "annotations" / "ja" / "test.jsonl"
    replace_line(path, 2, line)
    sentence = refusal(tmp_path / "out", "xflickrco", *xflickrco)
    assert sentence.startswith(f"{path}, line 2: {reason}")


def test_wit_is_one_pool_and_one_of_each_language(wit: list[Path], tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "wit", *wit)
    assert set(pairs) == {"test", *(f"test_{lang}" for lang in WIT)}
    assert [pair.picture for pair in pairs["test"]] == [f"wit-test_{n}" for n in range(11, -1, -1)]
    shared = captions_of(pairs["test"][-1])
    assert shared == {lang: [word(lang)] for lang in WIT} | {"ar": ["كرة", "كرة حمراء"]}
    assert [captions_of(pair) for pair in pairs["test_ar"]] == [
        {"ar": ["كرة 1"]},
        {"ar": ["كرة", "كرة حمراء"]},
    ]
    # A blank caption is no query, but its picture stays in the pool.
    assert [captions_of(pair) for pair in pairs["test_el"]] == [{}, {"el": ["μπάλα"]}]
    assert pairs["test_ar"][0].image == make_image(1, "JPEG")
    assert pairs["test_ar"][0].attribution == "http://commons.example.org/1"


def test_a_picture_of_wit_that_is_nowhere_is_named(wit: list[Path], tmp_path: Path) -> None:
    (wit[1] / "image_pixels" / "part-00001.csv.gz").unlink()
    assert refusal(tmp_path / "out", "wit", *wit) == (
        f"{wit[0]}/annotations/test_ar.jsonl, line 1: the image {url(0)} is in none of the image_pixels "
        "files, nor are 5 others; name the folder of all of them with `--from FOLDER`"
    )


def test_a_picture_of_wit_that_is_no_picture_is_named(wit: list[Path], tmp_path: Path) -> None:
    path = wit[1] / "image_pixels" / "part-00000.csv"
    replace_line(path, 3, f"{url(10)}\tno base64!")
    assert refusal(tmp_path / "out", "wit", *wit) == (
        f"{path}, line 3: must be a URL, a tab and an image in base64"
    )
    replace_line(path, 3, f"{url(10)}\t{base64.b64encode(b'text').decode()}")
    sentence = refusal(tmp_path / "out", "wit", *wit)
    assert sentence.startswith(
        f"{wit[0]}/annotations/test_tr.jsonl, line 2: the image `wit-test_10`"
    )
