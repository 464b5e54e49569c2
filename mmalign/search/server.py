"""The search page's server, for one person on one machine.

    GET  /                    the page; its style and script are files of their own
    GET  /picture/<n>         picture n as it is stored
    GET  /search?q=...&k=...  a text    -> {"milliseconds", "pictures": [{"picture", "score", "captions"}]}
    POST /search?k=...        a picture -> {"milliseconds", "languages": [{"lang", "captions"}]}

    request -> host checked -> answers.py -> Reply -> headers and body

A mistake is answered with {"error": one sentence}. Bound to this machine, the server answers only to this
machine's own names: a page on the web could else point a name of its own here and read the pictures
through the person's browser (DNS rebinding).
"""

import ipaddress
import socket
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.search.answers import (
    Refusal,
    Reply,
    check_upload,
    error,
    get,
    page_files,
    search_by_picture,
)
from mmalign.search.corpus import SearchIndex

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(index: SearchIndex, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: 127.0.0.1 for this machine only; 0.0.0.0 for everybody who reaches it, which is said in a line.
        port: 0 for any free one.
        on_ready: called with the page's URL when it can be opened.

    Raises:
        UserError: the address cannot be listened on.
    """
    with SearchServer(index, host, port) as server:
        if not _is_loopback(host):
            say(f"warning: everybody who reaches {host} can search and see these pictures")
        on_ready(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")  # the terminal shows ^C without a line end


class SearchServer(ThreadingHTTPServer):
    """Listens from the moment it is made; `serve_forever` answers, a thread a connection.

    Attributes:
        url: where the page is.
        own_names: what a request may call this server; None: anything.
    """

    daemon_threads = True

    def __init__(self, index: SearchIndex, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.index = index
        self.files = page_files(index)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as failure:
            raise UserError(
                f"cannot listen on {host}, port {port} ({failure}); "
                "choose another with --host or --port"
            ) from None
        port = self.server_address[1]
        suffix = "" if port == 80 else f":{port}"  # browsers leave the usual port out
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}{suffix}/"
        own_names = {f"{own}{suffix}" for own in ("localhost", "127.0.0.1", "[::1]", name)}
        self.own_names = own_names if _is_loopback(host) else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about a browser that hangs up early."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _is_loopback(host: str) -> bool:
    """Whether a host name means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mmalign", ""
    timeout = 30  # seconds for a client that falls silent
    disable_nagle_algorithm = True  # headers and body are two writes: the second must not wait

    def do_GET(self) -> None:
        self._answer(lambda: get(self.server.index, self.server.files, self.path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._search_by_upload)

    def _search_by_upload(self) -> Reply:
        k, length = check_upload(self.path, self.headers.get("Content-Length"))
        return search_by_picture(self.server.index, self.rfile.read(length), k)

    def _answer(self, respond: Callable[[], Reply]) -> None:
        try:
            self._check_host()
            reply = respond()
        except Refusal as refusal:
            reply = error(refusal.status, str(refusal))
        except TimeoutError:
            reply = error(HTTPStatus.REQUEST_TIMEOUT, "the request came too slowly; send it again")
        except ConnectionError:
            raise
        except Exception:
            sys.stderr.write(traceback.format_exc())
            sentence = "the search failed; the terminal where it was started says why"
            reply = error(HTTPStatus.INTERNAL_SERVER_ERROR, sentence)
        if reply.headers.get("ETag", "") == self.headers.get("If-None-Match"):
            reply = Reply(HTTPStatus.NOT_MODIFIED, reply.kind, b"", reply.headers)
        self._send(reply)

    def _check_host(self) -> None:
        own_names = self.server.own_names
        if own_names is not None and self.headers.get("Host", "").lower() not in own_names:
            sentence = f"this page does not answer to that name; open {self.server.url}"
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, sentence)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**_HEADERS, **reply.headers}.items():
            self.send_header(name, value)
        if reply.status != HTTPStatus.NOT_MODIFIED:  # a length of 0 would be the kept picture's
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
        if reply.status >= HTTPStatus.BAD_REQUEST:
            # Part of the request may be unread: what follows would be taken for another request.
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Tell as JSON, too, what the standard library refuses: a method, a broken first line."""
        status = HTTPStatus(code)
        self._send(error(status, f"the server does not take this request: {status.phrase}"))

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing down: what somebody searches for is their business."""
