"""The server answers what the index says, and says in one sentence why it refuses."""

import json
import signal
import socket
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from search.search_cases import PICTURES, make_index, request, request_json, serving
from shard_sets import make_image

from mmalign.core.errors import UserError
from mmalign.search.answers import MOST_BYTES
from mmalign.search.corpus import SearchIndex
from mmalign.search.server import SearchServer, serve


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    return make_index(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def server(index: SearchIndex) -> Iterator[SearchServer]:
    with serving(index) as one:
        yield one


def test_a_text_is_answered_with_pictures(server: SearchServer, index: SearchIndex) -> None:
    status, answer = request_json(server, "GET", f"/search?q={quote('犬 & ñ')}&k=3")
    assert status == 200 and answer["milliseconds"] >= 0
    assert answer["pictures"] == index.by_text("犬 & ñ", 3)


def test_a_picture_is_answered_with_captions(server: SearchServer, index: SearchIndex) -> None:
    status, answer = request_json(server, "POST", "/search?k=2", body=make_image(3))
    assert status == 200
    assert answer["languages"] == index.by_picture(make_image(3), 2)


def test_many_at_once_are_answered_like_one(server: SearchServer, index: SearchIndex) -> None:
    texts = [f"dog {number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda t: request_json(server, "GET", f"/search?q={quote(t)}"), texts)
        )
    assert [one["pictures"] for _, one in answers] == [index.by_text(t, 24) for t in texts]


@pytest.mark.parametrize(("number", "kind"), [(0, "png"), (1, "jpeg"), (2, "webp")])
def test_pictures_come_as_they_are_stored(
    server: SearchServer, index: SearchIndex, number: int, kind: str
) -> None:
    response, body = request(server, "GET", f"/picture/{number}")
    assert (response.status, body) == (200, index.read_picture(number))
    assert response.headers["Content-Type"] == f"image/{kind}"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    known = {"If-None-Match": response.headers["ETag"]}
    response, body = request(server, "GET", f"/picture/{number}", headers=known)
    assert (response.status, body) == (304, b"")


def test_the_page_and_its_files_allow_nothing_from_outside(server: SearchServer) -> None:
    for target, kind in (("/", "html"), ("/search.css", "css"), ("/search.js", "javascript")):
        response, body = request(server, "GET", target)
        assert response.status == 200 and body
        assert kind in response.headers["Content-Type"]
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    page = request(server, "GET", "/?q=whatever")[1]
    assert b"<script>" not in page and b"style=" not in page


@pytest.mark.parametrize(
    ("method", "target", "headers", "status", "says"),
    [
        ("GET", "/search", {}, 400, "`q` is empty"),
        ("GET", "/search?q=+%20", {}, 400, "`q` is empty"),
        ("GET", f"/search?q={'x' * 1001}", {}, 400, "1,001 letters"),
        ("GET", f"/search?q={'x' * 70_000}", {}, 414, "URI Too Long"),
        ("GET", "/search?q=x&k=0", {}, 400, "from 1 to 100"),
        ("GET", "/search?q=x&k=²", {}, 400, "from 1 to 100"),
        ("GET", "/picture/8", {}, 404, "the last one is 7"),
        ("GET", "/picture/-1", {}, 404, "nothing is here"),
        ("GET", "/picture/../../../etc/passwd", {}, 404, "nothing is here"),
        ("GET", "/..%2f..%2fetc/passwd", {}, 404, "nothing is here"),
        ("GET", "//[", {}, 404, "nothing is here"),
        ("GET", "/search.html.j2", {}, 404, "nothing is here"),
        ("GET", "/", {"Host": "evil.example"}, 421, "does not answer to that name; open http"),
        ("GET", "/picture/0", {"Host": "127.0.0.1:1"}, 421, "does not answer to that name"),
        ("POST", "/", {"Content-Length": "0"}, 404, "sent to /search"),
        ("POST", "/search", {"Content-Length": "-1"}, 411, "Content-Length"),
        ("POST", "/search", {"Transfer-Encoding": "chunked"}, 411, "Content-Length"),
        ("POST", "/search", {"Content-Length": str(MOST_BYTES + 1)}, 413, "10,000,001 bytes"),
        ("PUT", "/search", {}, 501, "Not Implemented"),
    ],
)
def test_what_is_refused_is_told_in_a_sentence(
    server: SearchServer, method: str, target: str, headers: dict[str, str], status: int, says: str
) -> None:
    target = quote(target, safe="/?=&+%[.")
    told, answer = request_json(server, method, target, headers=headers)
    assert told == status
    assert says in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize("body", [b"", b"no picture", make_image(0)[:40], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(server: SearchServer, body: bytes) -> None:
    status, answer = request_json(server, "POST", "/search", body=body)
    assert status == 422
    assert answer["error"].startswith("the file cannot be read as a picture; send a JPEG")


def test_a_broken_first_line_ends_nothing(server: SearchServer) -> None:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b"does not take this request" in connection.recv(10_000)
    assert request(server, "GET", "/")[0].status == 200


def test_a_failure_inside_is_no_silence(
    server: SearchServer, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "by_text", lambda text, k: 1 / 0)
    status, answer = request_json(server, "GET", "/search?q=x")
    assert (status, "the terminal" in answer["error"]) == (500, True)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_this_machines_own_names_are_answered(server: SearchServer, name: str) -> None:
    host = f"{name}:{server.server_address[1]}"
    assert request(server, "GET", "/", headers={"Host": host})[0].status == 200


def test_open_to_everybody_any_name_is_answered(index: SearchIndex) -> None:
    with serving(index, "0.0.0.0") as server:
        assert request(server, "GET", "/", headers={"Host": "box.example"})[0].status == 200


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_it_and_the_address_was_told(
    index: SearchIndex, capsys: pytest.CaptureFixture[str], ctrl_c_is_heard: None
) -> None:
    told: list[str] = []

    def ready(url: str) -> None:
        told.append(url)
        threading.Timer(0.2, interrupt_main).start()

    serve(index, "0.0.0.0", 0, ready)
    assert told[0].partition("://")[2].startswith("0.0.0.0:")
    assert capsys.readouterr().out.startswith("warning: everybody who reaches 0.0.0.0")


def test_a_port_that_is_taken_is_told(server: SearchServer, index: SearchIndex) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1.*--port"):
        SearchServer(index, "127.0.0.1", server.server_address[1])


def test_answers_are_plain_numbers(server: SearchServer) -> None:
    _, answer = request_json(server, "GET", "/search?q=dog")
    assert len(answer["pictures"]) == PICTURES
    assert "NaN" not in json.dumps(answer)
