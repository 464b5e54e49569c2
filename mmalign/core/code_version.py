"""Which code this is: its version and, from a git checkout, the commit and whether files differ from it.

{"version": "0.1.0", "commit": "b3bf315...", "dirty": false}      for an installed package both are null
"""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

VERSION = "0.2.0.dev0"
PACKAGE = Path(__file__).parents[1]


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """What a manifest says of the code that wrote it; `package` is the folder of the code."""
    # Only a checkout whose top level is the folder above it counts: an environment inside another project's
    # checkout is not part of that project.
    commit = _git(package, "rev-parse", "HEAD") if (package.parent / ".git").exists() else None
    changes = _git(package, "status", "--porcelain", "--", ".") if commit else None
    return {
        "version": VERSION,
        "commit": commit,
        "dirty": None if changes is None else changes != "",
    }


@cache  # the code that runs is what was on the disk when this was first asked
def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            # Without locks, so that a commit that is being made meanwhile does not fail.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,  # seconds; a network disk may hang
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
