"""Tables, codes and paths of publishers are read as they are or refused by file and line."""

from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47, bcp47_of_locale
from mmalign.text.tasks.layout import matching
from mmalign.text.tasks.tables import json_tree, lines, rows


def write(folder: Path, name: str, *table: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in table), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("swh_Latn", "sw"),
        ("arb_Arab", "ar"),
        ("arb_Latn", "ar-Latn"),
        ("npi_Latn", "ne-Latn"),
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("ary_Arab", "ary"),
        ("cmn", "zh"),
        ("lug", "lg"),
        ("pcm", "pcm"),
        ("swahili", "sw"),
        ("pt-BR", "pt-BR"),
        ("zh-Hant", "zh-Hant"),
        ("en", "en"),
        ("EN", "en"),
        ("SWA", "sw"),
        ("French", "fr"),
        ("iw", "he"),
        ("zh_hant", "zh-Hant"),
        ("tl", "tl"),  # as XTREME names it; CLDR says `fil`
        ("tgl_Latn", "tl"),
        ("prs_Arab", "prs"),
        ("zh-classical", "zh-classical"),
    ],
)
def test_a_code_of_any_publisher_becomes_bcp47(code: str, wanted: str) -> None:
    assert bcp47(code) == wanted


def test_a_locale_is_its_language_without_the_region() -> None:
    # All of MASSIVE's locales whose script or code is not plain.
    wanted = {
        "en-US": "en",
        "nb-NO": "nb",
        "pt-PT": "pt",
        "zh-CN": "zh",
        "zh-TW": "zh-Hant",
        "mn-MN": "mn",
        "az-AZ": "az",
        "jv-ID": "jv",
        "tl-PH": "tl",
    }
    assert {one: bcp47_of_locale(one) for one in wanted} == wanted


def test_windows_line_ends_a_byte_order_mark_and_a_missing_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xef\xbb\xbflabel\ttext\r\na\tum\r\nb\tdois")
    assert [(row.line, row.number, dict(row.cells)) for row in rows(path)] == [
        (2, 1, {"label": "a", "text": "um"}),
        (3, 2, {"label": "b", "text": "dois"}),
    ]


def test_what_is_not_utf8_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"x.tsv: not UTF-8 \(byte 1\)"):
        lines(path)
    with pytest.raises(UserError, match=r"y.tsv: no such file"):
        lines(tmp_path / "y.tsv")


def test_quoted_cells_hold_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", '"he said ""no""","two', 'lines",1.0', "a,b,2")
    found = list(rows(path, ("first", "second", "score"), quoted=True))
    assert [dict(row.cells) for row in found] == [
        {"first": 'he said "no"', "second": "two\nlines", "score": "1.0"},
        {"first": "a", "second": "b", "score": "2"},
    ]
    assert [(row.line, row.number) for row in found] == [(2, 1), (3, 2)]


def test_a_quote_that_nothing_closes_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", '"open,' + "x" * 140_000)
    with pytest.raises(UserError, match=r"x.csv, line 1: field larger"):
        list(rows(path, ("one",), quoted=True))


def test_broken_rows_are_left_out_only_where_the_release_has_some(tmp_path: Path) -> None:
    path = write(tmp_path, "x.tsv", "a\tb", "1\t2", "3", "4\t5")
    assert [row.cells["a"] for row in rows(path, skip_broken=True)] == ["1", "4"]
    with pytest.raises(UserError, match="line 3: 1 columns"):
        list(rows(path))


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_json_file_must_hold_an_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"x.json: "):
        json_tree(write(tmp_path, "x.json", text))


def test_an_empty_json_lines_file_has_no_rows(tmp_path: Path) -> None:
    assert list(rows(write(tmp_path, "x.jsonl"))) == []


def test_a_template_of_paths_names_split_language_and_parts(tmp_path: Path) -> None:
    for name in ("a/b/swh-x.val.txt", "x/train_1.csv", "c/train.csv", "swh-deu.val.txt"):
        write(tmp_path, name, "x")
    template = "**/<language>-x.{train,val}.txt or [x/]{train,val}[_<part>].{csv,tsv}"
    assert [(path.name, parts) for path, parts in matching(tmp_path, template)] == [
        ("swh-x.val.txt", {"lang": "sw", "split": "dev"}),
        ("train_1.csv", {"split": "train", "part": "1", "choice_2": "csv"}),
    ]
