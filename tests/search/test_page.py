"""The page in a real browser: words, images, keyboard, other directions, and what a screen reader needs."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_browser
from search.search_cases import IMAGES
from shard_sets import make_image

from mmalign.search.corpus import SearchIndex
from mmalign.search.server import SearchServer

pytestmark = needs_browser
SHOWN = "document.querySelectorAll('.pictures > li').length"
GROUPS = "document.querySelectorAll('.language').length"
STATUS = "document.getElementById('status').textContent"
FOCUS = "document.activeElement.id || document.activeElement.textContent"
# An image as a file that is let fall on the page, or pasted into it.
GIVE = """(() => {
  const bytes = Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], 'mine.png', {type: 'image/png'}));
  document.body.dispatchEvent(new %s('%s', {%s: data, bubbles: true, cancelable: true}));
})()"""


@pytest.fixture
def browser(server: SearchServer) -> Iterator[Browser]:
    """The page, open; whatever a test does, nothing fails and nothing comes from elsewhere."""
    with Browser() as one:
        one.open(server.url)
        yield one
        assert one.console_errors == []
        assert one.failed_requests == []
        own = (server.url, f"blob:{server.url}")
        assert [url for url in one.requests if not url.startswith(own)] == []


def give(image: bytes, event: str) -> str:
    kind, field = {
        "drop": ("DragEvent", "dataTransfer"),
        "paste": ("ClipboardEvent", "clipboardData"),
    }[event]
    return GIVE % (base64.b64encode(image).decode(), kind, event, field)


def test_words_find_images(browser: Browser, index: SearchIndex, tmp_path: Path) -> None:
    browser.type("#q", "en 4 dog")
    browser.click("button.main")
    assert browser.wait_for(SHOWN) == IMAGES
    images = [one["picture"] for one in index.by_text("en 4 dog", 24)]
    addresses = browser.evaluate(
        "[...document.querySelectorAll('.pictures img')].map((i) => i.src)"
    )
    assert [int(url.rpartition("/")[2]) for url in addresses] == images
    assert "8 images in" in browser.evaluate(STATUS) and " ms" in browser.evaluate(STATUS)
    assert browser.evaluate("location.search") == "?q=en+4+dog"
    assert browser.evaluate("document.querySelector('.track i').style.width").endswith("%")
    browser.screenshot(tmp_path / "words.png")
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


def test_an_address_can_be_shared_and_gone_back_to(browser: Browser, server: SearchServer) -> None:
    browser.open(f"{server.url}?q=en%204%20dog&lang=ar")
    browser.wait_for(SHOWN)
    assert browser.evaluate("document.getElementById('q').value") == "en 4 dog"
    assert browser.evaluate("document.getElementById('lang').value") == "ar"
    browser.click("button.more")
    browser.wait_for(GROUPS)
    assert "picture=" in browser.evaluate("location.search")
    browser.evaluate("history.back()")
    assert browser.wait_for(SHOWN) == IMAGES


def test_the_keyboard_is_enough(browser: Browser) -> None:
    browser.press("Tab")
    assert browser.evaluate(FOCUS) == "q"
    browser.press("x")
    browser.press("Enter")
    browser.wait_for(SHOWN)
    assert browser.evaluate(FOCUS) == "q"
    order = []
    for _ in range(5):
        browser.press("Tab")
        order.append(browser.evaluate(FOCUS))
        outline = "getComputedStyle(document.activeElement.id === 'file' ? "
        outline += (
            "document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        assert browser.evaluate(outline) == "solid"
    assert order == ["Search", "file", "lang", "source", "Search with this image"]
    browser.press("Enter")
    browser.wait_for(GROUPS)
    assert (
        browser.evaluate(FOCUS) == "found-title"
    )  # the button is gone: reading goes on at the answer
    browser.press("Tab")
    browser.press("Enter")  # the first caption
    browser.wait_for(SHOWN)
    assert browser.evaluate("document.getElementById('q').value").startswith("ar ")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_an_image_of_ones_own_finds_captions(
    browser: Browser, index: SearchIndex, event: str
) -> None:
    browser.evaluate(give(make_image(5), event))
    assert browser.wait_for(GROUPS) == 3
    shown = browser.evaluate(
        "[...document.querySelectorAll('.language a')].map((a) => a.textContent)"
    )
    by_language = {one["lang"]: one["captions"] for one in index.by_image(make_image(5), 3)}
    by_name = [by_language[lang] for lang in ("ar", "en", "ja")]  # Arabic, English, Japanese
    assert shown == [caption["text"] for captions in by_name for caption in captions]
    assert "captions in 3 languages" in browser.evaluate(STATUS)
    assert browser.evaluate("document.querySelector('.asked img').naturalWidth") == 16


def test_images_and_captions_of_one_source(browser: Browser, index: SearchIndex) -> None:
    choose = (
        "const s = document.getElementById('source'); s.value = 'web'; "
        "s.dispatchEvent(new Event('change'))"
    )
    browser.evaluate(give(make_image(5), "drop"))
    browser.wait_for(GROUPS)
    before = "document.querySelectorAll('.language a').length"
    all_captions = browser.evaluate(before)
    browser.evaluate(choose)
    browser.wait_for(f"{before} < {all_captions} && {before}")
    found = index.by_image(make_image(5), 3, source="web")
    assert browser.evaluate(before) == sum(len(one["captions"]) for one in found)
    assert browser.evaluate("document.querySelector('.asked img').naturalWidth") == 16
    browser.type("#q", "dog")
    browser.click("button.main")
    assert browser.wait_for(SHOWN) == IMAGES // 2


def test_captions_of_one_language(browser: Browser) -> None:
    browser.evaluate(give(make_image(5), "drop"))
    browser.wait_for(GROUPS)
    choose = "const s = document.getElementById('lang'); s.value = 'ar'; s.dispatchEvent(new Event('change'))"
    browser.evaluate(choose)
    assert browser.evaluate(GROUPS) == 1
    assert browser.evaluate("document.querySelector('.language .name').textContent") == "Arabic"
    assert browser.evaluate("location.search") == "?lang=ar"


def test_captions_say_their_language_and_direction(browser: Browser) -> None:
    browser.type("#q", "قطة وكلب")
    assert browser.evaluate("getComputedStyle(document.getElementById('q')).direction") == "rtl"
    browser.press("Enter")
    browser.wait_for(SHOWN)
    said = "[...document.querySelectorAll('.said')]"
    assert set(browser.evaluate(f"{said}.map((e) => e.lang)")) == {"ar", "en", "ja"}
    assert browser.evaluate(f"{said}.every((e) => e.dir === 'auto')")


def test_what_went_wrong_is_said(browser: Browser) -> None:
    browser.press("Tab")
    browser.press("Enter")
    alert = "document.querySelector('[role=alert]').textContent"
    assert browser.evaluate(alert) == "Type some words to search for."
    browser.evaluate("askFile(new File([new Uint8Array(1.1e7)], 'large.png'))")
    assert "choose one of at most 10,000,000" in browser.evaluate(alert)
    browser.evaluate(give(b"no image", "drop"))
    browser.wait_for(f"{alert}.startsWith('The file cannot be read as an image; send a JPEG')")
    # The browser reports any 4xx as an error of its own.
    assert len(browser.console_errors) == 1 and "422" in browser.console_errors.pop()
    browser.type("#q", "dog")
    browser.press("Enter")
    browser.wait_for(SHOWN)
    assert browser.evaluate(alert) == ""


def test_a_screen_reader_finds_names_for_everything(browser: Browser) -> None:
    browser.type("#q", "dog")
    browser.press("Enter")
    browser.wait_for(SHOWN)
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    fields = "[...document.querySelectorAll('input, select')]"
    assert browser.evaluate(f"{fields}.every((field) => field.labels.length === 1)")
    assert browser.evaluate("[...document.images].every((image) => image.alt.length > 0)")
    named = (
        "[...document.querySelectorAll('button, a, summary')].filter((e) => e.checkVisibility())"
    )
    assert browser.evaluate(
        f"{named}.every((e) => (e.ariaLabel ?? e.textContent).trim().length > 0)"
    )
    ids = "[...document.querySelectorAll('[id]')].map((e) => e.id)"
    assert browser.evaluate(f"new Set({ids}).size === {ids}.length")
    for part in ("main", "[role=search]", "[role=status]", "[role=alert]"):
        assert browser.evaluate(f"document.querySelectorAll('{part}').length") == 1


def test_a_phone_need_not_scroll_sideways(browser: Browser, tmp_path: Path) -> None:
    browser.resize(360, 740)
    browser.type("#q", "dog")
    browser.press("Enter")
    browser.wait_for(SHOWN)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    browser.evaluate(give(make_image(5), "drop"))
    browser.wait_for(GROUPS)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    browser.screenshot(tmp_path / "phone.png")
