"""The browser of the tests records errors and blocked requests, clicks and types."""

from pathlib import Path

from browser import Browser, needs_browser

PAGE = """<!DOCTYPE html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'">
<button onclick="document.title = 'clicked'">go</button><input>
<img src="https://example.org/x.png">
<script>console.error("said so"); setTimeout(() => { throw new Error("thrown") })</script>"""


@needs_browser
def test_a_page_is_read_clicked_and_watched(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGE, encoding="utf-8")
    with Browser() as browser:
        browser.open(path.as_uri())
        assert browser.evaluate("1 + 1") == 2
        browser.click("button")
        assert browser.wait_for("document.title") == "clicked"
        browser.type("input", "قطة")
        browser.press("x")
        assert browser.evaluate("document.querySelector('input').value") == "قطةx"
        browser.screenshot(tmp_path / "page.png")
        browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    errors = "\n".join(browser.console_errors)
    assert "said so" in errors and "thrown" in errors and "Content Security Policy" in errors
    assert browser.requests[0] == path.as_uri()
    assert browser.failed_requests == ["https://example.org/x.png: csp"]
