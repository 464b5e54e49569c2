"""The search page's server, for one person on one machine.

GET  /                    the page; its style and script are files of their own
GET  /picture/<n>         image n as it is stored
GET  /search?q=...&k=...  a text   -> {"milliseconds", "pictures": [{"picture", "score", "captions"}]}
POST /search?k=...        an image -> {"milliseconds", "languages": [{"lang", "captions"}]}
                          with &lang=... and &source=...: only what is in that language, from that source

request -> host and origin checked -> SearchIndex -> JSON, or {"error": one sentence}
"""

import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader

from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.languages import language_name
from mmalign.data.image_formats import image_suffix
from mmalign.data.images import MAX_PIXELS, UndecodableImage
from mmalign.search.corpus import SearchIndex

# Checked when this module is imported: before the shards are encoded, which may take long.
try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import Headers
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise UserError(
        f"search: the page needs the package {missing.name}; run pip install 'mmalign[search]'"
    ) from None

MOST_BYTES = 10_000_000  # of an image to search with
MOST_LETTERS = 1000  # of a text to search with
MOST_RESULTS = 100
# At one time; more get 503. Their requests are answered by Starlette's 40 threads.
MOST_CONNECTIONS = 64
IMAGES, CAPTIONS = 24, 3  # results of a text, and of an image in each language
_UNDECODABLE = (
    f"the file cannot be read as an image; send a JPEG, PNG or WebP up to {MAX_PIXELS:,} px"
)
_TEMPLATES = Path(__file__).parent / "templates"
_FRESH = {"Cache-Control": "no-store"}
_POLICY = {
    # The captions of a data set are somebody else's words: no script but ours runs, whatever they hold.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site may show our images
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket for the page; port 0: any free one.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as failure:
        raise UserError(
            f"cannot listen on {host}, port {port} ({failure}); give another --host or --port"
        ) from None


def serve(index: SearchIndex, listener: socket.socket, host: str) -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: that the socket was opened with.
    """
    server = SearchServer(index, listener, host)
    if not _is_loopback(host):
        say(f"warning: everybody who reaches {host} can search and see these images")
    say(f"{server.url}  (Ctrl-C ends it)")
    try:
        server.run(sockets=[server.listener])
    except KeyboardInterrupt:
        say("")  # the terminal shows ^C without a line end


class SearchServer(uvicorn.Server):
    """The server of the page at `url`; `run(sockets=[listener])` answers until `should_exit` is set."""

    def __init__(self, index: SearchIndex, listener: socket.socket, host: str) -> None:
        self.listener = listener
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{listener.getsockname()[1]}/"
        # Bound to this machine, it answers to this machine's names only. Otherwise a page on the web could
        # point a name of its own at this address and read the images (DNS rebinding).
        names = ["localhost", "127.0.0.1", "[::1]", name] if _is_loopback(host) else ["*"]
        config = uvicorn.Config(
            make_app(index, names),
            log_config=None,  # failures still reach the terminal
            access_log=False,  # what somebody searches for is written down nowhere
            server_header=False,
            headers=list(_POLICY.items()),
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)


def make_app(index: SearchIndex, host_names: list[str]) -> Starlette:
    """The page's application.

    Args:
        host_names: what a request may call this server; "*": anything.
    """
    page = _Page(index)
    return Starlette(
        routes=[
            # Nothing that a client sends becomes a path on the disk: files are fixed, images have numbers.
            *(Route(path, page.file) for path in ("/", "/search.css", "/search.js")),
            Route("/picture/{number}", page.image),
            Route("/search", page.by_text),
            Route("/search", page.by_image, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=host_names, www_redirect=False),
            Middleware(_own_origin),
        ],
        # Starlette raises a failure again after the answer, and uvicorn prints it.
        exception_handlers={
            HTTPException: lambda request, refusal: _error(refusal.status_code, refusal.detail),
            Exception: lambda request, failure: _error(500, "the search failed; see the terminal"),
        },
    )


class _Page:
    """The endpoints. Those that are no coroutines run in threads of Starlette's pool."""

    def __init__(self, index: SearchIndex) -> None:
        environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
        environment.filters["language"] = language_name
        self._index = index
        self._html = environment.get_template("search.html.j2").render(
            index=index,
            examples=index.examples(8),
            languages=sorted((language_name(lang), lang) for lang in index.languages),
            most_bytes=MOST_BYTES,
            most_letters=MOST_LETTERS,
        )

    def file(self, request: Request) -> Response:
        name = request.url.path[1:]  # one of the routes, so nothing else of the folder is reached
        if name:
            return FileResponse(_TEMPLATES / name, headers=_FRESH)
        return HTMLResponse(self._html, headers=_FRESH)

    def image(self, request: Request) -> Response:
        number, last = request.path_params["number"], len(self._index) - 1
        if not re.fullmatch("[0-9]{1,12}", number) or int(number) > last:
            raise HTTPException(404, f"there is no image {number}; the last one is {last}")
        data = self._index.read_image(int(number))
        tag = f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'
        # Tomorrow another set may be served here: a browser keeps the image, but asks whether it is current.
        headers = {"Cache-Control": "private, no-cache", "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers=headers)
        kind = f"image/{image_suffix(data).replace('jpg', 'jpeg')}"
        return Response(data, media_type=kind, headers=headers)

    def by_text(self, request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        if not text:
            raise HTTPException(400, "`q` is empty; send some words to search for")
        if len(text) > MOST_LETTERS:
            raise HTTPException(400, f"{len(text):,} letters; send at most {MOST_LETTERS:,}")
        k = _wished_results(request, IMAGES)
        return _timed("pictures", lambda: self._index.by_text(text, k, *_filter(request)))

    async def by_image(self, request: Request) -> Response:
        k, headers = _wished_results(request, CAPTIONS), request.headers
        # A body in chunks has no length that could be checked before it is read.
        if "Content-Length" not in headers or "Transfer-Encoding" in headers:
            raise HTTPException(411, "the length is missing; send Content-Length")
        length = int(headers["Content-Length"])
        if length > MOST_BYTES:
            raise HTTPException(413, f"{length:,} bytes; send an image of at most {MOST_BYTES:,}")
        data = await request.body()
        return await run_in_threadpool(
            _timed, "languages", lambda: self._index.by_image(data, k, *_filter(request))
        )


def _own_origin(app: Any) -> Any:
    """Refuses what a page of another site sends; a browser names that site in `Origin`."""

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("Origin")
        is_own = origin is None or urlsplit(origin).netloc == headers.get("Host")
        answer = app if is_own else _error(403, "this page answers no other site")
        await answer(scope, receive, send)

    return respond


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _wished_results(request: Request, default: int) -> int:
    wish = request.query_params.get("k", str(default))
    if re.fullmatch("[0-9]{1,3}", wish) is None or not 1 <= int(wish) <= MOST_RESULTS:
        raise HTTPException(400, f"`k` must be a whole number from 1 to {MOST_RESULTS}")
    return int(wish)


def _filter(request: Request) -> tuple[str | None, str | None]:
    # A form sends an empty field where nothing is chosen.
    return request.query_params.get("lang") or None, request.query_params.get("source") or None


def _timed(name: str, find: Callable[[], Any]) -> Response:
    started = time.perf_counter()
    try:
        found = find()
    except UndecodableImage:
        raise HTTPException(422, _UNDECODABLE) from None
    except UserError as error:  # a language or a source that the set lacks
        raise HTTPException(400, str(error)) from None
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    return JSONResponse({"milliseconds": milliseconds, name: found}, headers=_FRESH)


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status, headers=_FRESH)
