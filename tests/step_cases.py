"""Functions that ranks run in tests of a step's collectives, and what in a step reads the device."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from parity_cases import (
    IMAGES,
    OBJECTIVES,
    Way,
    build_model,
    make_batch,
    make_batch_for,
    make_engine,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmalign.core import distributed
from mmalign.core.config import validate
from mmalign.training.engine import Engine, EngineConfig
from mmalign.training.gradients import GradientSum
from mmalign.training.meter import Meter
from mmalign.training.optimizer import OptimizerConfig

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce_scatter_tensor",
)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls of torch.distributed, by whomever."""
    found: Counter[str] = Counter()

    def counting(name: str) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **options: Any) -> Any:
            found[name] += 1
            return real(*args, **options)

        return patch.object(dist, name, call)

    patches = [counting(name) for name in COLLECTIVES]
    for one in patches:
        one.start()
    yield found
    for one in patches:
        one.stop()


def collectives_of_a_step() -> dict[tuple[str, bool], tuple[Counter[str], int]]:
    """By objective, and whether gradients are cached: our collectives by name, and those of everybody."""
    found = {}
    for objective in ("contrastive", "prefixes", "masked_language_model"):
        for cached in (False, True):
            if cached and objective == "masked_language_model":
                continue
            engine = make_engine(objective, Way(0, cached=cached))
            engine.step(
                make_batch_for(objective, 0)
            )  # the first one finds out how much room it needs
            before = distributed.calls.copy()
            with counted() as everybody:
                engine.step(make_batch_for(objective, 1))
            found[objective, cached] = (distributed.calls - before, everybody.total())
    return found


def sums_begin_during_the_backward_pass() -> dict[str, Any]:
    """Messages sent when the first layer's gradient appears, and afterwards; the largest error of a sum."""
    torch.manual_seed(distributed.rank())
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    unused = nn.Parameter(torch.ones(3))
    input_N8 = torch.randn(5, 8)
    model(input_N8).sum().backward()
    wanted = [distributed.sum_over_ranks(p.grad) for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    total = GradientSum([unused, *model.parameters()], bucket_bytes=8 * 8 * 4)
    start, seen = distributed.calls["gradients"], []
    model[0].weight.register_hook(
        lambda gradient: seen.append(distributed.calls["gradients"] - start)
    )
    model(input_N8).sum().backward()  # not the last one of the step: nothing is sent
    model.zero_grad()
    total.begin()
    model(input_N8).sum().backward()
    total.finish()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "sent at the first layer": seen,
        "sent": distributed.calls["gradients"] - start,
        "unused": unused.grad,
        "error": max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)),
    }


# Operations whose result the host needs to go on: on a GPU it waits for everything before.
_READS = (
    "_local_scalar_dense",
    "nonzero",
    "bincount",
    "masked_select",
    "unique",
    "_unique2",
    "repeat_interleave",
)


class HostReads(TorchDispatchMode):
    """Notes where values that follow from a module's weights or inputs are read by the host.

    On a CPU all tensors are on the host. So those that a GPU would hold are followed from operation to
    operation, beginning with the tensors given.
    """

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self.places: list[str] = []
        self._on_device = {one.untyped_storage()._cdata for one in tensors}
        self._kept: list[Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.untyped_storage()._cdata in self._on_device for one in inputs):
            name = func.overloadpacket.__name__
            by_mask = name == "index" and any(
                one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
            )
            if name in _READS or by_mask:
                self.places.append("".join(traceback.format_stack(limit=12)))
            for one in tree_leaves(out):
                if isinstance(one, Tensor):
                    self._kept.append(one)
                    self._on_device.add(one.untyped_storage()._cdata)
        return out


def reads_of_steps() -> list[str]:
    """Where steps with and without cached gradients read the device, as stacks."""
    return [one for cached in (False, True) for one in _reads_of_a_step(Way(0, cached=cached))]


def _reads_of_a_step(way: Way) -> list[str]:
    engine: Engine = make_engine("contrastive", way)
    engine.step(make_batch_for("contrastive", 0))
    batch = make_batch_for("contrastive", 1)
    inputs = [batch.image_BCHW, batch.token_NL, batch.mask_NL]
    states = [t for s in engine._optimizer.state.values() for t in s.values()]
    state = [*engine.module.parameters(), *engine.module.buffers(), *states]
    with HostReads([one for one in (*inputs, *state) if isinstance(one, Tensor)]) as reads:
        engine.step(batch)
    return reads.places


def slowest_rank() -> dict[str, float]:
    """What a meter says after two steps of 10 s, of which the ranks wait different times for data."""
    clock = [0.0]
    with patch("mmalign.training.meter.time.monotonic", lambda: clock[0]):
        meter = Meter(8)
        meter.operations_per_image, meter.operations_per_second = 50.0, 1000.0
        for _ in range(2):
            for seconds, then in zip(
                ((2.0, 5.0, 3.0), (4.0, 0.0, 6.0))[distributed.rank()],
                (meter.arrived, meter.met, lambda: meter.count(make_batch(0, 0, 1))),
                strict=True,
            ):
                clock[0] += seconds
                then()
        return meter.read()


def count_operations() -> tuple[float, list[str]]:
    """Operations per image of a model with batch normalisation; buffers that counting has changed."""
    config = validate(EngineConfig, {"precision": "fp32"}, "test")
    optimizer = validate(OptimizerConfig, {"lr": 1e-3}, "test")
    model = build_model("resnet10t")
    engine = Engine(model, OBJECTIVES["contrastive"], config, optimizer, 8, IMAGES, 0.01)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in before)
    found = engine.operations_per_image(make_batch(0, 0, 1))
    changed = [name for name, one in model.named_buffers() if not one.equal(before[name])]
    return found, changed
