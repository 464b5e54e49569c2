"""Dictionaries of three layouts are read alike, the safest translation first."""

from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.data.dictionaries.read import invert, read_dictionaries


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        stem, _, end = name.rpartition("_")
        (folder / f"{stem.replace('_', '-')}.{end}").write_text(text, encoding="utf-8")
    return folder


def test_layouts(tmp_path: Path) -> None:
    write(
        tmp_path,
        en_de_tsv="en\ttranslation\tsenses\nDog\tKöter\t1\ndog\tHund\t3\na lot\tviel\t1\ntaxi\tTaxi\t2\n",
        en_sw_tsv="en\ttranslation\ndog\tmbwa\ndon't\tusi\n",
        en_fr_txt="dog chien\ndog clebs\r\nthe\tle\n",
        de2_txt="dog\tHund\ncat\tdie Katze\n",
        README_md="dog",
        notes_txt="dog",
    )
    assert read_dictionaries(tmp_path) == {
        "de": {"dog": ("Hund", "Köter"), "cat": ("die Katze",)},
        "sw": {"dog": ("mbwa",), "don't": ("usi",)},
        "fr": {"dog": ("chien", "clebs"), "the": ("le",)},
    }


def test_a_language_has_one_spelling(tmp_path: Path) -> None:
    for name, word in (("en-iw.txt", "כלב"), ("en-HE.txt", "כלבה"), ("zh_CN2.txt", "狗")):
        (tmp_path / name).write_text(f"dog\t{word}\n", encoding="utf-8")
    assert read_dictionaries(tmp_path) == {
        "he": {"dog": ("כלבה", "כלב")},
        "zh-CN": {"dog": ("狗",)},
    }


def test_inverted() -> None:
    table = {
        "dog": ("Hund", "Rüde"),
        "hound": ("Hund",),
        "male": ("Mann", "Rüde"),
        "cat": ("die Katze",),
    }
    assert invert(table, "de") == {
        "hund": ("dog", "hound"),
        "rüde": ("dog", "male"),
        "mann": ("male",),
    }
    assert invert({"light": ("IŞIK",)}, "tr") == {"ışık": ("light",)}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("en-de.tsv", "dog\tHund\n", r"en-de\.tsv: the first line must be"),
        ("en-de.tsv", "", r"en-de\.tsv: the first line must be"),
        ("en-de.tsv", "en\ttranslation\ndog\t\n", r"en-de\.tsv, line 2: write"),
        ("en-de.tsv", "en\ttranslation\tsenses\ndog\tHund\tmany\n", r"en-de\.tsv, line 2: write"),
        ("en-de.txt", "dog Hund\ndog\n", r"en-de\.txt, line 2: write"),
        ("german.txt", "dog Hund\n", r"no dictionary; name them"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        read_dictionaries(tmp_path)


def test_what_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_dictionaries(tmp_path / "nowhere")
    (tmp_path / "de2.txt").write_bytes(b"dog\tH\xfcnd\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_dictionaries(tmp_path)
