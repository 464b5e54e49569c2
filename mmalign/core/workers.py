"""Worker processes: they leave stop signals to their parent, and they never outlive it.

    stop signal to the process group -+-> rank    saves at the next step and exits
                                      +-> worker  goes on: the rank still needs its batches
    rank ends, for whatever reason -----> worker ends at once

torchrun, Slurm and a terminal signal whole process groups. A worker that obeyed would die before the rank,
which would then fail on a missing batch and not save. All of this holds under each start method of
multiprocessing: fork, spawn and forkserver (the default from Python 3.14 on).
"""

import ctypes
import multiprocessing
import multiprocessing.queues
import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TypeVar

from mmalign.core.errors import UserError, one_line

T = TypeVar("T")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def usable_cores() -> int:
    """The cores that this process may use, where the system tells; else those that there are."""
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(allowed(0))


def start_workers(loader: Iterable[T]) -> Iterator[T]:
    """`iter(loader)` of a DataLoader whose `worker_init_fn` is `leave_signals_to_the_parent`."""
    _spare_descriptors()
    if sys.platform != "linux":
        return iter(loader)
    if multiprocessing.get_start_method() != "fork":
        # Its start unblocks SIGTERM again, so it must be running before the signals are blocked.
        resource_tracker.ensure_running()
    # Processes and their threads inherit the mask. Without it, a thread that a library starts before the
    # worker's own code runs could receive SIGTERM. It also protects the fork server.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: ignore stop signals, and end with the parent (Linux)."""
    _spare_descriptors()
    # A batch that cannot be sent is dropped silently, and the parent would wait for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        parent = multiprocessing.parent_process()
        assert parent is not None and parent.pid is not None
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
        die_with(parent.pid)


def _spare_descriptors() -> None:
    """Let tensors go between processes by name where few files may be open; by default each needs two."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1024:
        from torch import multiprocessing as torch_multiprocessing

        torch_multiprocessing.set_sharing_strategy("file_system")


def _end_worker(error: Exception, _: object) -> None:
    sys.stderr.write(f"mmalign: a worker cannot send a batch: {one_line(error)}\n")
    os._exit(1)


def _obey(parent: int) -> None:
    # The DataLoader ends a worker that is too slow with SIGTERM, so that one must be obeyed.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def die_with(parent: int) -> None:
    """End this process as soon as its parent, the process with the id `parent`, has ended (Linux).

    Call it in the process's first thread.
    """
    # Linux watches the thread that made the process, so that must be one that lives as long as the parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        return
    # For the kernel, the parent is another process: the fork server, or, if the parent ended before the call
    # above, init. The pipe that multiprocessing shares with the real parent tells the two cases apart.
    process = multiprocessing.parent_process()
    if process is None:
        os._exit(1)
    threading.Thread(target=_exit_after, args=(process,), daemon=True).start()


def _exit_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def map_in_processes(
    function: Callable[[T], R], jobs: Iterable[T], processes: int
) -> Generator[R, None, None]:
    """The results of all jobs in their order; with one process, or one job, in this one.

    Args:
        function: of a module's top level, because it is sent to the processes.
        jobs: two per process are taken ahead of the results.

    Raises:
        UserError: a process was killed.
    """
    rest = iter(jobs)
    first = list(islice(rest, processes))
    if len(first) <= 1:
        yield from map(function, chain(first, rest))
        return
    pool = ProcessPoolExecutor(len(first), initializer=follow_parent, initargs=(os.getpid(),))
    waiting: deque[Future[R]] = deque()
    try:
        for job in chain(first, rest):
            waiting.append(pool.submit(function, job))
            if len(waiting) >= 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that works on shards was killed, probably for lack of memory; give fewer "
            "`--processes` or smaller shards, and run the same command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent(parent: int) -> None:
    """`initializer` of a pool: a process ends with its parent `parent`, which alone reacts to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        die_with(parent)
