"""The section of words by layer: every number on it leads back to its metric."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from invented_run import SHA256, write_run

from mmalign.report.lexical_section import lexical_plots
from mmalign.report.measurement import is_share, look_up, shown
from mmalign.report.page import write_report
from mmalign.results.collect import collect
from mmalign.results.results import Results

LAYERS = ("0", "1", "2", "10", "feature")
METRICS = ("similarity", "similarity_random", "similarity_gain", "precision@1", "csls@1")


def invented(injected: bool = True) -> Results:
    """Results with the names of real ones; the numbers are drawn."""
    rng = np.random.default_rng(3)
    results = Results(suite="lexical", model={"path": "runs/demo", "sha256": SHA256, "step": 400})
    for measure in ("lexical", "injected")[: 1 + injected]:
        for lang in ("ee", "sw", "mean"):
            for layer in LAYERS:
                for split in ("trained", "held_out"):
                    for metric in METRICS:
                        for suffix in ("", "_centred"):
                            name = f"{measure}/words/{lang}/{layer}/{split}/{metric}{suffix}"
                            results.add(
                                name, rng.random() - 0.1 * (metric == "similarity_gain"), 90, 0.01
                            )
    results.protocol["lexical/words"] = "Invented."
    return results


class Cells(HTMLParser):
    """(metric, field, text) of every cell and every mark of the section."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.depth = 0
        self.open: list[dict[str, str | None]] = []
        self.found: list[tuple[str, str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.inside = dict(attrs).get("id") == "lexical"
        self.open.append({"tag": tag, **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = [one["tag"] for one in self.open]
        if self.inside and re.search(r"\d", data) and {"td", "title"} & set(tags):
            of = {key: value for one in self.open for key, value in one.items() if value}
            self.found.append((str(tags[-1]), of["data-metric"], of["data-field"], data.strip()))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, str]:
    run = write_run(tmp_path_factory.mktemp("runs") / "demo", ["en", "sw", "ee"], pictures=50)
    invented().write(run / "finetune" / "words" / "results.json")
    write_report(run, run / "report.html")
    return collect(run), (run / "report.html").read_text(encoding="utf-8")


def test_every_number_of_the_section_is_that_of_its_metric(page: tuple[Results, str]) -> None:
    results, text = page
    reader = Cells()
    reader.feed(text.partition("<script>")[0])
    cells = [one for one in reader.found if one[0] != "title"]
    titles = [one for one in reader.found if one[0] == "title"]
    # Two metrics, two splits, three states, chance and count; marks leave centred trained words out.
    assert len(cells) == len(LAYERS) * (2 * 2 * 3 + 2)
    assert len(titles) == len(LAYERS) * 2 * 5
    for _, metric, field, shown_text in cells:
        measured = look_up(results, metric)
        assert measured is not None and shown_text == shown(measured, field), metric
    for _, metric, _, words in titles:
        measured = look_up(results, metric)
        assert measured is not None and f": {shown(measured)}" in words
        assert (" %" in words.partition("·")[0]) == is_share(metric)
        layer = metric.split("/")[3]
        assert words.startswith(f"layer {layer}," if layer.isdigit() else "feature,")


def test_before_and_after_and_centring_have_columns_of_their_own(page: tuple[Results, str]) -> None:
    (plot,) = lexical_plots(page[0])
    groups = [name for name, _ in plot.table.groups]
    assert groups == ["as it is", "mean-centring only", "injected", ""]
    assert [row.part for row in plot.table.rows] == list(LAYERS)
    names = {one.name for row in plot.table.rows for cell in row.cells for one in cell}
    assert "lexical/words/mean/10/held_out/precision@1_centred" in names
    assert "injected/words/mean/feature/trained/similarity_gain" in names
    assert plot.is_injected and "solid: after the injection" in page[1]
    assert '<a href="#lexical">' in page[1]


def test_a_probe_alone_has_no_injection(tmp_path: Path) -> None:
    (plot,) = lexical_plots(invented(injected=False))
    assert [name for name, _ in plot.table.groups] == ["as it is", "mean-centring only", ""]
    assert not plot.is_injected and "injected" not in plot.chart
    assert lexical_plots(Results(suite="", model={})) == []


def test_the_same_results_give_the_same_bytes() -> None:
    assert lexical_plots(invented())[0].chart == lexical_plots(invented())[0].chart
