"""Being asked to stop: signals become a flag that the loop reads between two steps.

    SIGTERM, SIGUSR1, SIGINT -> handler notes the name -> `requested` -> loop saves, exits with EXIT_STOPPED

Schedulers ask before they take a machine away: Slurm with the signal that `--signal` names (SIGUSR1 by
habit), Kubernetes and torchrun with SIGTERM, a person with Ctrl-C. A handler runs between any two
instructions of the program, in the middle of a save as well, so it writes nothing and only remembers
(signal-safety(7)). The loop does the rest at a place where the state is whole.

A training process ends with one of these exit codes:

    0              all steps are done
    1              an error that a person has to mend, said in one line
    EXIT_STOPPED   stopped on request, checkpoint saved: start it again and it goes on
    EXIT_HUNG      the watchdog ended it: look at hang-rank*.txt, then start it again

torchrun reports a code of its own (1) whatever its ranks exit with.
"""

import signal
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: a temporary failure, the user is invited to retry."""
EXIT_HUNG = 76
"""Next to EXIT_STOPPED; a code of its own, so that a script can tell a hang from a request."""

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Takes the signals over within a `with` block and gives the old handlers back after it.

    A second SIGINT raises KeyboardInterrupt: a person who presses Ctrl-C twice does not want to wait. The
    others may come as often as they like; the first one is remembered.

    Only the main thread may enter it: Python delivers signals nowhere else.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """Name of the signal that asked, for example `SIGTERM`; None as long as none came."""
        return self._name

    def __enter__(self) -> "StopRequest":
        self._old = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            # None: a handler that C code installed, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._name == "SIGINT":
            raise KeyboardInterrupt
        self._name = self._name or name
