"""What a run writes down: metrics, one JSON object per line (and for trackers if asked), and commands.

{"step": 40, "loss": 2.31, "temperature": 0.05, ...}
"""

import json
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import write_atomic
from mmalign.core.errors import UserError

METRICS = "metrics.jsonl"
_OLD_NAMES = {"pairs_per_second": "images_per_second", "pairs_seen": "captions_seen"}  # before 0.2


class Recorder:
    """Appends metrics to `metrics.jsonl` in the run folder, and if asked also to its `tensorboard`.

    Args:
        track: a package with the functions of wandb (trackio has them too) that gets the records as well.
        name: of the run there.
    """

    def __init__(
        self,
        folder: Path,
        last_step: int = 0,
        tensorboard: bool = False,
        track: str | None = None,
        name: str = "",
    ) -> None:
        path = folder / METRICS
        # Lines after the checkpoint that a run resumes from will be made again: every step has one line.
        kept = [record for record in read_records(path) if record["step"] <= last_step]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)
        self._tracker: Any = None
        if track is not None:
            self._tracker = import_module(track)
            self._tracker.init(project="mmalign", name=name)

    def write(self, step: int, metrics: dict[str, float], suite: str | None = None) -> None:
        """Append one record and flush it, so that a killed run keeps every line that it wrote.

        Args:
            suite: name of the suite that was measured; None: a record of training.
        """
        # JSON has no NaN or infinity. A step whose loss was not finite is listed in `non_finite.jsonl`.
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        of = {} if suite is None else {"suite": suite}
        self._file.write(json.dumps({"step": step, **of, **metrics}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(metrics, step=step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.finish()


def check_tracker(track: str | None) -> None:
    """UserError: the package of `Recorder`'s `track` is not installed."""
    if track is not None and find_spec(track) is None:
        raise UserError(f"log.track: {track} is not installed; install it, or remove the field")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, oldest first; none if there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):  # a kill can cut the last line
            record = json.loads(line)
            records.append({_OLD_NAMES.get(name, name): value for name, value in record.items()})
    return records


def note_command(run: Path, arguments: Sequence[str]) -> None:
    """Add a command line of mmalign, given without its name, to the run's `commands.txt`, once; on rank 0."""
    if not distributed.is_main():
        return
    run.mkdir(parents=True, exist_ok=True)
    path = run / "commands.txt"
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    command = shlex.join(["mmalign", *arguments])
    if command not in known:
        write_atomic(path, "".join(f"{line}\n" for line in [*known, command]))
