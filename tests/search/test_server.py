"""The server answers what the index finds, and says in one sentence why it refuses."""

import contextlib
import importlib
import io
import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from PIL import Image
from search.search_cases import request, request_json, serving
from shard_sets import make_image

from mmalign.core.errors import UserError
from mmalign.search import server as server_module
from mmalign.search.corpus import SearchIndex
from mmalign.search.server import MOST_BYTES, MOST_CONNECTIONS, SearchServer, listen, serve


def test_texts_and_images_are_answered(server: SearchServer, index: SearchIndex) -> None:
    status, answer = request_json(server, "GET", f"/search?q={quote('犬 & ñ')}&k=3")
    assert status == 200 and answer["milliseconds"] >= 0
    assert answer["pictures"] == index.by_text("犬 & ñ", 3)
    assert "NaN" not in json.dumps(answer)
    status, answer = request_json(server, "POST", "/search?k=2", body=make_image(3))
    assert (status, answer["languages"]) == (200, index.by_image(make_image(3), 2))


def test_a_language_and_a_source_narrow_the_answer(
    server: SearchServer, index: SearchIndex
) -> None:
    _, answer = request_json(server, "GET", "/search?q=dog&lang=ja&source=web")
    assert answer["pictures"] == index.by_text("dog", 24, "ja", "web")
    assert 0 < len(answer["pictures"]) < len(index.by_text("dog", 24))
    for one in answer["pictures"]:
        assert "ja" in {caption["lang"] for caption in one["captions"]}
    _, answer = request_json(server, "POST", "/search?lang=ja&source=web", body=make_image(3))
    assert [one["lang"] for one in answer["languages"]] == ["ja"]
    for query, sentence in (
        ("lang=fr", "language `fr` is not in the index; it has ar, en, ja"),
        ("source=x", "source `x` is not in the index; it has books, web"),
    ):
        assert request_json(server, "GET", f"/search?q=dog&{query}") == (400, {"error": sentence})


def test_many_at_once_are_answered_like_one(server: SearchServer, index: SearchIndex) -> None:
    texts = [f"dog {number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda t: request_json(server, "GET", f"/search?q={quote(t)}"), texts)
        assert [one["pictures"] for _, one in answers] == [index.by_text(t, 24) for t in texts]


@pytest.mark.parametrize(("number", "kind"), [(0, "png"), (1, "jpeg"), (2, "webp")])
def test_images_come_as_they_are_stored(
    server: SearchServer, index: SearchIndex, number: int, kind: str
) -> None:
    response, body = request(server, "GET", f"/picture/{number}")
    assert (response.status, body) == (200, index.read_image(number))
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
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    page = request(server, "GET", "/?q=whatever")[1]
    assert b"<script>" not in page and b"style=" not in page


@pytest.mark.parametrize(
    ("method", "target", "headers", "status", "says"),
    [
        ("GET", "/search", {}, 400, "`q` is empty"),
        ("GET", "/search?q=+%20", {}, 400, "`q` is empty"),
        ("GET", f"/search?q={'x' * 1001}", {}, 400, "1,001 letters"),
        ("GET", "/search?q=x&k=0", {}, 400, "from 1 to 100"),
        ("GET", "/search?q=x&k=²", {}, 400, "from 1 to 100"),
        ("GET", "/picture/8", {}, 404, "the last one is 7"),
        ("GET", "/picture/-1", {}, 404, "the last one is 7"),
        ("GET", f"/picture/{'9' * 5000}", {}, 404, "the last one is 7"),
        ("GET", "/picture/../../../etc/passwd", {}, 404, "Not Found"),
        ("GET", "/..%2f..%2fetc/passwd", {}, 404, "Not Found"),
        ("GET", "/search.html.j2", {}, 404, "Not Found"),
        ("POST", "/search", {"Transfer-Encoding": "chunked"}, 411, "Content-Length"),
        ("POST", "/search", {"Content-Length": str(MOST_BYTES + 1)}, 413, "10,000,001 bytes"),
        ("PUT", "/search", {}, 405, "Method Not Allowed"),
        ("GET", "/search?q=x", {"Origin": "http://evil.example"}, 403, "no other site"),
        ("POST", "/search", {"Origin": "null", "Content-Length": "0"}, 403, "no other site"),
        ("POST", "/search", {"Origin": "http://evil.example"}, 403, "no other site"),
        ("POST", "/search", {"Origin": "https://localhost"}, 403, "no other site"),
    ],
)
def test_a_refusal_is_one_sentence(
    server: SearchServer, method: str, target: str, headers: dict[str, str], status: int, says: str
) -> None:
    target = quote(target, safe="/?=&+%[.")
    found, answer = request_json(server, method, target, headers=headers)
    assert found == status
    assert says in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize("body", [b"", b"no image", make_image(0)[:40], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(server: SearchServer, body: bytes) -> None:
    status, answer = request_json(server, "POST", "/search", body=body)
    assert status == 422
    assert answer["error"].startswith("the file cannot be read as an image; send a JPEG")


def odd_exif(tag: int, kind: int) -> bytes:
    """EXIF that turns the image, and has one tag of a type that it should not have."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", tag, kind, 1, 38)
    head = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2)
    return head + entries + struct.pack(">III", 0, 2, 1)


@pytest.mark.parametrize("kind", range(1, 13))
def test_an_image_with_odd_exif_is_answered(server: SearchServer, kind: int) -> None:
    for tag in (0x0128, 0x011A, 0x0132, 0x8769, 0x9286):  # 0x0128, 5: ResolutionUnit as RATIONAL
        file = io.BytesIO()
        Image.new("RGB", (8, 4), "red").save(file, "JPEG", exif=odd_exif(tag, kind))
        status, answer = request_json(server, "POST", "/search", body=file.getvalue())
        assert status == 200 or (status == 422 and answer["error"]), (tag, answer)


def test_a_broken_first_line_ends_nothing(server: SearchServer) -> None:
    with socket.create_connection(server.listener.getsockname(), timeout=10) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b" 400 " in connection.recv(10_000)
    assert request(server, "GET", "/")[0].status == 200


def raw(server: SearchServer, *requests: bytes) -> list[bytes]:
    """All that the server answers to each on a connection of its own, until it closes them or is silent."""
    address, answers = server.listener.getsockname(), []
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(address)) for _ in requests]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        silent_at = time.monotonic() + 3
        for connection in connections:
            answered = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while True:
                    connection.settimeout(max(0.1, silent_at - time.monotonic()))
                    if not (part := connection.recv(100_000)):
                        break
                    answered += part
            answers.append(answered)
    return answers


def test_the_body_of_a_get_is_no_second_request(server: SearchServer) -> None:
    host = f"Host: localhost:{server.listener.getsockname()[1]}\r\n"
    second = f"GET /picture/1 HTTP/1.1\r\n{host}\r\n"
    chunk = f"{len(second):x}\r\n{second}\r\n0\r\n\r\n"
    length = f"Content-Length: {len(second)}\r\n"
    # A length that is given twice could be read in two ways.
    bodies = {
        f"{length}\r\n{second}": b"",
        f"Transfer-Encoding: chunked\r\n\r\n{chunk}": b"",
        f"Content-Length: 0\r\n{length}\r\n{second}": b"400",
    }
    targets = ("/picture/0", "/search?q=dog", "/nowhere")
    cases = [(target, body) for target in targets for body in bodies]
    sent = [f"GET {target} HTTP/1.1\r\n{host}{body}".encode() for target, body in cases]
    for (target, body), answer in zip(cases, raw(server, *sent), strict=True):
        assert answer.startswith(b"HTTP/1.1 " + bodies[body]), (target, body)
        assert answer.count(b"HTTP/1.1 ") == 1, (target, body)


def test_a_head_without_end_is_refused(server: SearchServer) -> None:
    host = f"Host: localhost:{server.listener.getsockname()[1]}\r\n"
    (answer,) = raw(server, f"GET / HTTP/1.1\r\n{host}X: {'x' * 200_000}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 4") or answer == b""
    assert request(server, "GET", "/")[0].status == 200


def test_threads_and_connections_are_bounded(
    server: SearchServer, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_text, go_on = index.by_text, threading.Event()

    def wait(*arguments: object) -> object:
        assert go_on.wait(60)
        return by_text(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "by_text", wait)
    before = threading.active_count()
    host = f"Host: localhost:{server.listener.getsockname()[1]}"
    asked = f"GET /search?q=x HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        address = server.listener.getsockname()
        clients: list[socket.socket] = []
        deadline = time.monotonic() + 60
        for _ in range(90):
            client = stack.enter_context(socket.create_connection(address, timeout=60))
            client.sendall(asked)
            clients.append(client)
            # One after the other: what counts is how many are open when a request arrives.
            known = min(len(clients), MOST_CONNECTIONS - 1)
            while len(server.server_state.tasks) < known and time.monotonic() < deadline:
                time.sleep(0.001)
        refused: list[socket.socket] = []
        while len(refused) < 90 - MOST_CONNECTIONS and time.monotonic() < deadline:
            time.sleep(0.1)
            refused = select.select(clients, [], [], 0)[0]  # the others wait for `go_on`
        assert len(refused) >= 90 - MOST_CONNECTIONS
        assert threading.active_count() - before <= 41
        assert {client.recv(12) for client in refused} == {b"HTTP/1.1 503"}
        go_on.set()
        others = [client for client in clients if client not in refused]
        assert {client.recv(12) for client in others} == {b"HTTP/1.1 200"}
    assert request(server, "GET", "/")[0].status == 200


def test_a_failure_inside_is_no_silence(
    server: SearchServer, index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "by_text", lambda text, k: 1 / 0)
    status, answer = request_json(server, "GET", "/search?q=x")
    assert (status, "see the terminal" in answer["error"]) == (500, True)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_this_machines_own_names_are_answered(server: SearchServer, name: str) -> None:
    host = f"{name}:{server.listener.getsockname()[1]}"
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert request(server, "GET", "/", headers=headers)[0].status == 200


def test_other_names_are_answered_only_if_open_to_everybody(
    server: SearchServer, index: SearchIndex
) -> None:
    foreign = {"Host": "box.example"}
    for target in ("/", "/picture/0", "/search?q=x"):
        assert request(server, "GET", target, headers=foreign)[0].status == 400
    with serving(index, "0.0.0.0") as open_to_all:
        assert request(open_to_all, "GET", "/", headers=foreign)[0].status == 200


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_it_and_the_address_was_reported(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch, ctrl_c_is_heard: None
) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("http"):
            threading.Timer(0.3, interrupt_main).start()

    monkeypatch.setattr(server_module, "say", say)
    host = "0.0.0.0"
    serve(index, listen(host, 0), host)
    warning, address, *_ = lines
    assert warning.startswith(f"warning: everybody who reaches {host}")
    assert address.startswith(f"http://{host}:")


def test_a_port_that_is_taken_is_reported(server: SearchServer) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1.*--port"):
        listen("127.0.0.1", server.listener.getsockname()[1])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"package uvicorn; run pip install 'mmalign\[search\]'"):
        importlib.reload(server_module)
