"""A finished export onto the hub, in one commit, and a look at what has arrived there.

    folder (MANIFEST.json verifies) -> files with size and sha256 -> [dry run: said, and that is all]
      -> token, repository (private unless told otherwise) -> one commit: new files in, those of an older
      export out -> the commit's list of files compared with ours -> its address

huggingface_hub does the talking: the token comes from `HF_TOKEN` or `hf auth login`, the address from
`HF_ENDPOINT`. Its `upload_folder` may cut an upload into several commits (2.x, where hf_xet is installed), so
that a reader could load half of two models: `create_commit` makes one. The commit names the one before it as
its parent, so what somebody else pushes in between stops it.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from mmalign.core.commit import MANIFEST, sha256_of, verify
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.redact import redact_text
from mmalign.export.file_checks import check_files

# What a repository may hold that no export wrote; it stays.
_OTHERS = (".gitattributes", "README.md", "LICENSE")


@dataclass(frozen=True)
class File:
    """One file of the folder: its path inside it, size in bytes, and hexadecimal sha256."""

    path: str
    size: int
    sha256: str


def push(folder: Path, repo_id: str, private: bool, dry_run: bool) -> str | None:
    """Publish a committed export as `repo_id`.

    Args:
        folder: as `export` left it, with its manifest.
        repo_id: OWNER/NAME.
        private: what a repository that is not there yet becomes; one that is there must not be public.
        dry_run: only say what would be sent; nobody is contacted.

    Returns:
        The address of the commit; None after a dry run.

    Raises:
        UserError: a folder that is damaged or holds what must not be published, a name that is none, no
            token, a refusal of the hub, no connection, or files that did not arrive as they were sent.
    """
    _check_name(repo_id)
    info = verify(folder)
    check_files(folder, is_published=True)
    files = list_files(folder, info)
    if dry_run:
        _say_files(files, repo_id, private)
        return None
    from huggingface_hub import HfApi

    token = _token()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _plain_errors(repo_id, api.endpoint, token):
        api.whoami()
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = _head(api, repo_id, private)
        stale = _stale(api, repo_id, head, {file.path for file in files})
        message = f"mmalign export of model {info.get('model_sha256', 'unknown')}"
        commit = _commit(api, repo_id, folder, files, stale, head, message)
        _check_arrival(api, repo_id, commit.oid, folder, files, stale)
    return str(commit.commit_url)


def list_files(folder: Path, info: dict[str, Any]) -> list[File]:
    """What the manifest lists, and the manifest: nothing else that may lie in the folder is sent."""
    manifest = folder / MANIFEST
    listed = [File(path, facts["size"], facts["sha256"]) for path, facts in info["files"].items()]
    return [*listed, File(MANIFEST, manifest.stat().st_size, sha256_of(manifest))]


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"--push {repo_id}: not a name for the hub ({reason})") from None
    if repo_id.count("/") != 1:
        raise UserError(f"--push {repo_id}: give the owner too, OWNER/NAME")


def _say_files(files: list[File], repo_id: str, private: bool) -> None:
    for file in files:
        say(f"{file.sha256}  {file.size:>13,}  {file.path}")
    total = sum(file.size for file in files)
    kind = "private" if private else "public"
    say(f"{len(files)} files, {total:,} bytes, to {repo_id} ({kind}); nothing was sent")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise UserError("--push: you are not logged in; run `hf auth login` or set HF_TOKEN")
    return token


def _head(api: Any, repo_id: str, private: bool) -> str:
    """The commit that ours will follow.

    A repository that is there already keeps its visibility: `create_repo` does not change it.
    """
    info = api.model_info(repo_id)
    if private and not info.private:
        raise UserError(
            f"--push {repo_id}: is there already and everybody can read it; push with --public, or make it "
            "private in its settings first"
        )
    return str(info.sha)


def _stale(api: Any, repo_id: str, head: str, ours: set[str]) -> list[str]:
    """Files of the export that is there now which the new one does not have."""
    there = set(api.list_repo_files(repo_id, revision=head))
    foreign = sorted(there.difference(_OTHERS))
    if MANIFEST not in there and foreign:
        raise UserError(
            f"--push {repo_id}: holds files that no export of mmalign wrote (such as {foreign[0]}); give "
            "another name, or empty the repository first"
        )
    if MANIFEST not in there:
        return []
    with tempfile.TemporaryDirectory(prefix="mmalign-push-") as scratch:
        path = api.hf_hub_download(repo_id, MANIFEST, revision=head, local_dir=scratch)
        older = json.loads(Path(path).read_text(encoding="utf-8"))
    listed = older.get("files", ()) if isinstance(older, dict) else ()
    return sorted(there.intersection(listed) - ours)


def _commit(
    api: Any,
    repo_id: str,
    folder: Path,
    files: list[File],
    stale: list[str],
    head: str,
    message: str,
) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale),
            *(CommitOperationAdd(file.path, folder / file.path) for file in files),
        ],
        commit_message=message,
        parent_commit=head,
    )


def _check_arrival(
    api: Any, repo_id: str, commit: str, folder: Path, files: list[File], stale: list[str]
) -> None:
    """Compare the commit's files with ours: large ones by sha256, small ones by git's own hash."""
    tree = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    wrong = [file.path for file in files if not _same(there.get(file.path), file, folder)]
    wrong += [path for path in stale if path in there]
    if wrong:
        raise UserError(
            f"--push {repo_id}: {wrong[0]} did not arrive as it was sent (and {len(wrong) - 1} more); "
            "push again"
        )


def _same(entry: Any, file: File, folder: Path) -> bool:
    if entry is None or entry.size != file.size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == file.sha256)
    data = (folder / file.path).read_bytes()
    return bool(entry.blob_id == sha1(b"blob %d\0" % len(data) + data).hexdigest())


@contextmanager
def _plain_errors(repo_id: str, endpoint: str, token: str) -> Iterator[None]:
    """What the hub or the way to it refuses, as one sentence without the token."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        sentence = _sentence(_root(error), endpoint).replace(token, "...")
        raise UserError(f"--push {repo_id}: {redact_text(sentence)}") from None


def _root(error: BaseException) -> BaseException:
    """The error of the connection where an upload wraps it."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _sentence(error: BaseException, endpoint: str) -> str:
    from huggingface_hub.errors import HTTPError

    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
    if status is None and isinstance(error, HTTPError | OSError):
        return f"the connection to {endpoint} failed ({reason}); push again"
    if status == 401:
        return "the hub does not accept the token; run `hf auth login` or set another HF_TOKEN"
    if status == 403:
        return (
            "the token may not write there; take an owner that is yours and a token that may write"
        )
    if status == 404:
        return "the hub knows no such owner or repository, or does not show it to this token"
    if status in (409, 412):
        return "somebody else changed the repository meanwhile; push again"
    if status is not None and status >= 500:
        return f"{endpoint} answers {status}; push again later"
    return f"the hub refuses the export ({reason})"
