"""Workers of a data loader leave signals to the rank and obey only it; see also test_start_methods.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from mmalign.core.errors import UserError
from mmalign.core.workers import leave_signals_to_the_parent, map_in_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals' senders, /proc")


class Pids(Dataset[int]):
    """Sample i is the id of the process that made it."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return os.getpid()


def loader() -> "DataLoader[int]":
    return DataLoader(
        Pids(), batch_size=None, num_workers=1, worker_init_fn=leave_signals_to_the_parent
    )


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_the_end(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def kill_from_elsewhere(pid: int, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)


def test_a_worker_goes_on_when_its_group_is_signalled() -> None:
    stream = iter(loader())
    worker = next(stream)
    assert worker != os.getpid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        kill_from_elsewhere(worker, number)
    assert [next(stream) for _ in range(20)] == [worker] * 20
    del stream  # the loader's own way of ending its workers
    assert wait_for_the_end(worker, 60)


def test_a_worker_obeys_its_parent() -> None:
    stream = iter(loader())
    worker = next(stream)
    os.kill(worker, signal.SIGTERM)
    assert wait_for_the_end(worker, 60)


def test_a_pool_whose_process_is_killed_ends_in_one_sentence() -> None:
    results = map_in_processes(die_at_three, range(9), processes=2)
    with pytest.raises(
        UserError, match=r"was killed, probably for lack of memory; give fewer `--pro"
    ):
        list(results)


def test_jobs_are_taken_as_their_results_are() -> None:
    taken: list[int] = []
    jobs = (taken.append(number) or -number for number in range(20))  # type: ignore[func-returns-value]
    results = map_in_processes(abs, jobs, processes=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert 5 <= len(taken) <= 8
    assert list(results) == list(range(5, 20))


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
