"""Workers under each start method: equal results, no reaction to other signals, an end with the parent."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from ranks import context
from shard_sets import make_set

from mmalign.core.config import validate
from mmalign.core.workers import map_in_processes
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.data.stream.token_noise import TokenMasker
from mmalign.data.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals' senders, /proc")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_under_each_start_method(tmp_path: Path, method: str) -> None:
    user = context().Process(target=use_workers, args=(method, tmp_path))
    user.start()
    user.join(300)
    assert user.exitcode == -signal.SIGKILL
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["same_stream"] and found["results"] == list(range(8))
    assert len(found["pids"]) == 3  # of the loader, and two of the pool
    deadline = time.monotonic() + 60
    while any(map(is_alive, found["pids"])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, found["pids"]))


def use_workers(method: str, folder: Path) -> None:
    """Use a loader and a pool, write their results down, and be killed."""
    multiprocessing.set_start_method(method, force=True)
    tree = {"train": [str(make_set(folder / "set", 8))], "language_temperature": 2.0}
    config = validate(DataConfig, tree, "test")
    plan = GlobalOrder(open_sets(config), config, seed=3)
    tokenizer = train_tokenizer(["a red dog 0123456789", "mbwa mwekundu"] * 4, vocabulary=120)
    masker = TokenMasker(tokenizer, 0.15)
    maker = BatchLoader(plan, config, tokenizer, 16, Preprocess(8), 2, 0, 1, masker=masker)
    maker.make(0)  # its open files and caches are not sent to the worker
    stream = batches(maker, 0, 1000, workers=1)
    taken = [next(stream)]
    loader = [child.pid for child in multiprocessing.active_children()]
    servers = [forkserver._forkserver._forkserver_pid] if method == "forkserver" else []
    for pid in (*loader, *servers):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)
    taken += [next(stream) for _ in range(20)]  # far more than are prefetched
    same = [
        (given.key_B, given.token_NL.tolist()) == (made.key_B, made.token_NL.tolist())
        for given, made in zip(taken, map(maker.make, range(21)), strict=True)
    ]
    jobs = range(0, -8, -1)
    # Not taken to its end, so that the processes of the pool still run.
    unfinished = map_in_processes(abs, jobs, 2)
    results = [next(unfinished) for _ in jobs]
    pids = [child.pid for child in multiprocessing.active_children()]
    found = {"same_stream": all(same), "results": results, "pids": pids}
    (folder / "found.json").write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)
