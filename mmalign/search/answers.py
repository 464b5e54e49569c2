"""What the search page's server answers, without the wire.

    target of a GET               -> get               -> Reply: the page, a picture, found pictures
    target and length of a POST   -> check_upload      -> results wished, bytes to read
    encoded picture               -> search_by_picture -> Reply: found captions

Nothing that a client sends becomes a path on the disk: pictures have numbers, and the page's files are read
once. A request that is refused raises `Refusal`; `error` makes a reply of its sentence.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader

from mmalign.data.images import MAX_PIXELS, UndecodableImage
from mmalign.search.corpus import SearchIndex

MOST_BYTES = 10_000_000  # of a picture to search with
MOST_LETTERS = 1000  # of a text to search with
MOST_RESULTS = 100
PICTURES, CAPTIONS = 24, 3  # results of a text, and of a picture in each language

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Reply:
    """An answer as it goes over the wire."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Cache-Control": "no-store"})


class Refusal(Exception):
    """A request that is not answered: a status and one sentence for the person who sent it."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def page_files(index: SearchIndex) -> dict[str, Reply]:
    """The page with its style and script, by path."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    page = environment.get_template("search.html.j2").render(
        index=index, examples=index.examples(8), most_bytes=MOST_BYTES, most_letters=MOST_LETTERS
    )
    return {
        "/": Reply(HTTPStatus.OK, "text/html; charset=utf-8", page.encode("utf-8")),
        "/search.css": _file("search.css", "text/css; charset=utf-8"),
        "/search.js": _file("search.js", "text/javascript; charset=utf-8"),
    }


def get(index: SearchIndex, files: dict[str, Reply], target: str) -> Reply:
    """Answer a GET; `target` is path and query as they were sent.

    Raises:
        Refusal: an unknown path or picture, an empty or too long text, a wrong number of results.
    """
    path, _, query = target.partition("?")
    if path in files:
        return files[path]
    if path == "/search":
        text, k = _text(query), _wished_results(query, PICTURES)
        return _timed("pictures", lambda: index.by_text(text, k))
    number = re.fullmatch("/picture/([0-9]{1,12})", path)
    if number is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "nothing is here; the page is at /")
    return _picture(index, int(number[1]))


def check_upload(target: str, length: str | None) -> tuple[int, int]:
    """Captions wished in each language and bytes of the picture that follows, before one byte is read.

    Args:
        length: the header Content-Length.

    Raises:
        Refusal: another path than /search, a wrong number of results, no length or too large a one.
    """
    path, _, query = target.partition("?")
    if path != "/search":
        raise Refusal(HTTPStatus.NOT_FOUND, "pictures are sent to /search")
    k = _wished_results(query, CAPTIONS)
    if length is None or re.fullmatch("[0-9]{1,18}", length) is None:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the length is missing; send Content-Length")
    if int(length) > MOST_BYTES:
        sentence = f"the picture has {int(length):,} bytes; send at most {MOST_BYTES:,}"
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
    return k, int(length)


def search_by_picture(index: SearchIndex, picture: bytes, k: int) -> Reply:
    """The `k` nearest captions of each language.

    Raises:
        Refusal: not a picture that can be decoded.
    """
    try:
        return _timed("languages", lambda: index.by_picture(picture, k))
    except UndecodableImage:
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the file cannot be read as a picture; send a JPEG, PNG or WebP file of at most "
            f"{MAX_PIXELS:,} pixels",
        ) from None


def error(status: HTTPStatus, sentence: str) -> Reply:
    """`{"error": sentence}` with a status."""
    return _json(status, {"error": sentence})


def _text(query: str) -> str:
    text = parse_qs(query).get("q", [""])[0].strip()
    if not text:
        raise Refusal(HTTPStatus.BAD_REQUEST, "`q` is empty; send some words to search for")
    if len(text) > MOST_LETTERS:
        sentence = f"the text has {len(text):,} letters; send at most {MOST_LETTERS:,}"
        raise Refusal(HTTPStatus.BAD_REQUEST, sentence)
    return text


def _wished_results(query: str, default: int) -> int:
    wish = parse_qs(query).get("k", [str(default)])[0]
    if re.fullmatch("[0-9]{1,3}", wish) is None or not 1 <= int(wish) <= MOST_RESULTS:
        sentence = f"`k` must be a whole number from 1 to {MOST_RESULTS}"
        raise Refusal(HTTPStatus.BAD_REQUEST, sentence)
    return int(wish)


def _picture(index: SearchIndex, number: int) -> Reply:
    if number >= len(index):
        sentence = f"there is no picture {number}; the last one is {len(index) - 1}"
        raise Refusal(HTTPStatus.NOT_FOUND, sentence)
    data = index.read_picture(number)
    # Tomorrow another set may be served here: a browser keeps the picture, but asks whether it still holds.
    tag = hashlib.blake2b(data, digest_size=16).hexdigest()
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{tag}"'}
    return Reply(HTTPStatus.OK, _picture_kind(data), data, headers)


def _picture_kind(data: bytes) -> str:
    """The media type that the first bytes tell."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _timed(name: str, find: Callable[[], Any]) -> Reply:
    """What `find` returns as JSON under `name`, with the time that it took."""
    started = time.perf_counter()
    found = find()
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    return _json(HTTPStatus.OK, {"milliseconds": milliseconds, name: found})


def _json(status: HTTPStatus, tree: dict[str, Any]) -> Reply:
    return Reply(status, "application/json", json.dumps(tree, allow_nan=False).encode("ascii"))


def _file(name: str, kind: str) -> Reply:
    return Reply(HTTPStatus.OK, kind, (_TEMPLATES / name).read_bytes())
