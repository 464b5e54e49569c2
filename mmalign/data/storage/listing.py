"""Tars at URLs that no manifest lists: which there are, how large they are, and when they change.

pattern, folder or brace list of URLs -> URLs of tars -> size, version
"""

import posixpath
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mmalign.core.errors import UserError
from mmalign.data.storage.protocols import filesystem_of, scheme_of, shown
from mmalign.data.storage.remote import RemoteConfig, retried

# What the protocols' libraries call the identity of a file's bytes.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "mtime")


def list_tars(source: str) -> list[str]:
    """The URLs that a URL, a brace list, a pattern or a folder names, sorted.

    Raises:
        UserError: there are none, or a web server, which has no list of its files, is asked for them.
    """
    from braceexpand import braceexpand

    check_no_secret(source)
    urls: set[str] = set()
    try:
        named = list(braceexpand(source))
    except ValueError as error:
        raise UserError(f"{shown(source)}: not a valid pattern ({error})") from None
    for url in named:
        scheme = scheme_of(url)
        if url.endswith(".tar") and "*" not in url:
            urls.add(url)
            continue
        if scheme in ("http", "https"):
            raise UserError(
                f"{shown(url)}: a web server does not list its files; name them, such as "
                "`https://host/{00000..00099}.tar`"
            )
        pattern = url if "*" in url else posixpath.join(url, "*.tar")
        urls |= set(retried(partial(_glob, pattern), pattern, RemoteConfig()))
    if not urls:
        raise UserError(f"{shown(source)}: no tars there; name a folder of .tar files or a pattern")
    return sorted(urls)


def _glob(pattern: str) -> list[str]:
    filesystem = filesystem_of(pattern)
    scheme = scheme_of(pattern)
    found = (str(path) for path in filesystem.glob(pattern))
    return [f"{scheme}://{path}" for path in found if path.endswith(".tar")]


def facts_of(url: str) -> tuple[int | None, str]:
    """Size in bytes, None if the server does not say it, and its name for the version of the bytes, or ""."""
    facts: dict[str, Any] = retried(lambda: filesystem_of(url).info(url), url, RemoteConfig())
    version = next((str(facts[name]) for name in _VERSIONS if facts.get(name)), "")
    return facts.get("size"), version


def check_no_secret(url: str) -> None:
    # It would stand in a manifest.
    if "?" in url or "@" in urlsplit(url).netloc:
        raise UserError(
            f"{shown(url)}: a URL with a query or a user holds a secret, and a signature expires; name it "
            "without, and give credentials in the environment"
        )
