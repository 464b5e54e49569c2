"""An HTTP server on this machine that fails on request, for tests of downloads.

server.files[path] = bytes            the content of a file
server.answers[path] = [Answer, ...]  failures of the next requests for it, one each; later ones succeed
server.log                            (method, path, first requested byte) of every request
server.sent                           bytes of all bodies
server.most_at_once                   answers that were being sent at the same time, at most
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Answer:
    """How one request is answered; by default correctly.

    Attributes:
        status: sent instead of 200 or 206, without a body.
        location: target of a redirect.
        cut: number of bytes of the body after which the connection breaks.
        stall: seconds of silence after `cut` bytes, before the connection breaks.
        pause: seconds before every KiB of the body.
        body: sent instead of the file.
        ranges: if False, the complete file is sent, whatever was requested.
        shift: bytes by which the range sent differs from the requested one.
        headers: sent with a status.
    """

    status: int | None = None
    location: str | None = None
    cut: int | None = None
    stall: float = 0
    pause: float = 0
    body: bytes | None = None
    ranges: bool = True
    shift: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    started: threading.Event = field(default_factory=threading.Event)


class FlakyServer:
    """Runs in threads of this process inside its `with` block."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.log: list[tuple[str, str, int]] = []
        self.sent = self.at_once = self.most_at_once = 0
        self._counting = threading.Lock()
        self._server = ThreadingHTTPServer(("localhost", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients give up
        self.url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "FlakyServer":
        # Checks often whether it should stop, because tests wait for that.
        serve = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        serve.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def requests(self, path: str) -> list[int]:
        """First bytes of the requests for a file's content, in order."""
        return [first for method, name, first in self.log if name == path and method == "GET"]

    @contextmanager
    def sending(self, body: bytes) -> Iterator[None]:
        """Count a body while it is sent."""
        with self._counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.sent += len(body)
        yield
        with self._counting:
            self.at_once -= 1

    def answer(self, path: str) -> Answer:
        queued = self.answers.get(path)
        return queued.pop(0) if queued else Answer()


def _handler(server: FlakyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            server.log.append((self.command, path, int(requested[1]) if requested else 0))
            answer = server.answer(path)
            data = server.files.get(path) if answer.body is None else answer.body
            if answer.status is not None or data is None:
                headers = {"Location": answer.location or "", **answer.headers}
                self._send(answer.status or 404, b"", headers)
            elif requested is None or not answer.ranges:
                self._send(200, data, {}, answer)
            elif int(requested[1]) >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            else:
                first, last = int(requested[1]) + answer.shift, int(requested[2] or len(data) - 1)
                sent = f"bytes {first}-{last}/{len(data)}"
                self._send(206, data[first : last + 1], {"Content-Range": sent}, answer)

        do_HEAD = do_GET

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], answer: Answer | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                with server.sending(body):
                    self._send_body(body, answer or Answer())

        def _send_body(self, body: bytes, answer: Answer) -> None:
            body = body if answer.cut is None else body[: answer.cut]
            try:
                step = 1024 if answer.pause else len(body) + 1
                for first in range(0, len(body), step):
                    time.sleep(answer.pause)
                    self.wfile.write(body[first : first + step])
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client closed the connection
                return
            answer.started.set()
            if answer.cut is not None:
                time.sleep(answer.stall)
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
