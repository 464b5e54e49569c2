"""A local hub: the part of the Hugging Face hub's interface that a push and a load use.

    with running_hub() as hub:  HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN -> hub.repos, hub.requests

Repositories live in memory as a list of commits, each a mapping from path to bytes. Large files (`LARGE`)
use LFS: requested in a batch, sent by PUT, verified, referenced in the commit by their sha256, and read
through a redirect. `hub.failures` makes chosen requests fail. The interface follows the sources of
huggingface_hub 2.4 (hf_api.py, _commit_api.py, lfs.py, file_download.py).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ruamel.yaml import YAML

TOKEN = "hf_" + "LocalTokenOfNobody"
OWNER = "someone"
LARGE = (".safetensors", ".onnx")
LICENSES = ("apache-2.0", "mit", "cc-by-sa-4.0", "other")  # some of the hub's
CUT = 0  # in place of a status: the connection is closed in the middle of the body
HOST = "127.0.0.1"
NAME = r"(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """A repository: `commits` holds (oid, {path: bytes}), oldest first."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = [one for one in self.commits if one[0] == revision]
        return self.commits[-1] if revision == "main" else (found[0] if found else None)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, files))
        self.messages.append(message)
        return oid


@dataclass
class Failure:
    """The next `times` requests of a method whose path contains `part` get `status`."""

    method: str
    part: str
    status: int
    times: int = 1


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Hub(ThreadingHTTPServer):
    """The server and its repositories."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.endpoint = f"http://localhost:{self.server_address[1]}"
        # As on the hub, large files come from another host, which must not receive the token.
        self.storage = f"http://{HOST}:{self.server_address[1]}/storage"
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}  # content sent by PUT, by sha256
        self.requests: list[Request] = []
        self.failures: list[Failure] = []

    def create(self, name: str, private: bool, files: dict[str, bytes] | None = None) -> Repo:
        first = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
        self.repos[name] = Repo(private)
        self.repos[name].commit(first, "initial commit")
        return self.repos[name]

    def failure(self, method: str, path: str) -> Failure | None:
        for failure in self.failures:
            if failure.times > 0 and failure.method == method and failure.part in path:
                failure.times -= 1
                return failure
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Answer(Exception):
    """The answer to a request."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers
        self.body = body if isinstance(body, bytes) else json.dumps(body or {}).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing on the stderr of the tests."""

    def _serve(self) -> None:
        failure = self.server.failure(self.command, self.path)
        if failure is not None and failure.status == CUT:
            self.rfile.read(1)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._read()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.command, self.path, headers, self.body))
        try:
            if failure is not None:
                raise Answer(failure.status, {"error": "as the test wants it"})
            self._route()
            raise Answer(404, {"error": f"no such page: {self.command} {self.path}"})
        except Answer as answer:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        for method, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                handle(self, **match.groupdict())

    @property
    def _json(self) -> Any:
        return json.loads(self.body)

    def _must_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Answer(401, {"error": "Invalid username or password."})

    def _repo(self, name: str) -> Repo:
        repo = self.server.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not known):
            raise Answer(404 if known else 401, X_Error_Code="RepoNotFound")
        return repo

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self._repo(name).at(revision)
        if found is None:
            raise Answer(404, X_Error_Code="RevisionNotFound")
        return found

    def whoami(self) -> None:
        self._must_write()
        raise Answer(200, {"type": "user", "name": OWNER, "orgs": []})

    def create(self) -> None:
        self._must_write()
        name = f"{self._json['organization'] or OWNER}/{self._json['name']}"
        if not name.startswith(f"{OWNER}/"):
            raise Answer(403, {"error": "You don't have the rights to create a model there"})
        url = {"url": f"{self.server.endpoint}/{name}"}
        if name in self.server.repos:
            raise Answer(409, {**url, "error": "You already created this model repo"})
        self.server.create(name, self._json.get("visibility") == "private")
        raise Answer(200, url)

    def info(self, name: str, revision: str | None = None) -> None:
        oid, files = self._files(name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        facts = {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "tags": []}
        raise Answer(200, {**facts, "private": self._repo(name).private, "downloads": 0})

    def tree(self, name: str, revision: str, under: str | None = None) -> None:
        oid, files = self._files(name, revision)
        entries = [
            entry(path, data) for path, data in files.items() if path.startswith(under or "")
        ]
        if under and not entries:
            raise Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        raise Answer(200, json.dumps(entries).encode(), Content_Type="application/json")

    def validate_yaml(self) -> None:
        facts = YAML(typ="safe").load(self._json["content"].split("---\n")[1])
        errors = []
        if facts.get("license") not in (None, *LICENSES):
            errors.append({"message": '"license" must be one of the known ones'})
        if facts.get("license") == "other" and not facts.get("license_name"):
            errors.append({"message": '"license_name" is required'})
        raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self._must_write()
        _, files = self._files(name, revision)
        answer = []
        for one in self._json["files"]:
            path, data = one["path"], files.get(one["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = None if data is None else (sha256 if mode == "lfs" else git_oid)(data)
            facts = {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            answer.append(facts)
        raise Answer(200, {"files": answer})

    def lfs_batch(self, name: str) -> None:
        self._must_write()
        self._repo(name)
        objects = []
        for one in self._json["objects"]:
            actions = {
                "upload": {"href": f"{self.server.storage}/{one['oid']}"},
                "verify": {"href": f"{self.server.endpoint}/verify"},
            }
            there = one["oid"] in self.server.store
            objects.append(one if there else {**one, "actions": actions})
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if sha256(self.body) != oid:
            raise Answer(400, {"error": "other bytes than were announced"})
        self.server.store[oid] = self.body
        raise Answer(200)

    def verify(self) -> None:
        self._must_write()
        stored = self.server.store.get(self._json["oid"])
        there = stored is not None and len(stored) == self._json["size"]
        raise Answer(200 if there else 404)

    def commit(self, name: str, revision: str) -> None:
        self._must_write()
        head, files = self._files(name, revision)
        files, message = dict(files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise Answer(412, {"error": "A commit has happened since."})
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.store[value["oid"]]
            else:
                del files[value["path"]]
        oid = self._repo(name).commit(files, message)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        raise Answer(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def resolve(self, name: str, revision: str, path: str) -> None:
        oid, files = self._files(name, revision)
        if path not in files:
            raise Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        data = files[path]
        if not path.endswith(LARGE):
            raise Answer(200, data, X_Repo_Commit=oid, ETag=f'"{git_oid(data)}"')
        large = {"X_Linked_Etag": f'"{sha256(data)}"', "X_Linked_Size": str(len(data))}
        self.server.store[sha256(data)] = data
        location = f"{self.server.storage}/{sha256(data)}"
        raise Answer(302, X_Repo_Commit=oid, Location=location, **large)

    def storage(self, oid: str) -> None:
        raise Answer(200, self.server.store[oid], ETag=f'"{oid}"')


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a tree, as the hub lists it."""
    facts = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if path.endswith(LARGE):
        facts["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return facts


ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/(?P<revision>[^/]+)(/(?P<under>.+))?", Handler.tree),
    ("POST", f"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/storage/(?P<oid>[0-9a-f]+)", Handler.put),
    ("GET", "/storage/(?P<oid>[0-9a-f]+)", Handler.storage),
    ("POST", "/verify", Handler.verify),
    ("GET", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
)
