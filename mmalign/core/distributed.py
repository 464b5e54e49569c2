"""The only module that talks to the process group.

Without a process group a process is rank 0 of 1 and every function here returns its input, so callers need
no special case. Tensors that are gathered with their gradient come back as `(rank 0's rows, rank 1's rows,
...)`; ranks may have different numbers of rows.
"""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start(timeout: timedelta = timedelta(minutes=10)) -> None:
    """Join the process group that torchrun describes in the environment, or make a group of one."""
    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        # gloo carries the tensors that live on the host (row counts, flags).
        backend = "cpu:gloo,cuda:nccl"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    alone: dict[str, Any] = {}
    if "RANK" not in os.environ:  # DeepSpeed needs a group even then
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, timeout=timeout, **alone)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0, the only one that writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: T) -> T:
    """Rank 0's `value`, a small picklable object, on every rank."""
    return gather_objects(value)[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, a small picklable object, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a detached tensor over all ranks."""
    total = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows, concatenated in rank order; gradients flow back to the rank that owns a row.

    Args:
        rows: (R, ...); R may differ between ranks, the other sizes and the dtype are equal.

    Returns:
        (sum of R over ranks, ...). The gradient of `rows` is the **sum** over ranks of the gradients
        of its copies, so the sum over ranks of local losses has the gradient of one global loss.
    """
    if world_size() == 1:
        return rows
    mine = torch.tensor([rows.shape[0]])  # on the host: gloo carries it without waiting for the GPU
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    gathered: Tensor = _GatherRows.apply(rows, [int(count) for count in counts])
    return gathered


class _GatherRows(torch.autograd.Function):
    # torch's own differentiable gathers are renamed between releases and need equal shapes on all ranks.

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        # all_gather needs equal shapes: rows are padded to the largest count, and cut off again below.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss uses a copy of these rows, so the gradients of all copies are added.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None
