"""What a step costs a device: floating-point operations, their share of its peak, and traces.

    first batch -> forward pass of a few images -> operations of each tower -> of a step, per image
    images per second x operations / (peak x ranks) -> MFU (model FLOPs utilisation, arXiv 2204.02311)

Operations that a run repeats (cached gradients, checkpointed activations) do not count.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import Section

# Dense bfloat16 operations per second by the makers' data sheets; the first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
_COUNTED = 32  # images whose forward pass is counted


def device_peak() -> tuple[str, float] | None:
    """Name and peak of this rank's GPU; None: a CPU, or not known."""
    if distributed.device().type != "cuda":
        return None
    name = torch.cuda.get_device_name(distributed.device())
    # Whole words: an L40 is no L4.
    fits = (known for known in PEAKS if re.search(rf"\b{known}\b", name))
    return next(((name, PEAKS[known]) for known in fits), None)


@torch.no_grad()
def operations_per_image(model: Any, forward: Callable[[Batch], Any], batch: Batch) -> float:
    """Floating-point operations of a training step per image, with its captions; called on all ranks.

    Args:
        model: the dual encoder.
        forward: its forward pass on a batch, with the engine's hooks.
    """
    part = batch.part(0, min(_COUNTED, len(batch.key_B)))
    # What torch.compile makes of a module cannot be counted.
    eager = torch.compiler.set_stance("force_eager")
    with eager, FlopCounterMode(display=False) as counter:
        forward(part)
    counted = {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}
    total = 3.0 * counted["Global"]  # the backward pass costs two forward passes
    for name in ("image_tower", "text_tower"):
        tower = getattr(model, name)
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            # Wrappers of the model put names of their own before.
            total -= 2 * next((n for of, n in counted.items() if of.endswith(f".{name}")), 0)
    return total / len(part.key_B)


class ProfileConfig(Section):
    from_step: int = pydantic.Field(ge=1)
    """The first step of the window; one some steps after the start shows the usual ones."""
    steps: int = pydantic.Field(default=3, ge=1)


class Profiler:
    """Writes a trace of a window of steps, `profile/rank<r>.json`, for chrome://tracing or Perfetto."""

    def __init__(self, config: ProfileConfig | None, folder: Path) -> None:
        self._config, self._folder = config, folder / "profile"
        self._profile: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, counted from 1."""
        config = self._config
        if config is not None and number == config.from_step:
            self._profile = torch.profiler.profile()
            self._profile.start()
        yield
        if config is not None and number >= config.from_step + config.steps - 1:
            self.close()

    def close(self) -> None:
        """End an open window."""
        if self._profile is None:
            return
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank{distributed.rank()}.json"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
