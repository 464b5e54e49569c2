"""Parts of a verb's work as tasks of Ray, on one machine or on many: Ray places them, and repeats them.

    function, address -> one task per core (or GPU) of the cluster: function(part=(i, n)) -> results, in order

A task whose node dies is run again on another one, and finds there what the first one has finished. Every
node has this package, and sees the files under the same names.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any, TypeVar

from mmalign.core.commit import InUse
from mmalign.core.console import track
from mmalign.core.errors import UserError, one_line

R = TypeVar("R")
_OBJECT_STORE = 100 * 2**20  # bytes; the parts exchange files, not objects
_SECONDS_IN_USE = 120


def map_parts(function: Callable[..., R], address: str, on_gpus: bool = False) -> list[R]:
    """The results of `function(part=(i, n))` for all i < n.

    Args:
        function: of a module's top level, or a `partial` of one.
        address: of a cluster, `auto` for the one that runs on this machine, `local` for a new one here.
        on_gpus: a part takes a GPU where the cluster has any, else a core.

    Raises:
        UserError: Ray is missing or not there, what a part raises, or a part was lost several times.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--ray: needs ray; `pip install 'mmalign[ray]'` brings it") from None
    # Before it starts: a cluster of our own must not report to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level="ERROR",
            **(own if address == "local" else {}),
        )
    except Exception as error:  # of many kinds: no cluster, another version, a wrong address
        raise UserError(
            f"--ray: no cluster at `{address}` ({one_line(error)}); give its address, `auto` or `local`"
        ) from None
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if on_gpus and resources.get("GPU", 0) >= 1 else "CPU"
        # Two at least: one part of one would be the verb itself.
        count = max(2, int(resources.get(kind, 1)))
        needs = {"num_gpus" if kind == "GPU" else "num_cpus": 1, "max_retries": 3}
        task = ray.remote(**needs)(_run)
        running = [task.remote(function, Path.cwd(), (i, count)) for i in range(count)]
        place = {one: number for number, one in enumerate(running)}
        results: dict[int, R] = {}
        # As they finish: a part that cannot be made ends the others at once.
        for one in track(_finished(running), "parts", count):
            results[place[one]] = _result(one)
        return [results[number] for number in range(count)]
    finally:
        ray.shutdown()


def _run(function: Callable[..., R], folder: Path, part: tuple[int, int]) -> R:
    # On a node. Processes of a node that has just died may still hold the part for a moment.
    if not folder.is_dir():
        raise UserError(f"--ray: {os.uname().nodename} does not see {folder}; use a shared disk")
    deadline = time.monotonic() + _SECONDS_IN_USE
    with chdir(folder):
        while True:
            try:
                return function(part=part)
            except InUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)


def _finished(running: list[Any]) -> Iterator[Any]:
    import ray

    while running:
        done, running = ray.wait(running)
        yield from done


def _result(task: Any) -> Any:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        # It also has the class of what the task raised, with a traceback as its text.
        cause = error.cause
        if isinstance(cause, UserError | OSError):
            raise cause from None
        if not isinstance(cause, ray.exceptions.RayError):
            raise
        lost: Exception = cause
    except ray.exceptions.RayError as error:
        lost = error
    raise UserError(
        f"--ray: a part cannot run, or was lost several times ({one_line(lost)}); see that every node has "
        "this mmalign and enough memory, and run the same command again"
    )
