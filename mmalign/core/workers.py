"""What a data loader's worker does when somebody signals it: its parent decides, nobody else.

    signal to the process group -+-> rank    saves at the next step and exits
                                 +-> worker  goes on: the rank still needs its batches
    rank ends, however ---------------> worker is killed by the kernel

torchrun, Slurm and a terminal signal whole process groups. A worker that obeyed would die before the rank,
which would then fail on a missing batch and not save. The loader itself ends a worker that is too slow
with SIGTERM, so that signal is still obeyed when it comes from the parent; torch's own handler tells
the two apart in the same way.

A rank that is killed with SIGKILL cannot end its workers. torch's workers ask every 5 seconds, and only
while they wait for work, whether their parent is there; PR_SET_PDEATHSIG (Linux) ends them at once.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leave_signals_to_the_parent(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: be deaf to stop signals, and never outlive the parent.

    For workers that are forked by the parent's main thread: Linux tells of the end of the *thread* that
    made the process, and a fork has no other thread yet that could receive SIGTERM. Elsewhere than on
    Linux only SIGINT and SIGUSR1 are left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        parent = multiprocessing.parent_process()
        assert parent is not None and parent.pid is not None
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
        die_with(parent.pid)


def _obey(parent: int) -> None:
    """End this process on the parent's SIGTERM; anybody else's is thrown away."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def die_with(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def map_in_processes(function: Callable[[T], R], jobs: Sequence[T], processes: int) -> Iterator[R]:
    """The results of all jobs in their order; with one process, or one job, in this one.

    Args:
        function: of a module's top level, because it is sent to the processes.
    """
    if min(processes, len(jobs)) <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(min(processes, len(jobs))) as pool:
        yield from pool.map(function, jobs)
