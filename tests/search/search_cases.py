"""The smallest search page: a tiny model, eight images with captions in three languages, a real server."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shard_sets import make_set
from tiny import tiny_run

from mmalign.models.encoder import load_encoder
from mmalign.search.corpus import SearchIndex, build_index
from mmalign.search.server import SearchServer, listen

IMAGES = 8
LANGUAGES = ("en", "ar", "ja")


def make_index(folder: Path) -> SearchIndex:
    """Images with one, two or three captions."""
    make_set(folder / "set", IMAGES, lambda number: LANGUAGES[: 1 + number % 3])
    model = load_encoder(tiny_run(folder / "run"))
    return build_index(model, folder / "set", folder / "cache")


@contextlib.contextmanager
def serving(index: SearchIndex, host: str = "127.0.0.1") -> Iterator[SearchServer]:
    """A server on a free port, answering in a thread of its own."""
    server = SearchServer(index, listen(host, 0), host)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server.listener]})
    thread.start()
    yield server
    server.should_exit = True
    thread.join()


def request(
    server: SearchServer,
    method: str,
    target: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own: the response and its body."""
    port = server.listener.getsockname()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response, response.read()


def request_json(server: SearchServer, method: str, target: str, **rest: Any) -> tuple[int, Any]:
    """One request: the status and the JSON that came back."""
    response, body = request(server, method, target, **rest)
    assert response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(body)
