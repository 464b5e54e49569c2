"""The only module that talks to the process group.

Without a process group a process is rank 0 of 1 and every function here returns its input, so callers need
no special case. Tensors that are gathered with their gradient come back as `(rank 0's rows, rank 1's rows,
...)`; ranks may have different numbers of rows.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.core.errors import UserError, describe_os_error

T = TypeVar("T")
calls: Counter[str] = Counter()
"""Collectives that this process has called here so far, by name, forwards and backwards. DeepSpeed makes its
own."""


def start(timeout: timedelta = timedelta(minutes=10)) -> None:
    """Join the process group that torchrun describes in the environment, or make a group of one."""
    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        # gloo carries the tensors that live on the host (row counts, flags).
        backend = "cpu:gloo,cuda:nccl"
    if "RANK" in os.environ:
        store, rank, world_size = meet()
        store.set_timeout(timeout)
    else:  # DeepSpeed needs a group even then
        store, rank, world_size = dist.HashStore(), 0, 1
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)


@cache  # rank 0 serves the store, on the one port that torchrun names
def meet() -> tuple[dist.Store, int, int]:
    """The key-value store of torchrun's ranks, this rank and their number, before there is a group."""
    met: tuple[dist.Store, int, int] = next(dist.rendezvous("env://"))
    return met


def test_group(
    store: dist.Store, name: str, rank: int, size: int, device: torch.device, timeout: timedelta
) -> Any:
    """A group apart from the one of `start`, whose failure leaves that one alone.

    Args:
        store: of `meet`; the members find each other under `name`.
        rank: of this process in the group.
        device: what its tensors live on: NCCL on GPUs, gloo on CPUs.
    """
    backend: Any = dist.ProcessGroupNCCL if device.type == "cuda" else dist.ProcessGroupGloo
    return backend(dist.PrefixStore(name, store), rank, size, timeout)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    meet.cache_clear()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Ranks of this host, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is rank 0, the only one that writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, which alone calls it: a small picklable object, on every rank.

    Ranks can see one file system differently, so what they decide from it is decided here. The others wait
    as long as it takes: the time-out of collectives does not count.

    Raises:
        UserError: `work` raised it, or an OSError; on every rank.
    """
    box = [_attempt(work) if is_main() else None]
    if world_size() > 1:
        calls["on_main"] += 1
        dist.broadcast_object_list(box, src=0, group=_patient_group(dist.group.WORLD))
    assert box[0] is not None
    value, problem = box[0]
    if problem is not None:
        raise UserError(problem)
    return value  # type: ignore[return-value]  # None only where T is


def on_all(work: Callable[[], T]) -> T:
    """What `work`, which contains no collective, returns on this rank, once it has ended on all ranks.

    Ranks wait for each other as in `on_main`.

    Raises:
        UserError: `work` raised it, or an OSError, on any rank; the same one on every rank.
    """
    value, problem = _attempt(work)
    problems = [problem] * world_size()
    if world_size() > 1:
        calls["on_all"] += 1
        dist.all_gather_object(problems, problem, group=_patient_group(dist.group.WORLD))
    if found := next((one for one in problems if one is not None), None):
        raise UserError(found)
    return value  # type: ignore[return-value]


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return work(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, describe_os_error(error)


@cache  # one for each process group; `new_group` is a collective
def _patient_group(world: Any) -> Any:
    # A rank that ends breaks its connections, so that nobody waits for it for a day.
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def must_agree(value: object, what: str) -> None:
    """Stop all ranks (UserError) if a small picklable value, `what` in the sentence, differs between them."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(f"{what} differ between the ranks; give every host the same files")


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give every rank rank 0's values of the tensors, in place; equal shapes and dtypes on all ranks."""
    for tensor in tensors if world_size() > 1 else ():
        calls["broadcast"] += 1
        values = tensor.detach().contiguous()  # a copy where the layout is another (channels last)
        dist.broadcast(values, src=0)
        tensor.detach().copy_(values)


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, a small picklable object, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    boxes: list[Any] = [None] * world_size()
    calls["objects"] += 1
    dist.all_gather_object(boxes, value)
    return boxes


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a detached tensor over all ranks."""
    total = value.detach().clone()
    if world_size() > 1:
        calls["sum"] += 1
        dist.all_reduce(total)
    return total


def start_sum_(value: Tensor) -> Callable[[], object]:
    """Begin to replace a tensor by its sum over all ranks; call what is returned before it is read."""
    calls["gradients"] += 1
    work: Any = dist.all_reduce(value, async_op=True)
    wait: Callable[[], object] = work.wait
    return wait


def gather_vectors(mine: Tensor, name: str) -> Tensor:
    """(ranks, n): the vectors (n,) of all ranks, in rank order; n and dtype are equal on all ranks."""
    if world_size() == 1:
        return mine[None]
    calls[name] += 1
    rows = mine.new_empty(world_size(), len(mine))
    dist.all_gather_into_tensor(rows.flatten(), mine)
    return rows


def gather_rows(
    rows: Tensor,
    counts: Sequence[int] | None = None,
    name: str = "rows",
    used_alike: bool = False,
) -> Tensor:
    """All ranks' rows, concatenated in rank order; gradients flow back to the rank that owns a row.

    Args:
        rows: (R, ...); R may differ between ranks, the other sizes and the dtype are equal.
        counts: R of each rank; None: the ranks tell each other, which is one more collective.
        name: under which the collectives are counted.
        used_alike: every rank computes the same from what is gathered, so that all copies have the same
            gradient, and no rank needs to hear of the others'.

    Returns:
        (sum of R over ranks, ...). The gradient of `rows` is the **sum** over ranks of the gradients
        of its copies, so the sum over ranks of local losses has the gradient of one global loss.
    """
    if world_size() == 1:
        return rows
    if counts is None:  # on the host: gloo carries it without waiting for the GPU
        counts = gather_vectors(torch.tensor([rows.shape[0]]), f"{name}: counts").flatten().tolist()
    if not any(counts):
        return rows
    gathered: Tensor = _GatherRows.apply(rows, list(counts), name, used_alike)
    return gathered


class _GatherRows(torch.autograd.Function):
    # torch's own differentiable gathers are renamed between releases and need equal shapes on all ranks.

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], name: str, used_alike: bool) -> Tensor:
        ctx.counts, ctx.name, ctx.used_alike = counts, name, used_alike
        calls[name] += 1
        # Equal shapes are needed: rows are padded to the largest count, and cut off again below.
        padded = _padded(rows, max(counts))
        parts = rows.new_empty(len(counts) * max(counts), *rows.shape[1:])
        dist.all_gather_into_tensor(parts, padded)
        if min(counts) == max(counts):
            return parts
        return torch.cat(
            [part[:n] for part, n in zip(parts.split(max(counts)), counts, strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_ranks = gradients[0].split(ctx.counts)
        mine = of_ranks[rank()]
        if ctx.used_alike:
            return mine * world_size(), None, None, None
        # Every rank's loss uses a copy of these rows, so the gradients of all copies are added. Each rank
        # receives the sums of its own rows alone.
        calls[f"{ctx.name}: gradients"] += 1
        longest = max(ctx.counts)
        total = mine.new_empty(longest, *mine.shape[1:])
        padded = torch.cat([_padded(one, longest) for one in of_ranks])
        dist.reduce_scatter_tensor(total, padded)
        return total[: len(mine)], None, None, None


def _padded(rows: Tensor, count: int) -> Tensor:
    if len(rows) == count:
        return rows.contiguous()
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded
