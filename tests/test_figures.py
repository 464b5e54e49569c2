"""The figures of tables in docs/ that name the results they come from.

A table is preceded by `<!-- figures: FILE NAME -->`. FILE is a results.json below docs/, and NAME a metric's
name in which {row} and {column} stand for the labels of the table: the first cell of a row, or what it has in
backticks, and the same of a header cell. A cell without a number is not checked.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
_TABLE = re.compile(r"<!-- figures: (\S+) (\S+) -->\n+((?:\|.*\n)+)")


def label(cell: str) -> str:
    found = re.search(r"`(.+)`", cell)
    return found[1] if found else cell


def tables() -> Iterator[tuple[str, str, list[list[str]]]]:
    for page in sorted(DOCS.glob("*.md")):
        for file, name, text in _TABLE.findall(page.read_text(encoding="utf-8")):
            lines = [line.strip().strip("|").split("|") for line in text.splitlines()]
            yield file, name, [[cell.strip() for cell in line] for line in lines]


@pytest.mark.parametrize(("file", "name", "cells"), list(tables()))
def test_a_table_shows_what_its_results_hold(file: str, name: str, cells: list[list[str]]) -> None:
    metrics = json.loads((DOCS / file).read_text(encoding="utf-8"))["metrics"]
    header, _, *rows = cells
    checked = 0
    for row in rows:
        for column, shown in zip(header[1:], row[1:], strict=True):
            found = re.fullmatch(r"\**([+-]?\d+(?:\.(\d+))?)\**", shown)
            if found is None:
                continue
            metric = name.replace("{row}", label(row[0])).replace("{column}", label(column))
            assert metric in metrics, f"{metric}: not among the metrics of {file}"
            assert float(found[1]) == round(metrics[metric], len(found[2] or "")), metric
            checked += 1
    assert checked, f"no cell of the table of {name} has a number"


def test_some_tables_name_their_results() -> None:
    assert list(tables())
