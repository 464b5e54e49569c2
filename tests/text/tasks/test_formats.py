"""Published sets in their publishers' layouts: the small files of format_cases.yaml become their examples."""

from pathlib import Path
from typing import Any

import pytest

from mmalign.core.config import read_yaml
from mmalign.core.errors import UserError
from mmalign.text.tasks.formats import LAYOUTS, read
from mmalign.text.tasks.task import Answer, Example, Splits

CASES = read_yaml(Path(__file__).with_name("format_cases.yaml"))


def write(folder: Path, case: dict[str, Any]) -> Path:
    for name, text in case["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def expected(case: dict[str, Any]) -> Splits:
    splits: Splits = {}
    for split, of, name, lang, texts, target in case["expected"]:
        if isinstance(target, list):
            target = tuple(Answer(**one) if isinstance(one, dict) else one for one in target)
        splits.setdefault((split, of), []).append(Example(name, lang, tuple(texts), target))
    return splits


@pytest.mark.parametrize("case", CASES["examples"], ids=lambda case: case["format"])
def test_files_become_examples(tmp_path: Path, case: dict[str, Any]) -> None:
    kind, splits = read(case["format"], write(tmp_path, case))
    assert (kind, splits) == (case["kind"], expected(case))
    if case["format"] == "lareqa":  # one pool, which is embedded once
        assert splits["candidates", "en"] is splits["candidates", "de"]


@pytest.mark.parametrize("case", CASES["refused"], ids=lambda case: case["format"])
def test_a_broken_file_is_named(tmp_path: Path, case: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=case["message"]):
        read(case["format"], write(tmp_path, case))


def test_every_format_has_a_case() -> None:
    # MECI has a test file of its own; the tasks of AdvGLUE differ in their columns only.
    elsewhere = {"meci", "adv_mnli", "adv_qnli", "adv_qqp", "adv_rte"}
    assert {case["format"] for case in CASES["examples"]} | elsewhere == set(LAYOUTS)


def test_a_folder_without_the_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    for name in LAYOUTS:
        with pytest.raises(UserError, match="looked for "):
            read(name, tmp_path)
        with pytest.raises(UserError, match="no such task folder"):
            read(name, tmp_path / "missing")
