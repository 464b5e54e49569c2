"""Which code this is: its version and, from a git checkout, the commit and whether files differ from it.

{"version": "0.1.0", "commit": "b3bf315...", "dirty": false}      an installed package has null in both
"""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

VERSION = "0.2.0.dev0"
PACKAGE = Path(__file__).parents[1]
_SECONDS = 10


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """What a manifest says of the code that wrote it.

    Args:
        package: the folder of the code; the checkout is the one whose top level it lies in. An environment
            within somebody else's checkout is not part of that.

    Returns:
        `version`; `commit` (hexadecimal) and `dirty` (whether a file of the package differs from the commit
        or is not in it), both None without git or a checkout.
    """
    commit = _git(package, "rev-parse", "HEAD") if (package.parent / ".git").exists() else None
    changes = _git(package, "status", "--porcelain", "--", ".") if commit else None
    dirty = None if changes is None else bool(changes)
    return {"version": VERSION, "commit": commit, "dirty": dirty}


@cache  # the code that runs is the code that was there when it was asked first
def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it says nothing of use."""
    # git must not take a lock: somebody may be committing.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
