"""The page in a real browser: no errors, no requests; tables are sorted, filtered and printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_browser

pytestmark = needs_browser
_HEADING = "#retrieval thead tr:nth-child(2) th:nth-child(3)"  # recall@1, text to image
_COLUMN = (
    "[...document.querySelector('#retrieval tbody.rows').rows]"
    ".map(row => row.querySelector('[data-metric$=\"text_to_image/recall@1\"]').firstChild.data * 1)"
)


@pytest.fixture(scope="module")
def browser(run: Path) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open((run / "report.html").as_uri())
        yield browser


def test_nothing_fails_and_nothing_is_requested(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    browser.screenshot(tmp_path / "wide.png")
    browser.resize(400, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") == 400
    browser.screenshot(tmp_path / "phone.png")
    browser.resize(1200, 900)
    browser.pdf(tmp_path / "print.pdf")
    assert browser.console_errors == [] and browser.failed_requests == []
    assert browser.requests == [(run / "report.html").as_uri()]


def test_a_column_sorts_by_mouse_and_by_keyboard(browser: Browser) -> None:
    before = browser.evaluate(_COLUMN)
    mean = "document.querySelector('#retrieval tbody.means th').textContent"
    browser.click(f"{_HEADING} button")
    assert browser.evaluate(_COLUMN) == sorted(before, reverse=True) != before
    state = f"document.querySelector('{_HEADING}').ariaSort"
    assert browser.evaluate(state) == "descending"
    browser.evaluate(f"document.querySelector('{_HEADING} button').focus()")
    browser.press("Enter")
    assert browser.evaluate(_COLUMN) == sorted(before) and browser.evaluate(state) == "ascending"
    browser.click("#retrieval thead tr:nth-child(2) th:first-child button")
    names = "[...document.querySelector('#retrieval tbody.rows').rows].map(row => row.cells[0].innerText)"
    assert browser.evaluate(names) == sorted(browser.evaluate(names))
    assert browser.evaluate(state) is None and browser.evaluate(mean) == "mean"


def test_a_long_table_is_filtered_and_printed_completely(browser: Browser) -> None:
    browser.evaluate(
        "document.querySelectorAll('#metrics, #metrics details').forEach(d => d.open = true)"
    )
    browser.type("#metrics .filter input", "ar-fa/bitext@1")
    table = "document.querySelector('#metrics .filter + .scroll tbody.rows')"
    shown = f"[...{table}.rows].filter(row => row.checkVisibility()).length"
    assert browser.evaluate(shown) == 1
    count = browser.evaluate("document.querySelector('#metrics .filter output').value")
    assert count.startswith("1 of ")
    browser.command("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("!document.querySelector('.filter').checkVisibility()")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelector('#config').open")
    browser.command("Emulation.setEmulatedMedia", media="")
