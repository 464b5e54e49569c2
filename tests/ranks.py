"""Real ranks for tests: processes that join one gloo group through a file, so no port is needed."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """The results of `function(*args)` on each of `world_size` gloo ranks, in rank order.

    Args:
        function: of a module that the ranks can import (not a lambda, not a closure).
        folder: an empty one for the file store and the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_run_rank, args=(rank, world_size, function, folder, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [path.read_text() for path in sorted(folder.glob("error*.txt"))]
    assert not errors, "\n".join(errors)
    assert all(process.exitcode == 0 for process in processes)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_rank(
    rank: int, world_size: int, function: Callable[..., Any], folder: Path, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        torch.save(function(*args), folder / f"rank{rank}.pt")
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()
    # The results are written. A normal exit would end the interpreter while threads of libraries
    # still run, which aborts about one process in some thousand ("terminate called ...").
    sys.stdout.flush()
    os._exit(0)
