"""Stop requests: a signal sets a flag that the loop reads between two steps.

    SIGTERM, SIGUSR1, SIGINT -> handler stores the name -> `requested` -> loop saves, exits with EXIT_STOPPED
    a second one -> thread -> ends the process: SIGINT at once, others after IDLE_SECONDS without progress

Schedulers send a signal before they take a machine away: Slurm the one that `--signal` names (usually
SIGUSR1), Kubernetes and torchrun SIGTERM, a person Ctrl-C.

A training process ends with one of these exit codes:

    0                 all steps are done
    1                 an error that a person has to fix, reported in one line
    EXIT_STOPPED      stopped on request, checkpoint saved: start it again and it goes on
    EXIT_HUNG         no progress, ended by the watchdog (read hang-rank*.txt) or by a repeated signal
    EXIT_INTERRUPTED  a second SIGINT; the newest checkpoint is kept

torchrun reports a code of its own (1) whatever its ranks exit with.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from select import select
from types import FrameType
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, the user is invited to retry
EXIT_HUNG = 76  # a code of its own, so that a script can tell a hang from a request
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells report it
IDLE_SECONDS = 30.0  # torchrun and Slurm send several signals within seconds, and then kill

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Ctrl-C reaches a worker that is just starting as well, which must not count as the second one.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopRequest:
    """Handles the signals within a `with` block and restores the old handlers after it.

    Only the main thread may enter it: Python delivers signals nowhere else.

    Attributes:
        requested: name of the first signal received, for example `SIGTERM`.
        idle: seconds without progress; 0 during a save.
    """

    def __init__(self, idle: Callable[[], float]) -> None:
        self.requested: str | None = None
        self.idle = idle
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._old = {number: signal.signal(number, self._note) for number in _ASKING}
        # Python's handlers run in the main thread between two instructions, and a hung loader gets to none.
        # The handler in C writes the signal's number here at once.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._end_if_repeated, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)
        for number, handler in self._old.items():
            # None: a handler that C code installed, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # This runs between any two instructions, also in the middle of a save, so it only sets the flag
        # (signal-safety(7)). The first one counts: a scheduler that asks again has decided nothing new.
        self.requested = self.requested or signal.Signals(number).name

    def _end_if_repeated(self) -> None:
        received: Counter[int] = Counter()
        while True:
            if select([self._read], [], [], 1.0)[0]:
                numbers = os.read(self._read, 64)
                if not numbers:  # the block has ended
                    return
                received.update(numbers)
            if received[signal.SIGINT] > 1:
                _end("interrupted twice", EXIT_INTERRUPTED)
            asked = received[signal.SIGTERM] + received[signal.SIGUSR1]
            if asked > 1 and self.idle() > IDLE_SECONDS:
                _end(
                    f"asked {asked} times to stop, without progress for {IDLE_SECONDS:.0f} s",
                    EXIT_HUNG,
                )


def _end(reason: str, code: int) -> None:
    # Not through sys.stderr, whose lock a hanging thread may hold. Workers end with their parent.
    os.write(
        2,
        f"mmalign: {reason}: ended; the same command goes on from the newest checkpoint\n".encode(),
    )
    os._exit(code)
