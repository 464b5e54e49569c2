"""The smallest search page: a tiny model, eight images with captions in three languages, a real server."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shard_sets import make_pair, write_set
from tiny import tiny_run

from mmalign.evaluation.ann.index import IndexConfig
from mmalign.models.encoder import DualModel, load_encoder
from mmalign.search.corpus import SearchIndex
from mmalign.search.kept_index import build_index
from mmalign.search.server import SearchServer, listen

IMAGES = 8
LANGUAGES = ("en", "ar", "ja")
SOURCES = ("books", "web")


def make_index(folder: Path) -> SearchIndex:
    """Images with one, two or three captions, of two sources in turn."""
    pairs = [make_pair(n, LANGUAGES[: 1 + n % 3]) for n in range(IMAGES)]
    write_set(folder / "set", [replace(p, source=SOURCES[n % 2]) for n, p in enumerate(pairs)])
    model = load_encoder(tiny_run(folder / "run"))
    return exact_index(model, folder / "set", folder / "cache")


def exact_index(model: DualModel, shards: Path, cache: Path) -> SearchIndex:
    """As `mmalign search` makes it without `--index`."""
    return SearchIndex(
        model, shards, build_index(model, shards, IndexConfig(factory="Flat"), cache)
    )


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
