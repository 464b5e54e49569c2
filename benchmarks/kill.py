"""Recovery of runs after SIGKILL at any moment, after requests to stop, and from damaged checkpoints.

    uninterrupted run -> its losses and weights -------------------------------------+
    the same run: start, SIGKILL, start, SIGKILL, ... to the end -> losses, weights  +-> equal, bit for bit?
    the same run: start, SIGTERM or SIGUSR1, start, ... to the end -> the same ------+
    a stopped run, one file of its newest checkpoint damaged -> resumes, or refuses -+

All runs use the real command line, and half of the killed runs save asynchronously. A kill ends every process
of the run (ranks, workers, torchrun). It happens while the program starts, at a random moment of the
training, or while a checkpoint is written; the last kind counts only if it left an unfinished folder. A start
is counted in `fresh_starts` if it begins at step 0 although a checkpoint had been committed.

Prints one line per start and, as the last line, one JSON object: `kills`, `exact` (kills in runs of which all
recorded losses and the final weights equal those of the uninterrupted run) and `fresh_starts`. Exits with 1
if any check failed.

    python benchmarks/kill.py [--kills 100] [--during-save 30] [--signals 50] [--damage] [--ranks 1 2]
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from lives import (
    Case,
    Life,
    Reference,
    checkpoints,
    losses_of,
    measure_reference,
    newest_step,
    prepare,
    survivors,
    weights_of,
)

from mmalign.training.signals import EXIT_STOPPED

MOST_STOPS_OF_A_RUN = 8
MOST_COMPLAINTS = 20  # more messages add no information


@dataclass
class Tally:
    """Counts of what was done to the runs, and every failed check."""

    kills: int = 0
    during_save: int = 0
    exact: int = 0
    fresh_starts: int = 0
    signals: int = 0
    damaged: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def kill_run(
    case: Case, reference: Reference, name: str, kills: int, saves: int, rng: random.Random
) -> Tally:
    """One run to its end, killed up to `kills` times, of these up to `saves` times during a save."""
    tally, run = Tally(), case.folder / name
    asynchronous = f"checkpoint.asynchronous={'true' if rng.random() < 0.5 else 'false'}"
    while True:
        life = Life(case, run, asynchronous)
        if tally.kills == kills:
            life.end()
            _check_start(life, tally)
            break
        wants_save = saves - tally.during_save >= kills - tally.kills or rng.random() < 0.4
        was_killed = _strike(life, "save" if wants_save else _moment(rng), reference, rng)
        _check_start(life, tally)
        if not was_killed:
            break
        in_save = bool(life.saves)
        tally.kills += 1
        tally.during_save += in_save
        _check_losses(life, reference, tally)
        _say(
            f"{name}: from step {life.first_step}, killed after step {max(losses_of(run), default=0)}"
            f"{', in a save' if in_save else ''}, newest checkpoint {newest_step(run)}"
        )
    _check_end(case, life, reference, tally)
    tally.exact = 0 if tally.wrong else tally.kills
    _say(f"{name}: {tally.kills} kills, {tally.exact} exact")
    return tally


def _moment(rng: random.Random) -> str:
    return "start" if rng.random() < 0.15 else "steps"


def _strike(life: Life, moment: str, reference: Reference, rng: random.Random) -> bool:
    """Kill the run at a random point of the given kind; False if it ended before."""
    if moment == "start":
        delay = rng.uniform(0, reference.start_seconds)
    elif moment == "steps":
        life.wait_for_first_step()
        delay = rng.uniform(0, 0.6 * reference.train_seconds)
    else:
        _wait_for_saves(life, rng.randint(1, 4))
        delay = rng.uniform(0, reference.save_seconds)
    life.wait(delay)
    if life.process.poll() is not None:
        return False
    life.kill()
    return True


def _wait_for_saves(life: Life, wanted: int) -> None:
    """Wait until this start has begun so many checkpoints."""
    begun: set[str] = set()

    def are_enough() -> bool:
        begun.update(life.saves)
        return len(begun) >= wanted

    life.wait_for(are_enough)


def _check_start(life: Life, tally: Tally) -> None:
    """Check that a start resumes from the newest checkpoint."""
    first = life.first_step
    if first is None or first == life.committed:
        return
    tally.fresh_starts += first == 0
    tally.wrong.append(f"{life.run.name}: from step {first} instead of {life.committed}")


def _check_losses(life: Life, reference: Reference, tally: Tally) -> None:
    """Check that every recorded loss equals that of the uninterrupted run, also those of discarded steps."""
    for step, values in losses_of(life.run).items():
        if values != reference.losses.get(step):
            told = f"step {step} has {values}, not {reference.losses.get(step)}"
            tally.wrong.append(f"{life.run.name}: {told}")
            return


def _check_end(case: Case, life: Life, reference: Reference, tally: Tally) -> None:
    """Check that the run ended with all losses and the weights of the uninterrupted run."""
    tally.runs += 1
    run = life.run
    if life.process.returncode != 0 or newest_step(run) != case.steps:
        tally.wrong.append(f"{run.name}: exit code {life.process.returncode}\n{life.text[-3000:]}")
        return
    _check_losses(life, reference, tally)
    if losses_of(run).keys() != reference.losses.keys():
        tally.wrong.append(f"{run.name}: its metrics lack steps")
    if weights_of(run) != reference.weights:
        tally.wrong.append(f"{run.name}: its weights differ")


def signal_run(
    case: Case, reference: Reference, name: str, signals: int, rng: random.Random
) -> Tally:
    """One run to its end, asked to stop up to `signals` times."""
    tally, run = Tally(), case.folder / name
    while True:
        life = Life(case, run)
        if tally.signals == signals:
            life.end()
            break
        number = rng.choice((signal.SIGTERM, signal.SIGUSR1))
        life.wait_for_first_step()
        life.wait(rng.uniform(0, 0.5 * reference.train_seconds))
        _send(life, number, whole_group=rng.random() < 0.5)
        life.end()
        _check_start(life, tally)
        if not (run / "stopped.json").is_file() and newest_step(run) == case.steps:
            # The signal came after the last step; its effect on the exit code is then irrelevant.
            life = Life(case, run)
            life.end()
            break
        tally.signals += 1
        _check_stop(case, life, number, tally)
        _say(f"{name}: from step {life.first_step}, {number.name}, stopped at {newest_step(run)}")
    _check_end(case, life, reference, tally)
    return tally


def _send(life: Life, number: signal.Signals, whole_group: bool) -> None:
    """Signal the started process, or its group including workers."""
    try:
        if whole_group:
            os.killpg(life.process.pid, number)
        else:
            os.kill(life.process.pid, number)
    except ProcessLookupError:
        return


def _check_stop(case: Case, life: Life, number: signal.Signals, tally: Tally) -> None:
    """Check the exit code, `stopped.json`, that the last step is saved, and that no process remains."""
    code, run = life.process.returncode, life.run
    last = max(losses_of(run), default=0)
    path = run / "stopped.json"
    word = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    problems = []
    # torchrun has its own exit code, so only the file can be checked.
    if code != EXIT_STOPPED and not (case.ranks > 1 and code):
        problems.append(f"exit code {code}")
    if word != {"step": last, "signal": number.name} or newest_step(run) != last:
        problems.append(f"stopped.json {word}, saved {newest_step(run)}, recorded {last}")
    deadline = time.monotonic() + 5
    while survivors(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := survivors(run):
        problems.append(f"{len(left)} processes left")
        life.kill()
    if problems:
        told = f"{run.name}, {number.name}: {'; '.join(problems)}\n{life.text[-2000:]}"
        tally.wrong.append(told)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": Path.unlink,
}


def _flipped(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage_run(
    case: Case, reference: Reference, every: int, only: Collection[tuple[str, str]] = ()
) -> Tally:
    """Damage the newest of two checkpoints in every way, or only in those of `only`, on copies of the run.

    Args:
        only: pairs of a file and a way.

    Raises:
        RuntimeError: the run to damage failed.
    """
    tally, stopped = Tally(), case.folder / f"stopped-{case.ranks}"
    life = Life(case, stopped, "--stop-after", str((case.steps - 1) // every * every))
    if life.end() != 0 or len(checkpoints(stopped)) < 2:
        raise RuntimeError(f"{stopped}: failed\n{life.text[-3000:]}")
    newest = checkpoints(stopped)[-1]
    names = sorted(p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file())
    for name, way in only or product(names, DAMAGES):
        copy = case.folder / f"damaged-{case.ranks}-{way}-{name.replace('/', '-')}"
        shutil.copytree(stopped, copy, symlinks=True)
        DAMAGES[way](copy / "checkpoints" / newest.name / name)
        tally.damaged += 1
        _say(f"{name} {way}: {_judge(case, Life(case, copy), reference, tally)}")
        shutil.rmtree(copy)
    return tally


def _judge(case: Case, life: Life, reference: Reference, tally: Tally) -> str:
    """The reaction to the damage: an error in one line, or the resumed run ended with correct results."""
    code = life.end()
    if code != 0:
        line = re.search(r"^mmalign: .*step-\d+.*", life.text, re.MULTILINE)
        if line is None:
            tally.wrong.append(f"{life.run.name}: exit code {code}\n{life.text[-2000:]}")
        return f"refused: {line and line[0]}"
    if not life.first_step:
        tally.wrong.append(f"{life.run.name}: from step {life.first_step}")
        tally.fresh_starts += life.first_step == 0
    _check_end(case, life, reference, tally)
    return f"resumed from step {life.first_step}"


def _add(total: Tally, part: Tally) -> None:
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
    for line in part.wrong:
        _say(f"WRONG: {line}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_all(options: argparse.Namespace, folder: Path) -> Tally:
    """All requested runs; the numbers of ranks take turns."""
    prepare(folder, options.steps, options.every)
    cases = [Case(folder, ranks, options.steps) for ranks in options.ranks]
    pairs = [(case, measure_reference(case)) for case in cases]
    for case, reference in pairs:
        _say(
            f"{case.ranks} ranks, uninterrupted: {reference.start_seconds:.1f} s to start, "
            f"{reference.train_seconds:.1f} s to train, {1000 * reference.save_seconds:.0f} ms per save"
        )
    total, rng = Tally(), random.Random(options.seed)
    _kill(pairs, options.kills, options.during_save, total, rng)
    _signal(pairs, options.signals, total, rng)
    for case, reference in pairs if options.damage else ():
        _add(total, damage_run(case, reference, options.every))
    return total


def _kill(
    pairs: list[tuple[Case, Reference]], kills: int, saves: int, total: Tally, rng: random.Random
) -> None:
    """Runs until the number of kills, and of kills during a save, is reached."""
    while total.kills < kills or total.during_save < saves:
        if len(total.wrong) > MOST_COMPLAINTS:
            return
        case, reference = pairs[total.runs % len(pairs)]
        left = max(1, kills - total.kills)
        now = min(MOST_STOPS_OF_A_RUN, left)
        in_saves = -(
            -max(0, saves - total.during_save) * now // left
        )  # this run's share, rounded up
        name = f"killed-{total.runs}-ranks-{case.ranks}"
        _add(total, kill_run(case, reference, name, now, in_saves, rng))


def _signal(
    pairs: list[tuple[Case, Reference]], signals: int, total: Tally, rng: random.Random
) -> None:
    """Runs until the number of requests to stop is reached."""
    while total.signals < signals and len(total.wrong) <= MOST_COMPLAINTS:
        case, reference = pairs[total.runs % len(pairs)]
        now = min(MOST_STOPS_OF_A_RUN, signals - total.signals)
        name = f"signalled-{total.runs}-ranks-{case.ranks}"
        _add(total, signal_run(case, reference, name, now, rng))


def main() -> None:
    parser = argparse.ArgumentParser(description="kill, signal and damage runs, and compare")
    sizes = {"kills": 100, "signals": 50, "steps": 40, "every": 3, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--during-save", type=int, help="minimum; default: three in ten")
    parser.add_argument("--damage", action="store_true")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="an empty folder; default: a temporary one")
    options = parser.parse_args()
    if options.during_save is None:
        options.during_save = options.kills * 3 // 10
    # An exit in place of the default action, so that the runs are also ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as temporary:
        total = run_all(options, (options.folder or Path(temporary)).resolve())
    _say(
        f"{total.during_save} kills in a save, {total.signals} requests to stop, {total.damaged} damages, "
        f"{len(total.wrong)} failed checks"
    )
    figures = {"kills": total.kills, "exact": total.exact, "fresh_starts": total.fresh_starts}
    _say(json.dumps(figures))
    sys.exit(1 if total.wrong else 0)


if __name__ == "__main__":
    main()
