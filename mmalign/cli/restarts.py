"""Restarts by torchrun: a user error, which no restart can fix, is not retried.

torchrun restarts all ranks (`--max-restarts`) whatever ended them; no exit code forbids it. It gives every
rank of every attempt a file for its error, whose message it prints as the cause:

    <log>/<run>/attempt_<n>/<local rank>/error.json      {"message": ..., "errorTraits": {...}}

A `UserError` goes there. The ranks of the next attempt find it and end before they import torch.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from mmalign.core.errors import UserError

_FINAL = {"category": "user_error", "retryability": "False"}


def note_final(error: UserError) -> None:
    """Write the error where torchrun and the next attempt look for it; without torchrun nowhere."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": str(error), "timestamp": int(time.time()), "errorTraits": _FINAL}
        with suppress(OSError):
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def refuse_restart() -> None:
    """Raise the UserError with which a rank of this host ended the attempt before, if one did."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not attempt or not file:
        return
    before = Path(file).parents[1].with_name(f"attempt_{attempt - 1}")
    for path in sorted(before.glob("*/error.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("errorTraits") == _FINAL:
            raise UserError(report["message"])
