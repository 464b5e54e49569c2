"""A real S3 interface on this machine (moto's), which refuses requests if a test says so.

with s3_server() as server:
    server.environment                    what a client needs in its environment
    server.refuse = lambda method, path: 503 or None      a status instead of an answer
    server.requests                       [(method, path), ...]
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest

from mmalign.data.storage import protocols

BUCKET = "bucket"


@dataclass
class S3Server:
    environment: dict[str, str] = field(default_factory=dict)
    refuse: Callable[[str, str], int | None] = lambda method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        path = unquote(environ["PATH_INFO"]).removeprefix(f"/{BUCKET}/")
        self.requests.append((method, path))
        if status := self.refuse(method, path):
            # Read: a client that is still sending would see a broken connection.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {503: "SlowDown", 403: "AccessDenied"}[status]
            body = f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
            start_response(f"{status} refused", [("Content-Length", str(len(body)))])
            return [body]
        return self.application(environ, start_response)  # type: ignore[no-any-return]

    application: Any = None


@contextmanager
def s3_server() -> Iterator[S3Server]:
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="s3 needs the extra `remote`")
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = S3Server(application=moto.DomainDispatcherApplication(moto.create_backend_app))
    http = make_server("localhost", 0, server, threaded=True)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.environment = {
        "AWS_ENDPOINT_URL": f"http://localhost:{http.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    protocols._filesystem.cache_clear()  # clients of another server
    try:
        yield server
    finally:
        protocols._filesystem.cache_clear()
        http.shutdown()
        thread.join()
