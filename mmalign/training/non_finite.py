"""How a run handles a loss or gradients that are not finite.

    metrics of steps -> finite: go on
                     -> not finite: no weight was changed (`Engine.step`); record the batch's keys, go on
                     -> too many in a row: stop, or roll back to the newest checkpoint and skip these batches

Metrics are read at every record and before every checkpoint, so a decision may come a few steps late. They
are equal on all ranks, so all ranks decide alike without communication.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic

from mmalign.core import distributed
from mmalign.core.config import Section
from mmalign.core.console import say
from mmalign.core.errors import UserError

LEDGER = "non_finite.jsonl"


class NonFiniteConfig(Section):
    limit: int = pydantic.Field(default=3, ge=0)
    """Consecutive batches that may be skipped because the loss or a gradient was not finite."""
    then: Literal["stop", "roll_back"] = "stop"
    """stop: end with an error; roll_back: load the newest checkpoint and continue with the data after these
    batches, once per checkpoint."""


class Taken(NamedTuple):
    """A step that was taken, and what it was trained on."""

    step: int
    position: int  # of the stream, behind the batch
    key_B: tuple[str, ...]  # of this rank


class NonFiniteGuard:
    """Watches a run's metrics; `non_finite.jsonl` in the run's folder lists the skipped batches."""

    def __init__(self, config: NonFiniteConfig, folder: Path) -> None:
        self._config = config
        self._ledger = folder / LEDGER
        self._in_a_row = 0
        self._back_to: int | None = None
        self._problem = ""  # what `must_act` found last

    def must_act(self, steps: Sequence[Taken], metrics: Sequence[dict[str, float]]) -> bool:
        """Record steps; true, or UserError, after too many consecutive ones that were not finite."""
        most, last_bad = 0, 0
        for taken, values in zip(steps, metrics, strict=True):
            # The norm as well: a finite loss can have gradients that overflow.
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            self._record(taken, values)
            if self._in_a_row > most:
                most, last_bad = self._in_a_row, taken.step
        if most <= self._config.limit:
            return False
        self._problem = (
            f"step {last_bad}: loss or gradients were not finite on {most} batches in a row; no weight was "
            f"changed: look at these samples (keys: {self._ledger}), or"
        )
        if self._config.then == "stop":
            raise UserError(
                f"{self._problem} go on with `non_finite.then=roll_back`, or with a lower `optimizer.lr` and "
                "`--change optimizer.lr`"
            )
        self._in_a_row = 0
        return True

    def note_roll_back(self, step: int, saved_step: int | None) -> None:
        """Allow one roll-back to the checkpoint of `saved_step`, after `must_act` was true.

        Raises:
            UserError: it is the second one, or there is no checkpoint (`saved_step` is None).
        """
        if saved_step is None:
            raise UserError(
                f"{self._problem} start again with a lower `optimizer.lr` (there is no checkpoint yet to go "
                "back to)"
            )
        if self._back_to == saved_step:
            raise UserError(
                f"step {step}: not finite again after rolling back to step {saved_step}, so the cause is not "
                f"in single batches (those skipped: {self._ledger}); go on with a lower `optimizer.lr` and "
                "`--change optimizer.lr`"
            )
        self._back_to = saved_step

    def _record(self, taken: Taken, metrics: dict[str, float]) -> None:
        keys = distributed.gather_objects(taken.key_B)
        if not distributed.is_main():
            return
        # One line per skipped batch.
        entry = {
            "step": taken.step,
            "position": taken.position,
            # As text: JSON has no NaN and no infinity.
            "loss": str(metrics["loss"]),
            "grad_norm": str(metrics["grad_norm"]),
            "keys": [key for part in keys for key in part],
        }
        with self._ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        say(
            f"step {taken.step}: loss or gradients not finite, batch skipped (its keys: {self._ledger})"
        )
