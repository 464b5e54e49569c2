"""The figures of tables in docs/ that name the results they come from.

A table is preceded by `<!-- figures: FILE NAME -->`. FILE is a results.json below docs/, and NAME a metric's
name in which {row} and {column} stand for the labels of the table: the first cell of a row, or what it has in
backticks, and the same of a header cell. A cell without a number is not checked.

`<!-- comparisons: FILE -->` precedes a table of a study's headline: a row per task, a column per other tower,
and in a cell the difference in points, its interval and p after Holm's correction.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
_TABLE = re.compile(r"<!-- figures: (\S+) (\S+) -->\n+((?:\|.*\n)+)")
_COMPARISONS = re.compile(r"<!-- comparisons: (\S+)() -->\n+((?:\|.*\n)+)")
_DIFFERENCE = re.compile(r"\**(\S+)\** \((\S+) to (\S+)\), p = (\S+)")


def label(cell: str) -> str:
    found = re.search(r"`(.+)`", cell)
    return found[1] if found else cell


def tables(pattern: re.Pattern[str] = _TABLE) -> Iterator[tuple[str, str, list[list[str]]]]:
    for page in sorted(DOCS.glob("*.md")):
        for file, name, text in pattern.findall(page.read_text(encoding="utf-8")):
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


@pytest.mark.parametrize(("file", "_", "cells"), list(tables(_COMPARISONS)))
def test_a_table_shows_the_comparisons_of_a_study(
    file: str, _: str, cells: list[list[str]]
) -> None:
    tree = json.loads((DOCS / file).read_text(encoding="utf-8"))
    headline = {
        (one["task"], one["right"][0]): one
        for one in tree["comparisons"]
        if one["kind"] == "headline" and one["primary"] and one["metric"].startswith("clean/")
    }
    header, _separator, *rows = cells
    for row in rows:
        for column, shown in zip(header[1:], row[1:], strict=True):
            found = _DIFFERENCE.fullmatch(shown)
            assert found, shown
            one = headline[label(row[0]), label(column)]
            points = [100 * value for value in (one["difference"], *one["ci95"])]
            assert [float(value) for value in found.groups()[:3]] == [round(v, 1) for v in points]
            assert found[4] == f"{one['p_holm']:.2g}"


def test_some_tables_name_their_results() -> None:
    assert list(tables()) and list(tables(_COMPARISONS))
