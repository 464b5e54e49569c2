"""Run a verb of mmalign in a process of its own, as a person would: nothing leaks from one to the next."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from mmalign.core.console import say
from mmalign.core.errors import UserError


def run_verb(arguments: Sequence[str]) -> None:
    """Run `mmalign <arguments>`, its output shown.

    Raises:
        UserError: it stopped with another exit code than 0.
    """
    say(f"\n$ mmalign {shlex.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "mmalign", *arguments])
    if done.returncode != 0:
        raise UserError(
            f"`mmalign {shlex.join(arguments)}` stopped with exit code {done.returncode}"
        )
