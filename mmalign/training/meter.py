"""Speed and captions per language for the records, and the flags that all ranks share after each step.

each step            -> all_reduce_flags: captions, stop, still writing, save due   (one small all-reduce)
every `log.every`    -> Meter.read -> images and tokens per second, waiting for data, captions by language
"""

import time
from collections import Counter
from typing import NamedTuple

import torch

from mmalign.core import distributed
from mmalign.core.batch import Batch


class Flags(NamedTuple):
    """Equal on all ranks."""

    captions: int  # of the global batch
    stop: bool  # at least one rank was asked to stop
    writing: bool  # at least one rank still writes its files of a checkpoint
    save_is_due: bool  # by rank 0's clock it is time for a checkpoint


def all_reduce_flags(captions: int, stop: bool, writing: bool, save_is_due: bool) -> Flags:
    """The flags of all ranks combined; to be called on all ranks."""
    # Clocks differ between machines: rank 0's decides.
    due = save_is_due and distributed.is_main()
    mine = torch.tensor([captions, stop, writing, due], dtype=torch.int64)
    # One message for all four. Of the flags a sum over ranks is positive where one rank has raised it.
    total, *raised = distributed.sum_over_ranks(mine).tolist()
    return Flags(total, *(count > 0 for count in raised))


class Meter:
    """Speed and captions per language since the last record."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._since = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._languages: Counter[str] = Counter()
        self._steps = self._tokens = 0
        self._seconds = self._waited = 0.0

    def arrived(self) -> None:
        """A batch is there: the time since the last step was spent waiting for it."""
        self._waited += time.monotonic() - self._since

    def count(self, batch: Batch) -> None:
        """A step on this batch is done."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._languages.update(batch.language_N)
        self._tokens += sum(batch.length_N)
        self._steps += 1

    def forget_time(self) -> None:
        """Leave the time since the last step out of the speed."""
        self._since = time.monotonic()

    def read(self) -> dict[str, float]:
        """The metrics since the last call, over all ranks; resets the counters.

        `data_wait` is the fraction of the time in which the rank that waits longest has no batch.
        """
        of_rank = (self._languages, self._tokens, self._waited)
        languages, tokens, waited = zip(*distributed.gather_objects(of_rank), strict=True)
        metrics = {
            "images_per_second": self._steps * self._batch_size / self._seconds,
            "tokens_per_second": sum(tokens) / self._seconds,
            "data_wait": max(waited) / self._seconds,
        }
        total: Counter[str] = sum(languages, Counter())
        metrics |= {f"captions/{lang}": float(n) for lang, n in sorted(total.items())}
        self._reset()
        return metrics
