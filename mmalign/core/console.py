"""What a person sees while a verb works: lines, and progress as a bar on a terminal or as lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from mmalign.core import distributed

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print one line on rank 0."""
    if distributed.is_main():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def track(values: Iterable[T], label: str, total: int | None, done: int = 0) -> Iterator[T]:
    """The same values; shows on rank 0 how many of `total` were taken.

    Args:
        done: how many were taken before (a run that resumes).
    """
    if not distributed.is_main():
        yield from values
    elif sys.stdout.isatty():
        yield from _with_bar(values, label, total, done)
    else:
        yield from _with_lines(values, label, total, done)


def _with_bar(values: Iterable[T], label: str, total: int | None, done: int) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(label, total=total, completed=done)
        for value in values:
            yield value
            progress.advance(task)


def _with_lines(values: Iterable[T], label: str, total: int | None, done: int) -> Iterator[T]:
    last = time.monotonic()
    for done, value in enumerate(values, start=done + 1):  # noqa: B020
        yield value
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{label}: {done}" + (f" of {total}" if total else ""))
