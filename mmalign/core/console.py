"""What a user sees while a verb works: lines, and progress as a bar on a terminal or as lines elsewhere."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from mmalign.core import distributed
from mmalign.core.errors import UserError, printable

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print one line on rank 0."""
    if distributed.is_main():
        sys.stdout.write(printable(text, keep="\t\n") + "\n")
        sys.stdout.flush()  # a log file would otherwise get its lines in blocks, long after the fact


def track(values: Iterable[T], label: str, total: int | None, done: int = 0) -> Iterator[T]:
    """The same values; shows on rank 0 how many of `total` were taken, `done` of them before."""
    if not distributed.is_main():
        yield from values
        return
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            yield from progress.track(values, total, done, description=label)
        return
    last = time.monotonic()
    for count, value in enumerate(values, start=done + 1):
        yield value
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{label}: {count}" + (f" of {total}" if total else ""))


def hide_library_progress() -> None:
    """Switch off transformers' bars of loaded and saved weights, which would break our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def run_verb(arguments: Sequence[str]) -> None:
    """Run `mmalign <arguments>` and show its output; a UserError if its exit code is not 0."""
    command = f"mmalign {shlex.join(arguments)}"
    say(f"\n$ {command}")
    # In its own process, a verb cannot be influenced by what an earlier one left in memory.
    done = subprocess.run([sys.executable, "-m", "mmalign", *arguments])
    if done.returncode != 0:
        raise UserError(f"`{command}` stopped with exit code {done.returncode}")
