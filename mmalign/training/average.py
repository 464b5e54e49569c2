"""An exponential moving average of the weights that train, kept beside them (Polyak averaging).

    after every step: average <- d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step))

The average is the model that a run is about: `model.safetensors` of a checkpoint holds it, so evaluation,
export, `init_from` and fine-tuning read it and need not know. The weights that the optimizer steps are in
`trained.safetensors`, for a resume alone. The steps are those of the same run without an average.

A parameter may have several names: T5 has two for its embeddings, and the decoder of masked language
modelling is the text tower's embeddings. A checkpoint holds the average under each of them; in
`trained.safetensors` a parameter has one name.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TRAINED_FILE = "trained.safetensors"


class WeightAverage:
    """The average of trainable parameters, on every rank; not for ZeRO 3, which splits these.

    Args:
        module: its names are those of all tensors here.
        prefix: the average is of the parameters whose first name in `module` begins like this.
        decay: the share that the average keeps at a step; lower at first, as above.
    """

    def __init__(self, module: nn.Module, prefix: str, decay: float) -> None:
        self._decay = decay
        names: dict[nn.Parameter, list[str]] = {}
        # By default `named_parameters` gives the first name of each, and state_dict gives all of them.
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        self._weights = {
            first: parameter
            for parameter, (first, *_) in names.items()
            if parameter.requires_grad and first.startswith(prefix)
        }
        self._names = {first: names[parameter] for first, parameter in self._weights.items()}
        self._average = {n: p.detach().clone() for n, p in self._weights.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average itself, by the first name of each parameter."""
        return self._average

    @torch.no_grad()
    def update(self, step: int, was_taken: Tensor) -> None:
        """Take in the weights after step `step`, counted from 0, unless the step was skipped (bool)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        share = (1 - decay) * was_taken.float()
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight, share)

    def split(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of `module` -> the same with the average, and the trained ones by their first names.

        Args:
            weights: under all names, on the CPU.
        """
        # Each name its own copy: safetensors refuses shared memory.
        averages = {
            name: self._average[first].cpu().clone()
            for first, names in self._names.items()
            for name in names
        }
        return {**weights, **averages}, {first: weights[first] for first in self._names}

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
