"""The training loop, top to bottom.

    ranks -> run folder -> order of samples -> tokenizer -> model -> initialization -> engine -> steps
                                                                       -> checkpoints and records

Where a run starts (its own checkpoint, `resume_from`, `init_from`, from scratch) is decided in
`initialization.py`. A run may go on with another number of ranks: the stream of samples is the same, and a
checkpoint does not depend on ranks.
"""

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.code_version import code_version
from mmalign.core.commit import write_json
from mmalign.core.config import load_config
from mmalign.core.console import say, track
from mmalign.core.record import Recorder
from mmalign.data.stream.ledger import Ledger
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import ORDER_VERSION, GlobalOrder, open_sets
from mmalign.data.tokenizer import Tokenizer
from mmalign.evaluation.suite import SuiteConfig
from mmalign.models.dual_encoder import build_dual_encoder
from mmalign.training import checkpoint
from mmalign.training.checkpoint import Saver, TrainState
from mmalign.training.embed import open_image_features
from mmalign.training.engine import Engine
from mmalign.training.evaluate import evaluate, value_of
from mmalign.training.initialization import initialize_weights, parent_of, restore_state
from mmalign.training.meter import Meter, all_reduce_flags
from mmalign.training.non_finite import NonFiniteGuard
from mmalign.training.prepare import load_or_train_tokenizer, make_batches, open_run
from mmalign.training.run_config import RunConfig
from mmalign.training.signals import StopRequest
from mmalign.training.watchdog import Watchdog

STOPPED = "stopped.json"


def train(config: RunConfig, out: Path, stop_after: int | None = None) -> str | None:
    """Train to `config.steps`, or to `stop_after`, leaving checkpoints and records in `out`.

    Returns:
        The name of the signal that stopped it, after the step was saved and `stopped.json` written; None
        where it ran to the end.

    Raises:
        UserError: the configuration, the data or a checkpoint cannot be used, or no more can be written.
    """
    # Longer than the watchdog's limit: it names the rank that hangs before the collective times out.
    distributed.start(timedelta(seconds=max(600, 2 * config.engine.hang_seconds)))
    config = open_run(config, out)
    with StopRequest() as stop, Watchdog(out, config.engine.hang_seconds) as watchdog:
        run = _prepare(config, out, watchdog)
        last = min(config.steps, stop_after or config.steps)
        while run.state.step < last and not run.stopped:
            _take_steps(run, last, stop, watchdog)
        run.saver.finish()
        if run.recorder is not None:
            run.recorder.close()
    say(f"{out}: step {run.state.step} of {config.steps}, {run.state.pairs_seen} captions seen")
    return run.stopped


@dataclass
class _Run:
    """A run on one rank. `state` changes every step; `recorder` after a roll-back; the rest never."""

    config: RunConfig
    out: Path
    tokenizer: Tokenizer
    loader: BatchLoader
    engine: Engine
    suite: SuiteConfig | None
    saver: Saver
    guard: NonFiniteGuard
    recorder: Recorder | None
    meter: Meter
    ledger: Ledger
    state: TrainState
    saved_step: int
    saved_at: float
    stopped: str | None = None


def _prepare(config: RunConfig, out: Path, watchdog: Watchdog) -> _Run:
    order = GlobalOrder(open_sets(config.data), config.data, config.seed)
    tokenizer = load_or_train_tokenizer(config.tokenizer, order, out)
    watchdog.heartbeat("model")
    torch.manual_seed(config.seed)
    model = build_dual_encoder(config.model, tokenizer.vocabulary, tokenizer.padding_id)
    loader = make_batches(config, order, tokenizer, model)
    # Not on a resume: what `init_from` names may be gone by then.
    if not checkpoint.has_checkpoints(out / "checkpoints"):
        initialize_weights(config, model, tokenizer)
    engine = Engine(
        model,
        config.objective,
        config.engine,
        config.optimizer,
        config.steps,
        config.batch_size,
        config.model.min_temperature,
        config.seed,
    )
    watchdog.heartbeat("resume")
    state, starts = restore_state(config, out, engine, order)
    # After the weights are restored: the features must belong to the image tower that the run goes on with.
    loader.features = open_image_features(config, order.sets, engine)
    facts: dict[str, Any] = {
        "config_sha256": config.sha256,
        "data": order.data,
        "shuffle": order.shuffle,
        "order_version": ORDER_VERSION,
    }
    if distributed.is_main():
        facts["code"] = code_version()
        if starts:
            state = replace(state, parent=parent_of(config, state.step))
        (out / STOPPED).unlink(missing_ok=True)
    _say_what_starts(config, order, model, state)
    return _Run(
        config=config,
        out=out,
        tokenizer=tokenizer,
        loader=loader,
        engine=engine,
        suite=load_config(SuiteConfig, Path(config.evaluation.suite))
        if config.evaluation
        else None,
        saver=Saver(out / "checkpoints", config.checkpoint, facts),
        guard=NonFiniteGuard(config.non_finite, out),
        recorder=_recorder(config, out, state.step),
        meter=Meter(config.batch_size),
        ledger=Ledger(
            out, config.data.max_bad_fraction, len(order), state.stream.position, state.ledger
        ),
        state=state,
        saved_step=state.step,
        saved_at=time.monotonic(),
    )


def _say_what_starts(
    config: RunConfig, order: GlobalOrder, model: torch.nn.Module, state: TrainState
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{config.name}: {len(order)} images, {sum(order.counts.values())} captions in "
        f"{len(order.counts)} languages; {parameters / 1e6:.1f} M parameters; "
        f"{distributed.world_size()} ranks on {distributed.device().type} in {config.engine.precision}; "
        f"from step {state.step}"
    )


def _take_steps(run: _Run, last: int, stop: StopRequest, watchdog: Watchdog) -> None:
    """Steps until `last`, until a request to stop, or until the run has rolled back to a checkpoint."""
    config, saver = run.config, run.saver
    first = run.state.stream.position // config.batch_size
    stream = batches(run.loader, first, first + last - run.state.step, config.data.workers)
    for batch in track(stream, "train", config.steps, done=run.state.step):
        watchdog.heartbeat(f"step {run.state.step + 1}")
        metrics = run.engine.step(batch)
        agreed = all_reduce_flags(
            len(batch.language_N), bool(stop.requested), saver.is_writing, _save_is_due(run)
        )
        run.state = replace(
            run.state,
            step=run.engine.step_number,
            pairs_seen=run.state.pairs_seen + agreed.captions,
            stream=batch.state,
        )
        step = run.state.step
        run.meter.count(batch)
        run.ledger.count(batch)
        if run.guard.must_act(step, metrics, batch):
            return _roll_back(run, batch)
        if step % config.log.every == 0 or step == last or agreed.stop:
            _record(run, metrics)
        if not agreed.writing:
            saver.finish()
        is_best = _evaluate(run, watchdog)
        regular = step % config.checkpoint.every == 0 or agreed.save_is_due
        if regular or is_best or agreed.stop or step == last:
            watchdog.heartbeat(f"saving step {step}")
            run.ledger.flush()
            run.state = replace(run.state, ledger=run.ledger.to_json())
            saver.save(run.engine, run.state, is_best)
            run.saved_step, run.saved_at = step, time.monotonic()
            run.meter.forget_time()
        if agreed.stop:
            return _stop(run, stop)


def _save_is_due(run: _Run) -> bool:
    minutes = run.config.checkpoint.minutes
    return minutes is not None and time.monotonic() - run.saved_at >= 60 * minutes


def _record(run: _Run, metrics: dict[str, float]) -> None:
    run.ledger.flush()
    seen = {**run.meter.read(), **run.ledger.metrics(), "pairs_seen": run.state.pairs_seen}
    if run.recorder is not None:
        run.recorder.write(run.state.step, {**metrics, **seen})
    run.ledger.judge()


def _evaluate(run: _Run, watchdog: Watchdog) -> bool:
    """Measure the suite if it is due at this step.

    Returns:
        Whether these weights are the best so far.
    """
    config = run.config.evaluation
    if config is None or run.suite is None or run.state.step % config.every:
        return False
    watchdog.heartbeat(f"evaluation after step {run.state.step}")
    metrics = evaluate(run.suite, run.engine, run.config.model, run.tokenizer)
    if run.recorder is not None:
        run.recorder.write(run.state.step, metrics)
    run.meter.forget_time()
    if config.best is None:
        return False
    value = value_of(metrics, config.best)
    if run.state.best is not None and value <= run.state.best:
        return False
    run.state = replace(run.state, best=value)
    return True


def _roll_back(run: _Run, batch: Batch) -> None:
    """Take the newest checkpoint's weights and go on with the data after `batch`."""
    run.saver.finish()
    bad_step = run.state.step
    run.guard.note_roll_back(bad_step, run.saved_step)
    state = checkpoint.load_newest(run.out / "checkpoints", run.engine, run.loader.plan)
    run.state = replace(state, stream=batch.state)
    say(f"step {bad_step}: back to the weights of step {state.step}, on with later data")
    if run.recorder is not None:
        run.recorder.close()
        run.recorder = _recorder(run.config, run.out, state.step)


def _stop(run: _Run, stop: StopRequest) -> None:
    """Commit the checkpoint, and write which signal ended the run."""
    run.saver.finish()
    names = distributed.gather_objects(stop.requested)
    run.stopped = next(name for name in names if name)
    if distributed.is_main():
        write_json(run.out / STOPPED, {"step": run.state.step, "signal": run.stopped})
    say(
        f"{run.stopped}: stopped after step {run.state.step}, which is saved; the same command goes on"
    )


def _recorder(config: RunConfig, out: Path, step: int) -> Recorder | None:
    return Recorder(out, step, config.log.tensorboard) if distributed.is_main() else None
