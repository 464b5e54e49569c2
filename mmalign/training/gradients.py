"""Sums of gradients over ranks that begin while the backward pass still computes others (stage 0).

    parameters -> buckets, in the order in which gradients usually appear
    backward -> hook of each parameter -> all gradients of a bucket there -> one tensor -> all-reduce begins
    finish   -> what is missing is sent, all are waited for; `parameter.grad` are views of the buckets

As in DistributedDataParallel (arXiv 2006.15704). DeepSpeed overlaps like this from ZeRO 1 on; at stage 0 it
would begin when the backward pass has ended.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmalign.core import distributed

# Bytes per message: small enough that the first one begins early, large enough for the network's full speed.
BUCKET_BYTES = 25 * 2**20


def buckets_of(
    parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
) -> list[list[nn.Parameter]]:
    """Those that train, by the message that takes their gradients; a large one has a message of its own."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    # Gradients appear from the last layer to the first.
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        size = parameter.numel() * parameter.element_size()
        if size > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(parameter)
        room -= size
    return buckets


class GradientSum:
    """Replaces the gradients of a module's parameters by their sums over the ranks."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._buckets = buckets_of(parameters, bucket_bytes)
        # Gradients that each bucket waits for; empty outside the last backward pass of a step.
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, Callable[[], object]]] = []
        if distributed.world_size() > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(self._hook_of(number))

    def begin(self) -> None:
        """The next backward pass is the last one of the step: what it accumulates is final."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Wait for the sums; to be called after that backward pass."""
        self._missing = []
        for bucket in self._buckets:
            for parameter in bucket:
                if parameter.grad is None:  # ranks may differ in this, but all must send the same
                    parameter.grad = torch.zeros_like(parameter)
        if distributed.world_size() > 1:
            while len(self._sent) < len(self._buckets):
                self._send()
        for _, wait in self._sent:
            wait()
        self._sent = []

    def _hook_of(self, number: int) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if not self._missing:
                return
            self._missing[number] -= 1
            # In the same order on all ranks, whatever order their gradients appear in.
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

        return hook

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._sent.append((flat, distributed.start_sum_(flat)))
