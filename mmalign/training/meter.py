"""The metrics of steps, and speed and captions per language for the records.

each step            -> StepMetrics, on the device
every `log.every`    -> read_metrics -> loss, norm, ... of these steps                    (one all-reduce)
                     -> Meter.read   -> images and tokens per second, waiting for data, captions by language
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Batch


class StepMetrics(NamedTuple):
    """Metrics of a step that nobody has waited for: tensors without dimensions."""

    parts: dict[str, Tensor]  # summed over ranks they are those of the global batch
    shared: dict[str, Tensor]  # equal on all ranks
    lr: float


def read_metrics(steps: Sequence[StepMetrics]) -> list[dict[str, float]]:
    """The metrics of steps of one run; waits for the device. A collective."""
    if not steps:
        return []
    parts = torch.stack([value.double() for one in steps for value in one.parts.values()])
    shared = [value.double() for one in steps for value in one.shared.values()]
    total = torch.cat([distributed.sum_over_ranks(parts), torch.stack(shared)])
    values = iter(total.tolist())
    of_parts = [{name: next(values) for name in one.parts} for one in steps]
    of_shared = [{name: next(values) for name in one.shared} for one in steps]
    read = zip(steps, of_parts, of_shared, strict=True)
    return [{**part, **same, "lr": one.lr} for one, part, same in read]


class Meter:
    """Speed and captions per language since the last record."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._since = time.monotonic()
        # Of a step, and what the devices of all ranks can do at most; None: not asked yet, 0: not known.
        self.operations_per_image: float | None = None
        self.operations_per_second = 0.0
        self._reset()

    def _reset(self) -> None:
        self._languages: Counter[str] = Counter()
        self._steps = self._tokens = 0
        self._seconds = self._waited = self._met = 0.0

    def arrived(self) -> None:
        """A batch is there: the time since the last step was spent waiting for it."""
        self._arrived = time.monotonic()
        self._waited += self._arrived - self._since

    def met(self) -> None:
        """The other ranks are there as well: the time since the batch was there was spent on them."""
        self._met += time.monotonic() - self._arrived

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
        `slowest_rank` is the one that spends the most time by itself, in `slowest_rank_seconds` per step:
        the others wait for it. `mfu`: see `throughput.py`.
        """
        busy = self._seconds - self._met
        of_rank = (self._languages, self._tokens, self._waited, busy, _gpu_memory())
        languages, tokens, waited, busy_of, memory = zip(
            *distributed.gather_objects(of_rank), strict=True
        )
        images_per_second = self._steps * self._batch_size / self._seconds
        metrics = {
            "images_per_second": images_per_second,
            "tokens_per_second": sum(tokens) / self._seconds,
            "data_wait": max(waited) / self._seconds,
            "step_seconds": self._seconds / self._steps,
        }
        if len(busy_of) > 1:
            metrics["slowest_rank"] = float(busy_of.index(max(busy_of)))
            metrics["slowest_rank_seconds"] = max(busy_of) / self._steps
        if max(memory):
            metrics["gpu_memory_gib"] = max(memory)
        if self.operations_per_image and self.operations_per_second:
            done = self.operations_per_image * images_per_second
            metrics["mfu"] = done / self.operations_per_second
        total: Counter[str] = sum(languages, Counter())
        metrics |= {f"captions/{lang}": float(n) for lang, n in sorted(total.items())}
        self._reset()
        return metrics


def _gpu_memory() -> float:
    # GiB, the most that was allocated at a time since the start.
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
