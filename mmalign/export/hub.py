"""A finished export onto the hub, in one commit, and a check of what has arrived there.

folder (MANIFEST.json verifies) -> files with size and sha256 -> [dry run: listed, nothing else]
  -> token, the card as the hub validates it, repository (private by default)
  -> one commit: new files in, those of an older export out
  -> the commit's list of files compared with ours -> its address
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmalign.core.commit import MANIFEST, sha256_of, verify
from mmalign.core.console import say
from mmalign.core.errors import UserError, one_line
from mmalign.core.redact import redact_text
from mmalign.export.verify import check_files

# What a repository may hold that no export wrote; it stays.
_OTHERS = (".gitattributes", "README.md", "LICENSE")
_CHANGED = "somebody else changed the repository meanwhile; push again"
_BY_STATUS = {
    401: "the hub does not accept the token; run `hf auth login` or set another HF_TOKEN",
    403: "the token may not write there; give an owner that is yours and a token that may write",
    404: "the hub knows no such owner or repository, or does not show it to this token",
    409: _CHANGED,
    412: _CHANGED,
}


def push(folder: Path, repo_id: str, private: bool, dry_run: bool) -> str | None:
    """Publish a committed export as `repo_id` (OWNER/NAME).

    Args:
        folder: as `export` left it. Only files in its manifest are sent.
        private: what a new repository becomes; one that exists must not be public.
        dry_run: only list what would be sent, without any request.

    Returns:
        The address of the commit; None after a dry run.

    Raises:
        UserError: the folder is damaged or holds what must not be published, the name is invalid, there is
            no token or no connection, the hub refuses, or files did not arrive as they were sent.
    """
    check_target(repo_id, dry_run)
    info = verify(folder)
    check_files(folder, is_published=True)
    listed = {"size": (folder / MANIFEST).stat().st_size, "sha256": sha256_of(folder / MANIFEST)}
    files = {**info["files"], MANIFEST: listed}
    if dry_run:
        _list(files, f"to {repo_id} ({'private' if private else 'public'}); nothing was sent")
        return None
    # The token comes from HF_TOKEN or `hf auth login`, the address from HF_ENDPOINT.
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    token = str(get_token())
    # An empty variable means the hub itself.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _plain_errors(repo_id, api.endpoint, token):
        api.whoami()
        # Before there is a repository, which a refused card would leave empty.
        _check_card(api, repo_id, (folder / "README.md").read_text(encoding="utf-8"))
        api.create_repo(repo_id, private=private, exist_ok=True)
        before = api.model_info(repo_id)
        # `create_repo` leaves the visibility of a repository as it is.
        if private and not before.private:
            raise UserError(
                f"--push {repo_id}: everybody can read it; push with --public, or make it private first"
            )
        stale = _stale(api, repo_id, str(before.sha), files.keys())
        # `upload_folder` may cut an upload into several commits (2.x, where hf_xet is installed), so that a
        # reader could load half of two models. `create_commit` makes one.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale),
                *(CommitOperationAdd(path, folder / path) for path in files),
            ],
            commit_message=f"mmalign export of model {info.get('model_sha256', 'unknown')}",
            parent_commit=str(before.sha),  # the hub refuses if somebody has pushed in between
        )
        _check_arrival(api, repo_id, commit.oid, folder, files.keys(), stale)
    return str(commit.commit_url)


def _check_arrival(
    api: Any, repo_id: str, commit: str, folder: Path, files: AbstractSet[str], stale: Sequence[str]
) -> None:
    held = api.verify_repo_checksums(repo_id, revision=commit, local_dir=folder)
    differ = {one["path"] for one in held.mismatches}.union(held.extra_paths)
    # Of files that the folder lacks, those of an older export had to go.
    wrong = sorted(differ & files | set(held.missing_paths).intersection(stale))
    if wrong:
        raise UserError(
            f"--push {repo_id}: {wrong[0]} did not arrive as it was sent (and {len(wrong) - 1} more); "
            "push again"
        )


def _list(files: Mapping[str, dict[str, Any]], end: str) -> None:
    for path, facts in files.items():
        say(f"{facts['sha256']}  {facts['size']:>13,}  {path}")
    say(f"{len(files)} files, {sum(facts['size'] for facts in files.values()):,} bytes, {end}")


def check_target(repo_id: str, dry_run: bool) -> None:
    """Stop before any work if nothing could be pushed there: a wrong name, or no token. Nothing is sent."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = one_line(error, 500).rstrip(".")
        raise UserError(f"--push {repo_id}: not a name for the hub ({reason})") from None
    if repo_id.count("/") != 1:
        raise UserError(f"--push {repo_id}: give the owner too, OWNER/NAME")
    if not dry_run and get_token() is None:
        raise UserError("--push: you are not logged in; run `hf auth login` or set HF_TOKEN")


def _check_card(api: Any, repo_id: str, card: str) -> None:
    """Let the hub validate the front matter: its lists of licences and languages grow."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    body = {"content": card, "repoType": "model"}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body)
    if response.status_code == 400:
        errors = "; ".join(str(one["message"]) for one in response.json().get("errors", ()))
        raise UserError(f"--push {repo_id}: the hub refuses the card ({one_line(errors)})")
    hf_raise_for_status(response)


def _stale(api: Any, repo_id: str, head: str, ours: AbstractSet[str]) -> list[str]:
    """Files in the repository that an older export wrote and the new one does not have."""
    there = set(api.list_repo_files(repo_id, revision=head))
    if MANIFEST not in there:
        foreign = sorted(there.difference(_OTHERS))
        if foreign:
            raise UserError(
                f"--push {repo_id}: holds files that no export of mmalign wrote (such as {foreign[0]}); "
                "give another name, or empty the repository first"
            )
        return []
    with tempfile.TemporaryDirectory(prefix="mmalign-push-") as scratch:
        path = api.hf_hub_download(repo_id, MANIFEST, revision=head, local_dir=scratch)
        older = json.loads(Path(path).read_text(encoding="utf-8"))
    listed = older.get("files", ()) if isinstance(older, dict) else ()
    return sorted(there.intersection(listed) - ours)


@contextmanager
def _plain_errors(repo_id: str, endpoint: str, token: str) -> Iterator[None]:
    """A refusal of the hub, or a failed connection, as one sentence without the token."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # An upload wraps the error of its connection in a RuntimeError.
        is_wrapped = isinstance(error, RuntimeError) and error.__cause__ is not None
        cause: Any = error.__cause__ if is_wrapped else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = one_line(cause).rstrip(". ") or type(cause).__name__
        if status is None and isinstance(cause, HTTPError | OSError):
            sentence = f"the connection to {endpoint} failed ({reason}); push again"
        elif status is not None and status >= 500:
            sentence = f"{endpoint} answers {status}; push again later"
        else:
            sentence = _BY_STATUS.get(status or 0, f"the hub refuses the export ({reason})")
        message = redact_text(sentence.replace(token, "..."))
        raise UserError(f"--push {repo_id}: {message}") from None
