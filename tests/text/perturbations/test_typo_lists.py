"""Misspellings come from the list of the language and keep the case of the word."""

from pathlib import Path

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.text.perturbations.typo_lists import misspell, read_typos


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_both_layouts(tmp_path: Path) -> None:
    write(tmp_path, "en.txt", "teh->the\nthier->their, there\n\r\n")
    write(tmp_path, "de.tsv", "correct\tmisspelling\nWeihnachten\tWeinachten\tWeihnachen\r\n")
    assert read_typos(tmp_path, "en") == {"the": ("teh",), "their": ("thier",), "there": ("thier",)}
    assert read_typos(tmp_path, "de-AT") == {"weihnachten": ("Weinachten", "Weihnachen")}
    assert read_typos(tmp_path, "sw") is None


@pytest.mark.parametrize("line", ["the", "->the", "teh->", "the\t", "teh->the,", "the\t\tteh"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path, "en.txt", f"wich->which\n{line}\n")
    with pytest.raises(UserError, match=r"en\.txt, line 2: write"):
        read_typos(tmp_path, "en")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        read_typos(tmp_path / "nowhere", "en")


def test_known_words_are_misspelt_in_their_case() -> None:
    typos = {"the": ("teh",), "which": ("wich", "whcih")}
    noisy = misspell("The dog, which THE cat saw", np.random.default_rng(0), 1.0, typos, "en")
    assert noisy in ("Teh dog, wich TEH cat saw", "Teh dog, whcih TEH cat saw")
    few = misspell("The dog, the cat", np.random.default_rng(0), 0.01, typos, "en")
    assert few in ("Teh dog, the cat", "The dog, teh cat")
    assert misspell("dog", np.random.default_rng(0), 1.0, typos, "en") == "dog"


def test_a_list_is_found_under_any_spelling_of_its_language(tmp_path: Path) -> None:
    write(tmp_path, "zh_Hant.txt", "b->a\n")
    write(tmp_path, "IW.tsv", "a\tb\n")
    assert read_typos(tmp_path, "zh-Hant") == read_typos(tmp_path, "he") == {"a": ("b",)}
    write(tmp_path, "he.txt", "b->a\n")
    with pytest.raises(UserError, match=r"he\.txt: a second list of `he`, beside .*IW\.tsv"):
        read_typos(tmp_path, "he")
