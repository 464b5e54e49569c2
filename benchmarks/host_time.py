"""Host time of a training step outside the towers and the loss, here and at another commit.

    git worktree of COMMIT, this tree -> tiny towers on gloo ranks -> steps -> milliseconds, collectives

The towers are so small that what remains is what the trainer adds: exchanging counts and flags, calling
DeepSpeed, clipping, the optimizer's call, reading metrics. Towers and a loss with their backward passes are
measured apart, in the same process, and taken off. The metrics are read every `--log` steps; older commits
read them in every step. The two trees take turns; figures are medians over the rounds.

Prints a table and, as the last line, one JSON object with the ratio of the two.

    python benchmarks/host_time.py [--commit 1614cb0] [--ranks 4] [--steps 60] [--log 10] [--rounds 3]
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 6


def collectives(dist: Any, made: Counter[str]) -> None:
    """Count every call of torch.distributed, by whomever."""
    names = ("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "broadcast")
    for name in (*names, "broadcast_object_list", "reduce_scatter_tensor"):
        real = getattr(dist, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            made[_name] += 1
            return _real(*args, **options)

        setattr(dist, name, call)


def step_of(engine: Any, make_batch: Any, log: int) -> Any:
    """One step as the loop of this tree takes it, by its number."""
    try:
        from mmalign.training.exchange import Votes
        from mmalign.training.meter import read_metrics
    except ImportError:  # before 0.3
        from mmalign.training import meter

        agree = getattr(meter, "agree", None) or meter.all_reduce_flags  # 0.1.0 and what followed

        def old(number: int) -> None:
            batch = make_batch(number)
            engine.step(batch)
            agree(len(batch.language_N), False, False, False)

        return old
    unread: list[Any] = []

    def new(number: int) -> None:
        batch = make_batch(number)
        unread.append(engine.step(batch, engine.exchange(batch, Votes())))
        if len(unread) == log:
            read_metrics(unread)
            unread.clear()

    return new


def measure(rank: int, folder: str, ranks: int, steps: int, log: int, port: int) -> None:
    """Milliseconds per step of this rank, with and without towers and loss; rank 0 writes them."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
    )
    from parity_cases import Way, make_batch_for, make_engine

    from mmalign.core.batch import Embeddings

    batches = [make_batch_for("contrastive", number) for number in range(8)]
    engine = make_engine("contrastive", Way(0))
    take = step_of(engine, lambda number: batches[number % 8], log)

    def compute(number: int) -> None:
        # The towers and a loss of the same size, without ranks, without the engine.
        batch = batches[number % 8]
        found: Embeddings = engine.model(
            batch.image_BCHW, batch.token_NL, batch.mask_NL, batch.length_N
        )
        scores = found.logit_scale * found.image_BD @ found.text_ND.T
        (scores.logsumexp(0).mean() + scores.logsumexp(1).mean()).backward()
        engine.model.zero_grad()

    made: Counter[str] = Counter()
    found: dict[str, Any] = {}
    for name, work in (("step", take), ("compute", compute)):
        for number in range(WARM_UP):
            work(number)
        if name == "step":
            collectives(dist, made)
        dist.barrier()
        before = time.perf_counter()
        for number in range(steps):
            work(number)
        dist.barrier()
        found[name] = 1000 * (time.perf_counter() - before) / steps
    if rank == 0:
        found["collectives"] = sum(made.values()) / steps
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def run_ranks(arguments: argparse.Namespace, folder: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    shared = (folder, arguments.ranks, arguments.steps, arguments.log, port)
    ranks = [context.Process(target=measure, args=(r, *shared)) for r in range(arguments.ranks)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    if any(one.exitcode for one in ranks):
        sys.exit("a rank failed")


def in_tree(tree: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """What the ranks measure with the package and the test cases of a tree."""
    settings = [f"--{name}={getattr(arguments, name)}" for name in ("ranks", "steps", "log")]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--here", folder, *settings],
            check=True,
            cwd=tree,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests")]),
            },
            stdout=subprocess.DEVNULL,
        )
        found: dict[str, float] = json.loads(Path(folder, "found.json").read_text())
    return {**found, "host": found["step"] - found["compute"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="1614cb0")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--log", type=int, default=10, help="steps between two records")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        run_ranks(arguments, arguments.here)
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", "--quiet", str(other), arguments.commit], check=True
        )
        try:
            trees = {arguments.commit: other, "this tree": ROOT}
            rounds = [
                {name: in_tree(tree, arguments) for name, tree in trees.items()}
                for _ in range(arguments.rounds)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    sys.stdout.write(
        f"{'ms per step':12} {'step':>8} {'compute':>8} {'host':>8} {'collectives':>12}\n"
    )
    for name in trees:
        middle = {
            key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]
        }
        sys.stdout.write(
            f"{name:12} {middle['step']:8.2f} {middle['compute']:8.2f} {middle['host']:8.2f} "
            f"{middle['collectives']:12.1f}\n"
        )
    ratio = statistics.median(
        one["this tree"]["host"] / one[arguments.commit]["host"] for one in rounds
    )
    sys.stdout.write(
        json.dumps({"ranks": arguments.ranks, "host_time_ratio": round(ratio, 3)}) + "\n"
    )


if __name__ == "__main__":
    main()
