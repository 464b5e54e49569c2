"""Every number on the page names its line of results.json, and equals it as far as it is written."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_VOID = {"br", "img", "input", "meta"}
# Where a number must say where it comes from, beside the tiles: cells and the marks of charts.
_NUMERIC = {"td", "title"}
# Written as they are; everything else is a share and written in percent.
_PLAIN = {
    *("translation_gap", "cka", "isotropy", "modality_gap", "alignment", "uniformity"),
    *("similarity", "similarity_random", "similarity_gain", "queries"),
}
_TOOLTIP = {
    "value": r": (-?[\d.]+)",
    "low": r"interval (-?[\d.]+) to",
    "high": r"to (-?[\d.]+)",
    "count": r"n = ([\d,]+)",
    "chance": r"chance ([\d.]+)",
    "untrained": r"untrained (-?[\d.]+)",
}


@dataclass(frozen=True)
class Shown:
    """A piece of text with a digit in it, and what the elements around it say about it."""

    text: str
    metric: str | None
    field: str | None
    source: str | None
    tag: str
    must_be_traced: bool


class Reader(HTMLParser):
    """Collects every text with a digit in the body of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[Shown] = []
        self.tooltips: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.stack.append((tag, dict(attrs)))
            words = dict(attrs).get("title")
            if words:
                self.tooltips.append((str(self.nearest("data-metric")), words))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.stack]
        if not re.search(r"\d", data) or "main" not in tags:
            return
        classes = {one for _, attrs in self.stack for one in (attrs.get("class") or "").split()}
        of_tile = "tile" in classes and tags[-1] == "span"
        self.shown.append(
            Shown(
                text=data.strip(),
                metric=self.nearest("data-metric"),
                field=self.nearest("data-field"),
                source=self.nearest("data-source"),
                tag=tags[-1],
                must_be_traced=bool(_NUMERIC & set(tags)) or (of_tile and "label" not in classes),
            )
        )

    def nearest(self, attribute: str) -> str | None:
        return next((a[attribute] for _, a in reversed(self.stack) if attribute in a), None)


def expected(tree: dict[str, Any], metric: str, field: str) -> float:
    """What results.json says, in the unit of the page."""
    scale = (
        1
        if field == "count" or metric.rpartition("/")[2].removesuffix("_centred") in _PLAIN
        else 100
    )
    if field in ("low", "high"):
        return scale * tree["ci95"][metric][field == "high"]
    if field == "untrained":
        return scale * tree["baselines"]["untrained"]["metrics"][metric]
    if metric.endswith("_share") and field == "value":  # `74 of 200`
        return float(tree["metrics"][metric] * tree["counts"][metric])
    part = {"value": "metrics", "count": "counts", "chance": "chance"}[field]
    return scale * tree[part][metric]


def agrees(text: str, value: float) -> bool:
    """Whether the text is the value, rounded to the digits that the text has."""
    number = text.partition(" of ")[0].replace(",", "").removesuffix("\N{NO-BREAK SPACE}%").strip()
    assert re.fullmatch(r"-?[\d.]+(e-\d+)?", number), text
    half = 0.5 * 10 ** -len(number.partition("e")[0].partition(".")[2])
    if "e-" in number:
        half *= 10 ** -int(number.partition("e-")[2])
    return abs(float(number) - value) <= half * 1.0001


@pytest.fixture(scope="module")
def tree(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "results.json").read_text())
    return tree


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    reader = Reader()
    reader.feed(page.partition("<script>")[0])
    return reader


def test_every_shown_field_equals_its_line(reader: Reader, tree: dict[str, Any]) -> None:
    traced = [one for one in reader.shown if one.field and one.tag != "title"]
    wrong = [
        one
        for one in traced
        if one.metric is None or not agrees(one.text, expected(tree, one.metric, one.field or ""))
    ]
    assert wrong == []
    assert {one.field for one in traced} == {"value", "low", "high", "chance", "untrained", "count"}
    # The list at the end of the page holds every metric once, besides the sections above it.
    assert {one.metric for one in traced if one.field == "value"} == set(tree["metrics"])


def test_no_number_stands_without_its_origin(reader: Reader, run: Path) -> None:
    numeric = [one for one in reader.shown if one.must_be_traced]
    assert len(numeric) > 5000
    assert [one for one in numeric if not (one.metric and one.field) and not one.source] == []
    for source in {one.source for one in reader.shown if one.source}:
        assert (run / source).is_file()


def test_tooltips_of_cells_and_charts_say_their_numbers(
    reader: Reader, tree: dict[str, Any]
) -> None:
    titles = [(str(one.metric), one.text) for one in reader.shown if one.tag == "title"]
    # Two directions by two protocols, accuracies, ordered pairs, layers by poolings and the feature.
    assert len(titles) == 14 * 2 * 2 + 14 * 2 + 14 * 13 + 5 * 2 + 1
    assert len(reader.tooltips) > 1000
    for metric, text in (*titles, *reader.tooltips):
        found = {field: re.search(pattern, text) for field, pattern in _TOOLTIP.items()}
        assert found["count"] and found["untrained"], text
        assert bool(found["value"]) == ((metric, text) in titles)
        assert bool(found["low"]) == (metric in tree["ci95"])
        for field, match in found.items():
            if match and (field != "high" or found["low"]):
                assert agrees(match[1], expected(tree, metric, field)), text


def test_the_check_itself_sees_what_is_wrong() -> None:
    reader = Reader()
    reader.feed("<main><table><tr><td>45.3</td></tr></table></main>")
    assert [(one.text, one.metric, one.must_be_traced) for one in reader.shown] == [
        ("45.3", None, True)
    ]
    assert agrees("45.3", 45.34) and agrees("1,000", 1000) and agrees("0.071", 0.0707)
    assert not agrees("45.3", 45.36) and not agrees("0.2", 0.26)
