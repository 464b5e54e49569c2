"""The training loop, top to bottom.

    ranks -> run folder -> order of samples -> tokenizer -> model -> initialization -> engine -> steps
                                                                       -> checkpoints and records

Where a run starts is decided in `initialization.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.code_version import code_version
from mmalign.core.commit import write_json
from mmalign.core.console import say, track
from mmalign.core.record import Recorder, check_tracker
from mmalign.data.stream.ledger import Ledger
from mmalign.data.stream.loader import batches, to_device
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.models.dual_encoder import add_adapters
from mmalign.models.run_towers import RunTowers
from mmalign.training.build_model import build_model
from mmalign.training.checkpoint import Saver, data_so_far, has_checkpoints, load_newest
from mmalign.training.embed import open_image_features
from mmalign.training.engine import Engine
from mmalign.training.evaluate import evaluate, open_suite, recorded_evaluation, with_best
from mmalign.training.exchange import Votes
from mmalign.training.initialization import initialize_weights, restore_state
from mmalign.training.meter import Meter, StepMetrics, read_metrics
from mmalign.training.non_finite import NonFiniteGuard, Taken
from mmalign.training.prepare import (
    check_sizes,
    hold,
    load_or_train_tokenizer,
    make_batches,
    open_run,
    write_config,
)
from mmalign.training.remote_run import RemoteRun
from mmalign.training.run_config import Change, RunConfig
from mmalign.training.signals import StopRequest
from mmalign.training.throughput import Profiler, device_peak
from mmalign.training.watchdog import Watchdog

STOPPED = "stopped.json"


def train(
    config: RunConfig,
    out: Path | RemoteRun,
    stop_after: int | None = None,
    change: Sequence[str] = (),
) -> str | None:
    """Train to `config.steps`, or to `stop_after`, leaving checkpoints and records in `out`.

    Args:
        out: run folder, on a disk that all ranks see; or the run in a store.
        change: fields in which the configuration may differ from that of the run so far (see `open_run`).

    Returns:
        The name of the signal that stopped it, after the step was saved and `stopped.json` written; None
        where it ran to the end.

    Raises:
        UserError: the configuration, the data or a checkpoint cannot be used, or no more can be written.
    """
    # Longer than the watchdog's limit: it names the rank that hangs before the collective times out.
    limit = config.engine.hang_seconds or 43_200  # 0: never
    distributed.start(timedelta(seconds=max(600, 2 * limit)))
    # Each rank read the run file itself.
    name = str(out) if isinstance(out, Path) else out.url
    distributed.must_agree((config.sha256, name, change), "the run file or the command line")
    remote, out = (None, out) if isinstance(out, Path) else (out, out.folder)
    with (
        hold(out),
        Watchdog(out, config.engine.hang_seconds) as watchdog,
        StopRequest(watchdog.idle) as stop,
    ):
        if remote is not None:
            watchdog.pause("fetching the run")  # for as long as the store needs
            distributed.on_main(remote.fetch)
            watchdog.heartbeat("start")
        config, changes = open_run(config, out, change)
        run = _Run(config, out, stop, watchdog, changes, remote)
        last = min(config.steps, stop_after or config.steps)
        if run.resumes:  # a step is saved before it is evaluated
            run.evaluate(resumes=True)
        # More than one round only after a roll-back, which needs a new stream of batches.
        while run.state.step < last and not run.stopped:
            run.take_steps(last)
        run.saver.finish()
        run.profiler.close()
        if run.recorder is not None:
            run.recorder.close()
        run.push()
    seen = f"{run.state.images_seen} images and {run.state.captions_seen} captions seen"
    say(f"{name}: step {run.state.step} of {config.steps}, {seen}")
    return run.stopped


def _facts(config: RunConfig, order: GlobalOrder) -> dict[str, Any]:
    # What the manifest of every checkpoint says of its run; rank 0 writes it.
    return {
        "config_sha256": config.sha256,
        "data": order.data,
        "shuffle": order.shuffle,
        "order_version": order.version,
        **({"code": code_version()} if distributed.is_main() else {}),
    }


class _Run:
    """A run on one rank."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        stop: StopRequest,
        watchdog: Watchdog,
        changes: list[Change],
        remote: RemoteRun | None,
    ) -> None:
        self.config, self.out, self.stop, self.watchdog = config, out, stop, watchdog
        self.remote = remote
        self.stopped: str | None = None
        # First: what is wrong there would otherwise end the run hours later, at the first evaluation.
        sizes = (config.model.embedding, config.engine.zero_stage)
        self.suite = distributed.on_main(partial(open_suite, config.evaluation, *sizes))
        self.resumes = distributed.on_main(lambda: has_checkpoints(out / "checkpoints"))
        data = distributed.on_main(lambda: data_so_far(out, config.resume_from))
        sets = open_sets(config.data, data)
        order = GlobalOrder(sets, config.data, config.seed)
        self.tokenizer = load_or_train_tokenizer(config, order, out, watchdog)
        watchdog.heartbeat("model")
        # After the tokenizer, right before the model: the initial weights depend on nothing but the seed.
        torch.manual_seed(config.seed)
        model, towers = build_model(config, out, self.tokenizer)
        self.loader = make_batches(config, order, self.tokenizer, model)
        parent = None
        if not self.resumes:  # what `init_from` names may be gone on a resume
            check_sizes(config.model, model)
            parent = initialize_weights(config, model, self.tokenizer)
        add_adapters(model, config.model, config.seed)
        self.engine = Engine(
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
        self.state = restore_state(config, out, self.engine, order, self.resumes, parent)
        # After the weights are restored: the features must belong to the image tower that the run goes on
        # with.
        self.loader.features = open_image_features(config, order.sets, self.engine)
        if self.engine.teacher is not None:
            self.loader.teacher_features = self.engine.teacher.open_features(order.sets)
        self._note(changes)
        self._write_files(towers)
        facts, beat = _facts(config, order), watchdog.heartbeat
        self.saver = Saver(out / "checkpoints", config.checkpoint, facts, beat, remote)
        # A save in the background counts as well.
        stop.idle = lambda: 0.0 if self.saver.is_writing else watchdog.idle()
        self.guard = NonFiniteGuard(config.non_finite, out)
        self.recorder = self._open_recorder()
        self._say_what_starts(model, order)
        seen, found = self.state.stream.position, self.state.ledger
        self.ledger = Ledger(out, config.data.max_bad_fraction, len(order), seen, found)
        self.meter, self.profiler = Meter(config.batch_size), Profiler(config.log.profile, out)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()

    def _write_files(self, towers: RunTowers) -> None:
        # Only now: a start that fails before leaves no run behind, but its tokenizer.
        distributed.on_main(lambda: towers.write(self.out))
        if not self.changed:
            distributed.on_main(lambda: write_config(self.config, self.out))
        if distributed.is_main():
            (self.out / STOPPED).unlink(missing_ok=True)
        if self.remote is not None:
            distributed.on_main(self.remote.drop_checkpoint)
        self.push()

    def _say_what_starts(self, model: torch.nn.Module, order: GlobalOrder) -> None:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(
            f"{self.config.name}: {len(order)} images, {sum(order.counts.values())} captions in "
            f"{len(order.counts)} languages; {parameters / 1e6:.1f} M parameters; "
            f"{distributed.world_size()} ranks on {distributed.device().type} in "
            f"{self.config.engine.precision}; from step {self.state.step}"
        )

    def _open_recorder(self) -> Recorder | None:
        # On rank 0. Records after the current step, left by a kill or a roll-back, are removed.
        distributed.on_all(lambda: check_tracker(self.config.log.track))
        if not distributed.is_main():
            return None
        log = self.config.log
        return Recorder(self.out, self.state.step, log.tensorboard, log.track, self.config.name)

    def _note(self, changes: list[Change]) -> None:
        # What is changed from here on, for the lineage.
        self.changed, step = bool(changes), self.state.step
        for one in changes:
            say(f"from step {step}: {one.field} is {one.after}, no longer {one.before}")
        made = [{"step": step, **one._asdict()} for one in changes]
        self.state = replace(self.state, changes=[*self.state.changes, *made])

    def push(self) -> None:
        """Upload the small files of a run in a store; on all ranks."""
        if self.remote is not None:
            distributed.on_main(self.remote.push)

    def take_steps(self, last: int) -> None:
        """Steps until `last`, until a request to stop, or until the run has rolled back to a checkpoint."""
        config, saver = self.config, self.saver
        where = (self.state.step, self.state.stream.position, self.engine.step_number)
        weights = self.engine.digest() if distributed.world_size() > 1 else None
        distributed.must_agree((where, weights), f"{self.out}: step or weights")
        # From the position in the data, not from the step: after a roll-back the two differ.
        first = self.state.stream.position // config.batch_size
        # Steps whose metrics nobody has waited for.
        self.unread: list[tuple[Taken, StepMetrics]] = []
        self.watchdog.heartbeat("the first batch")
        self.meter.forget_time()
        stream = batches(self.loader, first, first + last - self.state.step, config.data.workers)
        stream = to_device(stream, distributed.device())
        for batch in track(stream, "train", config.steps, done=self.state.step):
            if self.meter.operations_per_image is None:
                self._measure_operations(batch)
            self.meter.arrived()
            self.watchdog.heartbeat(f"step {self.state.step + 1}")
            # A signal, a slow disk or a clock is seen by one rank first. Whatever follows from it contains
            # collectives, so all ranks must decide alike, and do so before the step.
            ids = self.engine.exchange(batch, self._votes())
            self.meter.met()
            if not ids.votes.writing:
                saver.finish()
            if ids.votes.stop:
                return self._stop()
            with self.profiler.step(self.state.step + 1):
                metrics = self.engine.step(batch, ids)
            step = self.engine.step_number
            self.unread.append((Taken(step, batch.state.position, batch.key_B), metrics))
            self.state = replace(
                self.state,
                step=step,
                images_seen=self.state.images_seen + config.batch_size,
                captions_seen=self.state.captions_seen + sum(ids.captions),
                stream=batch.state,
            )
            self.meter.count(batch)
            self.ledger.count(batch)
            to_log = step % config.log.every == 0 or step == last
            to_save = step % config.checkpoint.every == 0 or ids.votes.save_is_due or step == last
            to_evaluate = self._evaluation_is_due()
            if (to_log or to_save or to_evaluate) and self._read(to_log):
                return self._roll_back(batch)
            # Before the evaluation, which may take longer than a preempted job has.
            if to_save:
                self._save()
            if to_evaluate:
                if any(distributed.gather_objects(bool(self.stop.requested))):
                    return self._stop()
                self.evaluate()

    def _measure_operations(self, batch: Batch) -> None:
        # Once, where the peak is known, which all ranks must agree on: it takes a forward pass.
        peaks = distributed.gather_objects(device_peak())
        self.meter.operations_per_image = 0.0
        known = [one for one in peaks if one is not None]
        if len(known) == len(peaks):
            self.meter.operations_per_second = sum(peak for _, peak in known)
            self.meter.operations_per_image = self.engine.operations_per_image(batch)
            say(f"mfu: of {known[0][1] / 1e12:.0f} TFLOP/s, {known[0][0]} in bfloat16")
            self.meter.forget_time()

    def _votes(self) -> Votes:
        minutes = self.config.checkpoint.minutes
        is_due = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        return Votes(bool(self.stop.requested), self.saver.is_writing, is_due)

    def _read(self, to_log: bool) -> bool:
        # The metrics since the last call, waiting for the device; whether the run must roll back.
        taken, unread = [one for one, _ in self.unread], [metrics for _, metrics in self.unread]
        self.unread = []
        metrics = read_metrics(unread)
        must_act = self.guard.must_act(taken, metrics)
        if metrics and to_log and not must_act:
            self._record(metrics[-1])
        return must_act

    def _record(self, metrics: dict[str, float]) -> None:
        self.ledger.flush()
        # On all ranks: both count over all of them.
        state = self.state
        seen: dict[str, float] = {**self.meter.read(), **self.ledger.metrics()}
        seen |= {"images_seen": state.images_seen, "captions_seen": state.captions_seen}
        if self.recorder is not None:
            self.recorder.write(state.step, {**metrics, **seen})
        # After the record: when too many samples are unusable, the last line says how many.
        self.ledger.judge()

    def _save(self, is_best: bool = False) -> None:
        self.ledger.flush()
        self.state = replace(self.state, ledger=self.ledger.to_json())
        self.saver.save(self.engine, self.state, is_best)
        if self.changed:  # not before: config.yaml is what the checkpoints were made with
            self.saver.finish()
            distributed.on_main(lambda: write_config(self.config, self.out))
            self.push()
            self.changed = False
        self.saved_step, self.saved_at = self.state.step, time.monotonic()
        self.meter.forget_time()

    def evaluate(self, resumes: bool = False) -> None:
        """Measure the suite if it is due at this step, and mark the checkpoint if it is the best so far.

        Args:
            resumes: the run has just loaded this step, which may have been measured before it stopped.
        """
        config, suite, step = self.config.evaluation, self.suite, self.state.step
        if config is None or suite is None or not self._evaluation_is_due():
            return
        known = partial(recorded_evaluation, self.out, step, suite.name, config.best)
        metrics = distributed.on_main(known) if resumes else None
        if metrics is None:
            self.watchdog.heartbeat(f"evaluation after step {step}")
            beat = self.watchdog.heartbeat
            metrics = evaluate(suite, self.engine, self.config.model, self.tokenizer, beat)
            if self.recorder is not None:
                self.recorder.write(step, metrics, suite.name)
            self.meter.forget_time()
        if config.best is None:
            return
        state = with_best(self.state, metrics, suite.name, config.best)
        if state is None:
            return
        self.state = state
        if self.saved_step == step:
            self.saver.mark_best(step)
        else:
            self._save(is_best=True)

    def _evaluation_is_due(self) -> bool:
        config, step = self.config.evaluation, self.state.step
        return config is not None and step > 0 and step % config.every == 0

    def _roll_back(self, batch: Batch) -> None:
        # The newest checkpoint's weights, and the data after `batch`. A checkpoint that is still being
        # written may be the one to go back to.
        self.saver.finish()
        bad_step = self.state.step
        can_go_back = distributed.on_main(self.saver.has_checkpoint)
        self.guard.note_roll_back(bad_step, self.saved_step if can_go_back else None)
        if self.remote is not None:
            self.watchdog.pause("fetching a checkpoint")
            distributed.on_main(self.remote.fetch_checkpoint)
            self.watchdog.heartbeat("resume")
        state = load_newest(self.out / "checkpoints", self.engine, self.loader.plan)
        if self.remote is not None:
            distributed.on_main(self.remote.drop_checkpoint)
        before = self.state  # whose best step is saved and measured, which `state` may not know yet
        state = replace(state, best=before.best, best_of=before.best_of)
        self.state = replace(state, stream=batch.state, changes=before.changes)
        say(f"step {bad_step}: back to the weights of step {state.step}, on with later data")
        if self.recorder is not None:
            self.recorder.close()
        self.recorder = self._open_recorder()  # on all ranks

    def _stop(self) -> None:
        self._read(to_log=True)
        if self.saved_step != self.state.step:
            self._save()
        self.saver.finish()
        # Only some ranks may have received a signal: the name is the first one in rank order.
        names = distributed.gather_objects(self.stop.requested)
        self.stopped = next(name for name in names if name)
        step = self.state.step
        if distributed.is_main():
            write_json(self.out / STOPPED, {"step": step, "signal": self.stopped})
        say(f"{self.stopped}: stopped after step {step}, which is saved; the same command goes on")
