"""Stop requests: a signal sets a flag that the loop reads between two steps.

    SIGTERM, SIGUSR1, SIGINT -> handler stores the name -> `requested` -> loop saves, exits with EXIT_STOPPED

Schedulers send a signal before they take a machine away: Slurm the one that `--signal` names (usually
SIGUSR1), Kubernetes and torchrun SIGTERM, a person Ctrl-C.

A training process ends with one of these exit codes:

    0              all steps are done
    1              an error that a person has to fix, reported in one line
    EXIT_STOPPED   stopped on request, checkpoint saved: start it again and it goes on
    EXIT_HUNG      ended by the watchdog: read hang-rank*.txt, then start it again

torchrun reports a code of its own (1) whatever its ranks exit with.
"""

import signal
from types import FrameType
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, the user is invited to retry
EXIT_HUNG = 76  # a code of its own, so that a script can tell a hang from a request

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Handles the signals within a `with` block and restores the old handlers after it.

    A second SIGINT raises KeyboardInterrupt: a person who presses Ctrl-C twice does not want to wait.
    Repeated other signals change nothing.

    Only the main thread may enter it: Python delivers signals nowhere else.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        # Name of the first signal received.
        return self._name

    def __enter__(self) -> "StopRequest":
        self._old = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            # None: a handler that C code installed, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._name == "SIGINT":
            raise KeyboardInterrupt
        # This runs between any two instructions, also in the middle of a save, so it only sets the flag
        # (signal-safety(7)). The first one counts: a scheduler that asks again, or differently, has decided
        # nothing new.
        self._name = self._name or name
