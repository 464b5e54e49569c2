"""WIT's own tables and IGLUE's test of it: captions of one image meet, and what is missing is named."""

import base64
import gzip
from collections import Counter
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
)
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.reader import ShardSet
from mmalign.data.sources.kinds import read_rows
from mmalign.data.sources.wit import WitTsv

COLUMNS = [
    *("language", "page_url", "image_url", "page_title", "caption_reference_description"),
    *("caption_attribution_description", "caption_alt_text_description", "mime_type"),
]
IGLUE = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")
WORDS = {"ar": "كرة", "el": "μπάλα", "ja": "ボール", "ko": "공"}


def url(number: int) -> str:
    return f"http://upload.example.org/B%C3%A4r_{number}.jpg"


def line(lang: str, number: int, text: str, alt: str = "") -> str:
    cells = {
        "language": lang,
        "image_url": url(number),
        "caption_reference_description": text,
        "caption_alt_text_description": alt,
    }
    return "\t".join(cells.get(column, "x") for column in COLUMNS)


def write_table(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()))


def pixel_lines(*numbers: int) -> list[str]:
    return [
        "\t".join([url(n), base64.b64encode(make_image(n, "JPEG")).decode(), f"http://page/{n}"])
        for n in numbers
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wit"
    write_table(
        folder / "wit_v1.train.all-00000-of-00010.tsv.gz",
        line("en", 0, '"a ball, ""red"""', alt="ball"),
        line("iw", 0, "כדור"),
        line("en", 0, '"a ball, ""red"""'),
        line("en", 1, "", alt="a dog"),
    )
    write_table(
        folder / "wit_v1.train.all-00001-of-00010.tsv.gz",
        line("sw", 0, "mpira"),
        line("de", 3, "ein Baum"),
    )
    write_table(folder / "wit_v1.val.all-00000-of-00005.tsv.gz", line("ja", 2, "犬"))
    pixels = pixel_lines(2, 1, 0)
    write_lines(folder / "image_pixels" / "train_image_pixels_part-00000.csv", pixels)
    return folder


def source(folder: Path, **fields: Any) -> WitTsv:
    return validate(WitTsv, {"kind": "wit_tsv", "folders": [str(folder)], **fields}, "x.yaml")


def read(config: WitTsv) -> tuple[list[LazyPair], list[BadRow]]:
    rows = list(read_rows(config, 0, Counter()))
    good = [row for row in rows if isinstance(row, LazyPair)]
    return good, [row for row in rows if isinstance(row, BadRow)]


def captions(draft: LazyPair) -> list[tuple[str, str]]:
    return [(caption.lang, caption.text) for caption in draft.pair.captions]


def test_rows_of_one_picture_meet_from_all_tables(folder: Path) -> None:
    (second, first), bad = read(source(folder))
    assert captions(first) == [("en", 'a ball, "red"'), ("he", "כדור"), ("sw", "mpira")]
    assert first.load().image == make_image(0, "JPEG")
    assert (first.pair.split, second.pair.split) == ("train", "val")
    assert (first.pair.picture, first.pair.attribution) == (url(0), "http://page/0")
    table = folder / "wit_v1.train.all-00001-of-00010.tsv.gz"
    told = f"{table}, line 3: the image {url(3)} is in no image_pixels file"
    assert [(row.reason, str(row)) for row in bad] == [("missing", told)]


def test_languages_and_kinds_of_captions_are_chosen(folder: Path) -> None:
    good, bad = read(source(folder, languages=["he", "ja"]))
    assert [captions(draft) for draft in good] == [[("ja", "犬")], [("he", "כדור")]]
    assert bad == []
    good, _ = read(source(folder, caption="alt_text"))
    assert [captions(draft) for draft in good] == [[("en", "a dog")], [("en", "ball")]]


def test_a_quotation_mark_that_is_not_closed_loses_no_row_without_a_trace(folder: Path) -> None:
    table = folder / "wit_v1.train.all-00001-of-00010.tsv.gz"
    write_table(table, line("sw", 0, '"mpira'), line("de", 1, 'ein Ball"'), line("ja", 2, "犬"))
    good, bad = read(source(folder))
    told = f"{table}, line 2: a quotation mark opens that is closed after other cells or rows"
    assert [(row.reason, str(row)[: len(told)]) for row in bad] == [("row", told)]
    assert ("ja", "犬") in [caption for draft in good for caption in captions(draft)]


def test_captions_of_one_image_in_two_splits_do_not_meet(folder: Path) -> None:
    table = folder / "wit_v1.val.all-00000-of-00005.tsv.gz"
    write_table(table, line("ja", 0, "球"), line("ja", 2, "犬"))
    found = {(d.pair.split, d.pair.picture): captions(d) for d in read(source(folder))[0]}
    assert found["val", url(0)] == [("ja", "球")]
    assert ("ja", "球") not in found["train", url(0)]


def test_it_is_built_as_far_as_the_recipe_allows(folder: Path, tmp_path: Path) -> None:
    tree = {"name": "wit", "source": {"kind": "wit_tsv", "folders": [str(folder)]}}
    with pytest.raises(UserError, match=r"1 of 3 rows cannot be used \(missing: 1\)"):
        build(validate(RecipeConfig, tree, "x.yaml"), tmp_path / "out")
    allowed = validate(RecipeConfig, {**tree, "max_bad_fraction": 0.5}, "x.yaml")
    assert {m.split: m.samples for m in build(allowed, tmp_path / "out")} == {"val": 1, "train": 1}
    assert ShardSet(tmp_path / "out" / "val").read(0).captions[0].lang == "ja"


def test_what_is_broken_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "image_pixels" / "train_image_pixels_part-00000.csv"
    write_lines(path, [f"{url(0)}\t???\thttp://page/0"])
    _, bad = read(source(folder, languages=["sw"]))
    assert str(bad[0]) == f"{path}, line 1: must be a URL, a tab and an image in base64"
    with pytest.raises(UserError, match=r"image_pixels: no wit_v1\.train\.\*\.tsv\.gz there"):
        read(source(folder / "image_pixels"))


@pytest.fixture
def iglue(tmp_path: Path) -> list[Path]:
    """Image 0 has captions in every language, two in Arabic; image n another one in language n."""
    for number, lang in enumerate(IGLUE, start=1):
        word = WORDS.get(lang, lang)
        texts = [(0, word), (number, f"{word} {number}")]
        if lang == "ar":
            texts.append((0, "كرة حمراء"))
        if lang == "el":
            texts[1] = (number, "\u00a0")  # as in the release
        rows = [
            {
                "image_url": url(n),
                "meta_url": f"http://commons.example.org/{n}",
                "caption_reference_description": text,
                "wit_ix": f"wit-test_{n}",
            }
            for n, text in texts
        ]
        write_json_lines(tmp_path / "wit" / "annotations" / f"test_{lang}.jsonl", rows)
    lines = pixel_lines(*range(11, -1, -1))
    pixels = tmp_path / "image_data_test" / "image_pixels"
    write_lines(pixels / "part-00000.csv", ["image_url\tb64_bytes\tmetadata_url", *lines[:6]])
    packed = "".join(f"{line}\n" for line in [*lines[6:], lines[0]]).encode()
    (pixels / "part-00001.csv.gz").write_bytes(gzip.compress(packed))
    return [tmp_path / "wit", tmp_path / "image_data_test"]


def test_iglue_is_one_pool_and_one_of_each_language(iglue: list[Path], tmp_path: Path) -> None:
    pairs = build_and_read(tmp_path / "out", "wit", *iglue)
    assert set(pairs) == {"test", *(f"test_{lang}" for lang in IGLUE)}
    assert [pair.picture for pair in pairs["test"]] == [f"wit-test_{n}" for n in range(11, -1, -1)]
    shared = captions_of(pairs["test"][-1])
    expected = {lang: [WORDS.get(lang, lang)] for lang in IGLUE}
    assert shared == expected | {"ar": ["كرة", "كرة حمراء"]}
    assert [captions_of(pair) for pair in pairs["test_ar"]] == [
        {"ar": ["كرة 1"]},
        {"ar": ["كرة", "كرة حمراء"]},
    ]
    # A blank caption is no query, but its image stays in the pool.
    assert [captions_of(pair) for pair in pairs["test_el"]] == [{}, {"el": ["μπάλα"]}]
    assert pairs["test_ar"][0].image == make_image(1, "JPEG")
    assert pairs["test_ar"][0].attribution == "http://commons.example.org/1"


def test_an_image_of_iglue_that_cannot_be_used_is_named(iglue: list[Path], tmp_path: Path) -> None:
    annotations, path = iglue[0] / "annotations", iglue[1] / "image_pixels" / "part-00000.csv"
    replace_line(path, 3, f"{url(10)}\t{base64.b64encode(b'text').decode()}")
    sentence = refusal(tmp_path / "out", "wit", *iglue)
    assert sentence.startswith(f"{annotations}/test_tr.jsonl, line 2: the image `wit-test_10`")
    replace_line(path, 3, f"{url(10)}\tno base64!")
    assert refusal(tmp_path / "out", "wit", *iglue) == (
        f"{path}, line 3: must be a URL, a tab and an image in base64"
    )
    (iglue[1] / "image_pixels" / "part-00001.csv.gz").unlink()
    replace_line(path, 3, *pixel_lines(10))
    assert refusal(tmp_path / "out", "wit", *iglue) == (
        f"{annotations}/test_ar.jsonl, line 1: the image {url(0)} is in none of the image_pixels "
        "files, nor are 5 others; name the folder of all of them with `--from FOLDER`"
    )
