"""The protocols of remote files: a URL and a first byte -> the blocks that follow, or a range of bytes.

                 complete files                                            a range
    https        one request, its body as a stream, ranges or not          one request
    s3, gs, hf   one ranged read per block                                 one ranged read
    file         likewise: a slow network disk

All use fsspec, whose libraries find credentials in their usual places (environment, files of their own).
Our configuration contains none, and no message shows one. No other program is run.
"""

import errno
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from mmalign.core.errors import UserError
from mmalign.core.redact import redact_text

SCHEMES = ("s3", "gs", "https", "http", "hf", "file")
BLOCK = 16 * 2**20  # bytes of a ranged read
CHUNK = 2**20  # bytes of one read of a stream, at most
BUFFER = 2**17  # bytes that a stream reads ahead; a few times as many are lost when it breaks
# Statuses of 4xx that may pass: timeout, too early, too many requests (RFC 9110, RFC 8470, RFC 6585).
_TRY_AGAIN = (408, 425, 429)


class WrongBytes(Exception):
    """The file is not the one that the manifest lists, or the server sends other bytes than asked for."""


def shown(url: str) -> str:
    """The URL for a message: without user, password, query and fragment, which may contain secrets."""
    return redact_text(re.split(r"[?#]", url, maxsplit=1)[0])


def blocks(url: str, start: int, size: int | None, timeout: float) -> Iterator[bytes]:
    """The bytes of a file from byte `start` to its end; `size` is of the complete file, if it is known.

    Raises:
        WrongBytes: the file ends before `size`.
        Exception: of the protocol's library; `is_final` and `reason` read it.
    """
    scheme = scheme_of(url)
    # Looked up for every file, because a filesystem must not be used after a fork.
    filesystem = _filesystem(os.getpid(), scheme, timeout)
    if scheme in ("http", "https"):
        yield from _stream(filesystem, url, start)
        return
    end: int = filesystem.info(url)["size"] if size is None else size
    for first in range(start, end, BLOCK):
        last = min(first + BLOCK, end)
        block = _cat(filesystem, scheme, url, first, last)
        if len(block) != last - first:
            raise WrongBytes(f"it ends after {first + len(block)} of {end} bytes")
        yield block


def read_range(url: str, start: int, size: int, timeout: float) -> bytes:
    """The `size` bytes of a file from byte `start`, by one request.

    Raises:
        WrongBytes: the file ends before, or the server does not support ranges.
        Exception: as `blocks`.
    """
    scheme = scheme_of(url)
    filesystem = _filesystem(os.getpid(), scheme, timeout)
    if scheme in ("http", "https"):
        data = b"".join(_stream(filesystem, url, start, start + size))
    else:
        data = _cat(filesystem, scheme, url, start, start + size)
    if len(data) != size:
        raise WrongBytes(f"it has {len(data)} bytes from byte {start}, not {size}")
    return data


def _cat(filesystem: Any, scheme: str, url: str, start: int, end: int) -> bytes:
    # Without a cache of its own, the hub's file reads what it is asked for, and nothing ahead.
    options = {"cache_type": "none"} if scheme == "hf" else {}
    data: bytes = filesystem.cat_file(url, start=start, end=end, **options)
    return data


def _stream(filesystem: Any, url: str, start: int, end: int | None = None) -> Iterator[bytes]:
    """The body of one HTTP answer from byte `start`.

    Without an `end`, a server that does not support ranges may send the complete file.
    """
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{end - 1 if end is not None else ''}"
    try:
        # With a size, fsspec does not send a request to ask for it; a stream does not use it.
        body = filesystem.open(url, "rb", block_size=0, size=1, headers=headers)
    except Exception as error:
        if status(error) == 416:  # the file has no bytes after `start`
            return
        raise
    with body:
        if end is not None and body.r.status != 206:
            raise WrongBytes("the server does not send a part of a file")
        skip = start  # a status other than 206 means that the answer begins at byte 0
        if body.r.status == 206:  # RFC 9110, section 14.4
            found = re.match(r"bytes (\d+)-", body.r.headers.get("Content-Range", ""))
            skip = start - int(found[1]) if found else -1
        if skip < 0:
            raise OSError(errno.EPROTO, "the server sent another range than asked for")
        while block := body.read(CHUNK):
            yield block[skip:]
            skip = max(0, skip - len(block))


@functools.cache
def _filesystem(process: int, scheme: str, timeout: float, tries: int = 1) -> Any:
    import fsspec

    # Once per process: a filesystem that came through a fork stays in the cache, unused. Closing its
    # connections would take them from the parent's event loop.
    # gcsfs would ask over gRPC what kind of bucket it is; gRPC's threads do not survive a loader's fork.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        # Not from fsspec's own cache: fsspec drops those instances after a fork, and closes them.
        made = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme, timeout))
    except ImportError:
        raise UserError(
            f"{scheme}:// needs a library that is not installed; run pip install 'mmalign[remote]'"
        ) from None
    if scheme == "s3":
        made.retries = tries  # of a request; others are counted in remote.py alone, not in botocore
    return made


def _options(scheme: str, timeout: float) -> dict[str, Any]:
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_read=timeout)
        # trust_env: use the proxies that the environment names, as other programs do
        return {"client_kwargs": {"timeout": limits, "trust_env": True, "read_bufsize": BUFFER}}
    if scheme == "s3":
        limits = {"connect_timeout": timeout, "read_timeout": timeout}
        return {"config_kwargs": {**limits, "retries": {"max_attempts": 0}}}
    if scheme == "file":
        return {"auto_mkdir": True}  # stores of objects have no folders to make
    return {"requests_timeout": timeout} if scheme == "gs" else {}


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/set`; a UserError for a scheme that is not supported."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{shown(url)}: `{scheme}://` is not read; use {', '.join(SCHEMES)}")
    return scheme


def status(error: Exception) -> int | None:
    """The HTTP status in an error of aiohttp, gcsfs or the hub's library."""
    response = getattr(error, "response", None)
    # One after the other, because aiohttp's `code` is deprecated and warns.
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(value := getattr(holder, name, None), int):
            return value
    return None


def retry_after(error: BaseException | None) -> float:
    """Seconds that the server asks to wait (RFC 9110, section 10.2.3); 0 if it does not say."""
    if error is None:
        return 0.0
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # of botocore, the cause of s3fs's own error
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    names = {str(name).lower(): str(value) for name, value in dict(headers or {}).items()}
    said = names.get("retry-after")
    if said is None:
        return retry_after(error.__cause__)
    try:
        return (
            float(said) if said.isdigit() else parsedate_to_datetime(said).timestamp() - time.time()
        )
    except ValueError:
        return 0.0


def is_final(error: Exception) -> bool:
    """Whether another try would be refused as well."""
    code = status(error)
    if code is not None:
        return 400 <= code < 500 and code not in _TRY_AGAIN
    refusals = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, refusals) or type(error).__name__ == "NoCredentialsError":  # of botocore
        return True
    return str(error).startswith("Forbidden: ")  # an OSError of gcsfs, without a status


def reason(error: Exception) -> str:
    """What went wrong, in a few words. The library's own text may contain the URL with its secrets."""
    code = status(error)
    if code is not None:
        return f"HTTP {code}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or type(error).__name__)


def filesystem_of(url: str, timeout: float = 60, tries: int = 1) -> Any:
    """The fsspec filesystem of a URL, for what no manifest answers, and for writing.

    Args:
        tries: of each request to S3, such as one part of a large file.
    """
    return _filesystem(os.getpid(), scheme_of(url), timeout, tries)
