"""An exponential moving average of the weights that train, kept beside them (Polyak averaging).

    after every step: average <- d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step))

The average is the model that a run is about: `model.safetensors` of a checkpoint holds it, so evaluation,
export, `init_from` and fine-tuning read it and need not know. The weights that the optimizer steps are in
`trained.safetensors`, for a resume alone. The steps are those of the same run without an average.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmalign.core import distributed

TRAINED_FILE = "trained.safetensors"


class WeightAverage:
    """The average of a model's trainable parameters, on every rank; not for ZeRO 3, which splits these."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average = {n: p.detach().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int, was_taken: Tensor) -> None:
        """Take in the weights after step `step`, counted from 0, unless the step was skipped (bool)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        share = (1 - decay) * was_taken.float()
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight, share)

    @torch.no_grad()
    def start_from_weights(self) -> None:
        """Make the average equal to the weights."""
        for name, weight in self._weights.items():
            self._average[name].copy_(weight)

    def split(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A model's tensors on rank 0 -> the same with the average, and those that it replaces."""
        averages = {name: one.cpu().clone() for name, one in self._average.items()}
        return {**weights, **averages}, {name: weights[name] for name in averages}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average for as long as the context lasts."""
        trained = [weight.detach().clone() for weight in self._weights.values()]
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, before in zip(self._weights.values(), trained, strict=True):
                    weight.copy_(before)


@torch.no_grad()
def load_trained(model: nn.Module, folder: Path) -> bool:
    """Load the weights that the optimizer steps, of a checkpoint whose model is their average.

    To be called on all ranks, of which rank 0 reads.

    Returns:
        Whether it is such a checkpoint.
    """
    path = folder / TRAINED_FILE
    names = distributed.on_main(lambda: list(load_file(path)) if path.is_file() else [])
    own = dict(model.named_parameters())
    if distributed.is_main() and names:
        for name, tensor in load_file(path).items():
            own[name].copy_(tensor)
    distributed.broadcast_([own[name] for name in names])
    return bool(names)
