"""One invented run and its page, which the tests of the page share."""

from pathlib import Path

import pytest
from invented_run import LANGUAGES, write_run

from mmalign.report.page import write_report
from mmalign.results.collect import collect


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every measure, its merged results.json and report.html."""
    run = write_run(tmp_path_factory.mktemp("runs") / "demo", LANGUAGES)
    collect(run).write(run / "results.json")
    write_report(run, run / "report.html")
    return run


@pytest.fixture(scope="session")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")
