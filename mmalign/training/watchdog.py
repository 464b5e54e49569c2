"""A rank that hangs is named, with its stack, and the run ends instead of waiting for ever.

    loop -> heartbeat("step 12") ---+                   one line on stderr: waits for others, or hangs where
                                    +-> none for T s -> hang-rank<r>.txt: stacks of all threads
    thread of this rank checks -----+                   os._exit(EXIT_HUNG) -> torchrun ends the others

One rank that hangs makes all others wait in a collective. Every rank has its own watchdog, so all of them
report at about the same time. The rank whose stack is *not* inside a collective is the one to look at.

On GPUs collectives are asynchronous: a rank that waits for others stops where it next reads a result, so
there the line cannot tell the two cases apart. A process that is suspended for longer than T counts as
hanging when it continues.
"""

import faulthandler
import math
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

import torch

from mmalign.core import distributed
from mmalign.training.signals import EXIT_HUNG

_GRACE_SECONDS = 4.0
_WAITING = ("torch.distributed", "deepspeed.comm", "mmalign.core.distributed")
_LIBRARIES = (*_WAITING, "torch", "deepspeed", *sys.stdlib_module_names)


class Watchdog:
    """Ends this process when `heartbeat` was not called for `seconds` within the `with` block; 0: never.

    `folder`: of `hang-rank<r>.txt`, the same on all ranks.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._last = (time.monotonic(), "start", False)
        self._ended = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self, what: str, saves: bool = False) -> None:
        """Report what begins now, in less than a microsecond; before everything that may take long.

        Args:
            saves: whether it is part of a save, which a repeated signal must not end.
        """
        self._last = (time.monotonic(), what, saves)  # one assignment: a thread sees all or nothing

    def pause(self, what: str) -> None:
        """Watch nothing until the next heartbeat: what begins now may take as long as it needs."""
        self._last = (math.inf, what, False)

    def idle(self) -> float:
        """Seconds since the last heartbeat; 0 in a save or a pause."""
        since, _, saves = self._last
        return 0.0 if saves else max(0.0, time.monotonic() - since)

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        self.heartbeat("start")
        if self._seconds > 0:
            self._arm_backstop()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._seconds > 0:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        # Often enough that T is exceeded by at most a tenth.
        pause = min(self._seconds / 10, 1.0)
        while not self._ended.wait(pause):
            self._arm_backstop()
            since, what, _ = self._last
            if time.monotonic() - since > self._seconds:
                try:
                    self._report(time.monotonic() - since, what)
                    faulthandler.cancel_dump_traceback_later()
                    # The end of this process breaks the others' collectives; they must report first.
                    time.sleep(_GRACE_SECONDS)
                finally:  # also where the disk is full
                    os._exit(EXIT_HUNG)  # sys.exit would end this thread alone

    def _arm_backstop(self) -> None:
        # The thread needs Python's lock (GIL), which waiting calls release. C code that hangs without
        # releasing it stops the thread too. For that case `faulthandler` waits in C: 2 T after the *thread*
        # last ran, it writes all stacks to stderr and ends the process with exit code 1.
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True, file=sys.__stderr__)

    def _report(self, seconds: float, what: str) -> None:
        frames = sys._current_frames()
        path = self._folder / f"hang-rank{distributed.rank()}.txt"
        line = (
            f"mmalign: rank {distributed.rank()} {_verdict(frames, self._watched)}; "
            f"no heartbeat for {seconds:.0f} s, the last one: {what}; stacks: {path}\n"
        )
        # Not through sys.stderr, whose lock the hanging thread may hold.
        os.write(2, line.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + _stacks(frames), encoding="utf-8")


def _verdict(frames: dict[int, FrameType], watched: int) -> str:
    # autograd runs backward functions of a GPU on threads of its own, which `threading` does not know: a
    # collective in one of them counts as well.
    known = {thread.ident for thread in threading.enumerate()} - {watched}
    candidates = [watched, *(number for number in frames if number not in known | {watched})]
    for number in candidates:
        names = [_module(frame) for frame, _ in traceback.walk_stack(frames[number])]
        if any(_is_of(name, _WAITING) for name in names):
            return f"waits for other ranks at {_location(frames[number])}"
    word = "hangs, or waits for the GPU," if torch.cuda.is_available() else "hangs"
    return f"{word} at {_location(frames[watched])}"


def _location(innermost: FrameType) -> str:
    # The innermost position outside torch and Python's own library.
    stack = list(traceback.walk_stack(innermost))
    own = [entry for entry in stack if not _is_of(_module(entry[0]), _LIBRARIES)]
    frame, line = (own or stack)[0]
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_of(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _stacks(frames: dict[int, FrameType]) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for number, frame in frames.items():
        calls = "".join(traceback.format_stack(frame))
        parts.append(f"\nthread {number} ({names.get(number, 'not of Python')}):\n{calls}")
    return "".join(parts)
