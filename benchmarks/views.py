"""Runs of which one rank sees the file system wrongly: each goes on exactly or stops with a sentence.

    reference: a run on W gloo ranks without a fault -> its losses and weights -----------------------+
    the same run, started or resumed, with a random fault of one rank's view -> exit codes, messages  |
        all ranks end with 0    -> losses and weights equal those of the reference, bit for bit? <----+
        a rank ends otherwise   -> at least one sentence, no hang; a third of these runs are started   |
                                   again without the fault and must end like the reference <----------+

A fault concerns one rank and one folder (the run, its checkpoints, the tokenizer, the data, the run file and
suite, the run that `init_from` names). The rank has a mount namespace of its own, in which an altered copy
lies over the folder: files are missing, older or damaged. `slow` takes the copy away after a moment, as a
network file system shows new files late, and at the latest before the rank writes there: what it writes
reaches the server. `error` makes the system calls of Python fail with EIO, ESTALE or EACCES there. Needs
Linux and root.

Prints one line per fault and, as the last line, a JSON object of counts. Exits with 1 if a run diverged, hung
or stopped without a sentence.

    python benchmarks/views.py [--faults 100] [--ranks 2 4] [--seed 0]
"""

import argparse
import builtins
import ctypes
import errno
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lives import losses_of, prepare, run_config, weights_of

from mmalign.core.config import write_yaml

STEPS, EVERY = 6, 2
PATIENCE = 600.0  # seconds until a run counts as hanging
GRACE = 20.0  # and for the other ranks, once one has failed
KINDS = ("missing", "stale", "damaged", "slow", "error")
# What a rank reads, by the way in which the run begins.
TARGETS = {
    "resume": ("run", "run/checkpoints", "run/tokenizer", "data/train", "data/test", "conf"),
    "start": ("base", "base/checkpoints", "base/tokenizer", "data/train", "data/test", "conf"),
}
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_NEW_NAMESPACE, _BIND, _PRIVATE, _LAZY = 0x20000, 4096, 0x44000, 2  # of <sched.h> and <sys/mount.h>


@dataclass(frozen=True)
class Fault:
    """A wrong view of one rank; `target` is a folder of the case."""

    begins: str
    rank: int
    target: str
    kind: str
    seed: int


def make_case(folder: Path) -> None:
    """Data, a run file with an evaluation, and the run `base` whose weights it starts from."""
    prepare(folder, STEPS, EVERY)
    config = run_config(folder / "data" / "train", STEPS, EVERY)
    config["data"]["workers"] = 0
    config["optimizer"]["lr"] = 2e-3
    (folder / "conf").mkdir()
    (folder / "base.yaml").write_text(write_yaml({**config, "name": "base", "steps": 2}))
    assert run_on(folder, 1, "base.yaml", "base", "checkpoint.every=1")[0] == [0]
    config["tokenizer"] = {"kind": "pretrained", "name": "base/tokenizer"}
    config["optimizer"]["lr"] = 1e-3
    config |= {"init_from": "base", "evaluation": {"suite": "conf/suite.yaml", "every": EVERY}}
    (folder / "conf" / "run.yaml").write_text(write_yaml(config))
    sets = [{"name": "test", "shards": "data/test", "languages": ["en", "de"]}]
    (folder / "conf" / "suite.yaml").write_text(write_yaml({"name": "seen", "sets": sets}))


def run_on(
    folder: Path, ranks: int, *arguments: str, fault: Fault | None = None, run: str = "run"
) -> tuple[list[int | None], list[str]]:
    """Exit codes (None: killed) and output of the ranks of `mmalign train FILE --out OUT ...`."""
    file, out, *rest = arguments
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmalign.cli", "mmalign.training.loop", "timm", "lives"])
    command = ["train", file, *rest, "--out", out]
    outputs = [folder / f"{out}.rank{rank}" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        mine = fault if fault is not None and fault.rank == rank else None
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        args = (folder, command, environment, output, mine, run)
        processes.append(context.Process(target=_rank, args=args))
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    while any(p.exitcode is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(process.exitcode for process in processes):
            # As torchrun does: the others have a moment to end by themselves.
            deadline = min(deadline, time.monotonic() + GRACE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
    return codes, [output.read_text(errors="replace") for output in outputs]


def _rank(
    folder: Path,
    command: list[str],
    environment: dict[str, str],
    output: Path,
    fault: Fault | None,
    run: str,
) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["mmalign", *command]
    if fault is not None:
        target = folder / fault.target.replace("run", run, 1)
        (_fail_below if fault.kind == "error" else _cover)(target, fault)
    from mmalign import cli

    cli.main()


def _cover(target: Path, fault: Fault) -> None:
    """Lay an altered copy over a folder, for this process alone."""
    rng = random.Random(fault.seed)
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_NAMESPACE))
    _check(libc.mount(None, b"/", None, _PRIVATE, None))
    view = Path(tempfile.mkdtemp()) / "view"
    shutil.copytree(target, view, symlinks=True)
    kind = rng.choice(("missing", "stale")) if fault.kind == "slow" else fault.kind
    {"missing": _remove, "stale": _age, "damaged": _damage}[kind](view, rng)
    _check(libc.mount(os.fsencode(view), os.fsencode(target), None, _BIND, None))
    if fault.kind == "slow":
        uncover = partial(libc.umount2, os.fsencode(target), _LAZY)
        wait = threading.Timer(rng.uniform(0.0, 3.0), uncover)
        wait.daemon = True
        wait.start()
        sys.addaudithook(partial(_before_writing, target, uncover))


def _before_writing(
    target: Path, uncover: Callable[[], object], event: str, args: tuple[Any, ...]
) -> None:
    # An audit hook. A second `uncover` fails, and changes nothing.
    if event == "open":
        path, _, flags = args
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
    else:
        path, writes = args[0] if args else None, event in _WRITES
    if not writes or not isinstance(path, str | bytes | os.PathLike):
        return
    if (Path.cwd() / os.fsdecode(path)).is_relative_to(target):
        uncover()


def _check(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _files(view: Path) -> list[Path]:
    return sorted(path for path in view.rglob("*") if path.is_file() and not path.is_symlink())


def _remove(view: Path, rng: random.Random) -> None:
    for path in _files(view) if rng.random() < 0.4 else [rng.choice(_files(view))]:
        path.unlink()
    for inner in sorted((p for p in view.rglob("*") if p.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()


def _age(view: Path, rng: random.Random) -> None:
    """As it was before the last checkpoint; the run file had another rate, other files were empty."""
    if steps := sorted(view.rglob("step-*")):
        shutil.rmtree(steps[-1])
    elif (file := view / "run.yaml").is_file():
        file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.002"))
    else:
        rng.choice(_files(view)).write_bytes(b"")


def _damage(view: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in _files(view) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _fail_below(target: Path, fault: Fault) -> None:
    """Let Python's calls fail at a random path of the folder, and below it."""
    rng = random.Random(fault.seed)
    bad = str(rng.choice([target, *sorted(target.rglob("*"))]))
    code = rng.choice((errno.EIO, errno.ESTALE, errno.EACCES))

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any = ".", *args: Any, **options: Any) -> Any:
            is_path = isinstance(path, str | os.PathLike)  # others are descriptors
            if is_path and str(Path.cwd() / path).startswith(bad):
                raise OSError(code, os.strerror(code), str(path))
            return call(path, *args, **options)

        return checked

    for module, names in ((os, ("stat", "lstat", "scandir", "listdir", "open")), (io, ("open",))):
        for name in names:
            setattr(module, name, failing(getattr(module, name)))
    builtins.open = io.open


def draw(rng: random.Random, ranks: int) -> Fault:
    begins = rng.choice(tuple(TARGETS))
    target, kind = rng.choice(TARGETS[begins]), rng.choice(KINDS)
    return Fault(begins, rng.randrange(ranks), target, kind, rng.randrange(2**31))


@dataclass(frozen=True)
class Reference:
    """The run on a number of ranks, without a fault."""

    losses: dict[int, tuple[float, float]]
    weights: str


def measure(folder: Path, ranks: int) -> Reference:
    """Run without a fault; also leaves `half-<ranks>`, the same run stopped after step 4."""
    for name, stop in ((f"whole-{ranks}", ()), (f"half-{ranks}", ("--stop-after", "4"))):
        codes, said = run_on(folder, ranks, "conf/run.yaml", name, *stop)
        if any(codes):
            raise RuntimeError(f"{name}: the run without a fault failed: {said}")
    whole = folder / f"whole-{ranks}"
    return Reference(losses_of(whole), weights_of(whole))


def judge(folder: Path, ranks: int, reference: Reference, fault: Fault, name: str) -> str:
    """What became of a run with this fault: `exact` or `stopped (why)`; anything else is wrong."""
    run = folder / name
    if fault.begins == "resume":
        shutil.copytree(folder / f"half-{ranks}", run, symlinks=True)
    codes, said = run_on(folder, ranks, "conf/run.yaml", name, fault=fault, run=name)
    if None in codes and not any(codes):
        return "hung"
    spoken = re.findall(r"^mmalign: .*", "\n".join(said), re.M)
    if any(codes) and not spoken:
        return "stopped without a sentence"
    ended = codes == [0] * ranks
    if not ended and fault.seed % 3 == 0:  # nothing is lost: without the fault it goes on
        codes, said = run_on(folder, ranks, "conf/run.yaml", name)
        if any(codes):
            return f"cannot go on ({[text[-300:] for text in said]})"
    found = losses_of(run)
    if wrong := [step for step in found if reference.losses[step] != found[step]]:
        return f"diverged (at step {wrong[0]}: {found[wrong[0]]}, not {reference.losses[wrong[0]]})"
    if codes == [0] * ranks and len(found) < STEPS:
        return f"lost records (of all but the steps {list(found)})"
    if codes == [0] * ranks and weights_of(run) != reference.weights:
        return "diverged at its end"
    return "exact" if ended else f"stopped ({spoken[0].replace(str(folder), '')[:150]})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs of which one rank sees other files.")
    parser.add_argument("--faults", type=int, default=100, help="for each number of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_case(folder)
        for ranks in options.ranks:
            rng, reference = random.Random(f"{options.seed}-{ranks}"), measure(folder, ranks)
            for number in range(options.faults):
                fault = draw(rng, ranks)
                outcome = judge(folder, ranks, reference, fault, f"r{ranks}n{number}")
                counts[re.sub(r" \(.*", "", outcome)] += 1
                sys.stdout.write(f"{ranks} ranks, {fault}: {outcome}\n")
                sys.stdout.flush()
                shutil.rmtree(folder / f"r{ranks}n{number}", ignore_errors=True)
    sys.stdout.write(json.dumps(dict(counts)) + "\n")
    sys.exit(any(outcome not in ("exact", "stopped") for outcome in counts))


if __name__ == "__main__":
    main()
