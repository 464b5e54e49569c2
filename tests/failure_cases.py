"""Functions that ranks run in the tests of failures: steps and runs in which one rank has bad numbers."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from parity_cases import SOME_WAYS, Way, make_batch_for, make_engine, taken
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import load_config
from mmalign.core.errors import UserError
from mmalign.training import loop
from mmalign.training.engine import Engine
from mmalign.training.meter import StepMetrics
from mmalign.training.run_config import RunConfig


def bounded_temperatures() -> dict[Way, list[float]]:
    """For each way, the logarithmic scale after two steps of an engine with a minimum temperature of 0.5,
    each, and the scale that a checkpoint would hold."""
    found = {}
    for way in SOME_WAYS:
        engine = make_engine("contrastive", way, min_temperature=0.5)
        scales = []
        for step in range(2):
            engine.step(make_batch_for("contrastive", step))
            with engine.full_model():
                scales.append(engine.model.logit_scale.item())
        weights = distributed.gather_objects(engine.capture()[1])[0]["model.safetensors"]
        found[way] = [*scales, float(weights["logit_scale"])]
    return found


def spoiled_steps() -> dict[Way, dict[str, Any]]:
    """For each way, an engine that gets an image with a NaN, then an infinite gradient."""
    return {way: _spoiled(make_engine("contrastive", way)) for way in SOME_WAYS}


def _spoiled(engine: Engine) -> dict[str, Any]:
    first = taken(engine, make_batch_for("contrastive", 0))
    before = _everything(engine)
    bad_image = taken(engine, _with_nan(make_batch_for("contrastive", 1)))
    after_image = _everything(engine)
    parameter = engine.model.text_projection.weight
    hook = parameter.register_hook(_infinite_on_the_last_rank)
    bad_gradient = taken(engine, make_batch_for("contrastive", 2))
    hook.remove()
    after_gradient = _everything(engine)
    last = taken(engine, make_batch_for("contrastive", 3))
    return {
        "metrics": [*first, *bad_image, *bad_gradient, *last],
        "unchanged": _equal(before, after_image) and _equal(before, after_gradient),
        "moves": not _equal(after_gradient, _everything(engine)),
    }


def _infinite_on_the_last_rank(gradient: Tensor) -> Tensor:
    is_last = distributed.rank() == distributed.world_size() - 1
    return torch.full_like(gradient, torch.inf) if is_last else gradient


def _with_nan(batch: Batch) -> Batch:
    if distributed.rank() < distributed.world_size() - 1 or batch.image_BCHW is None:
        return batch
    image_BCHW = batch.image_BCHW.float()  # pixels are bytes, which have no NaN
    image_BCHW[0, 0, 0, 0] = torch.nan
    return replace(batch, image_BCHW=image_BCHW)


def _everything(engine: Engine) -> dict[str, Tensor]:
    moments, weights = engine.capture()
    return {**moments, **weights.get("model.safetensors", {})}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def run_that_differs(run_file: str, out: str) -> str:
    """A run in which rank 1 starts with a weight that no other rank has; the message that ended it."""
    real = Engine.restore

    def restore(engine: Engine, folder: Path, step: int) -> None:
        real(engine, folder, step)
        if distributed.rank() == 1:
            with torch.no_grad():
                engine.model.text_projection.weight[0, 0] += 1e-6

    Engine.restore = restore  # type: ignore[method-assign]
    try:
        loop.train(load_config(RunConfig, Path(run_file), []), Path(out))
    except UserError as error:
        return str(error)
    finally:
        Engine.restore = real  # type: ignore[method-assign]
    return ""


def stop_before_an_evaluation(run_file: str, out: str, signal_at: int | None) -> dict[str, Any]:
    """A run that is asked to stop while it takes a step; its end, and the steps that were evaluated."""
    step, evaluate, measured = Engine.step, loop.evaluate, list[int]()
    config = load_config(RunConfig, Path(run_file), [])

    def asking(engine: Engine, *args: Any) -> StepMetrics:
        metrics = step(engine, *args)
        if engine.step_number == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    def noted(suite: Any, engine: Engine, *rest: Any) -> dict[str, float]:
        measured.append(engine.step_number)
        return evaluate(suite, engine, *rest)

    Engine.step, loop.evaluate = asking, noted  # type: ignore[method-assign]
    try:
        return {"stopped": loop.train(config, Path(out)), "measured": measured}
    finally:
        Engine.step, loop.evaluate = step, evaluate  # type: ignore[method-assign]


def run_with_bad_data(run_file: str, out: str, changes: list[str], bad: list[int]) -> str:
    """A run in which the last rank's images at the global batches `bad` contain a NaN.

    Returns:
        The message of the error that ended it; empty: none.
    """
    real = loop.batches

    def spoiled(*args: Any) -> Iterator[Batch]:
        for batch in real(*args):
            number = batch.state.position // config.batch_size - 1
            yield _with_nan(batch) if number in bad else batch

    config = load_config(RunConfig, Path(run_file), changes)
    loop.batches = spoiled
    try:
        loop.train(config, Path(out))
    except UserError as error:
        return str(error)
    finally:
        loop.batches = real
    return ""
