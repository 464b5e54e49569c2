"""Processes for tests: real gloo ranks, and `mmalign` commands.

A server process imports the heavy libraries once per test session. Each rank or command is a fork of it. It
starts in milliseconds instead of seconds, and contains nothing of another test.
"""

import gc
import multiprocessing as mp
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_PRELOADED = [
    "mmalign.cli",
    "mmalign.training.loop",
    "deepspeed.runtime.zero",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # which ZeRO 1 to 3 import, with a compiler
    "setuptools",  # which DeepSpeed imports at every start
    "timm",
    "transformers.models.bert.modeling_bert",
]


def context() -> Any:
    """Of multiprocessing, whose processes are forks of the one that has imported everything."""
    # A fork cannot use a GPU whose driver its parent has looked at.
    if torch.cuda.is_available():
        return mp.get_context("spawn")
    forks = mp.get_context("forkserver")
    forks.set_forkserver_preload(_PRELOADED)
    return forks


def _join(processes: list[Any]) -> list[int]:
    """Start them together; the exit codes."""
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def run_ranks(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """The results of `function(*args)` on each of `world_size` gloo ranks, in rank order.

    Args:
        function: of a module that the ranks can import (not a lambda, not a closure).
        folder: an empty one for the file store and the results. The ranks join through a file, so no port is
            needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes = _join(
        [
            context().Process(target=_run_rank, args=(rank, world_size, function, folder, args))
            for rank in range(world_size)
        ]
    )
    errors = [path.read_text() for path in sorted(folder.glob("error*.txt"))]
    assert not errors, "\n".join(errors)
    assert not any(codes)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_rank(
    rank: int, world_size: int, function: Callable[..., Any], folder: Path, args: tuple[Any, ...]
) -> None:
    _begin()
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


def _begin() -> None:
    torch.set_num_threads(1)
    # ZeRO 3 collects garbage at its start, which takes half a second among all that was imported.
    gc.freeze()


class Done(NamedTuple):
    """How a command ended; output of rank 0."""

    returncode: int
    stdout: str
    stderr: str


def run_command(
    arguments: Sequence[str],
    folder: Path,
    ranks: int = 1,
    variables: Mapping[str, str] = MappingProxyType({}),
    most_files: int | None = None,
) -> Done:
    """`mmalign ARGUMENTS` in `folder`, on ranks that get the environment that torchrun gives them.

    Args:
        variables: more of their environment.
        most_files: that a rank may have open.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    outputs = [folder / f".output-{rank}" for rank in range(ranks)]
    codes = _join(
        [
            context().Process(
                target=_run_command,
                args=(
                    list(arguments),
                    folder,
                    outputs[rank],
                    {**variables, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    if ranks > 1
                    else dict(variables),
                    most_files,
                ),
            )
            for rank in range(ranks)
        ]
    )
    texts = [outputs[0].with_suffix(f".{stream}").read_text() for stream in ("out", "err")]
    return Done(next((code for code in codes if code), 0), *texts)


def _run_command(
    arguments: list[str],
    folder: Path,
    output: Path,
    environment: dict[str, str],
    most_files: int | None,
) -> None:
    if most_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    # The descriptors themselves: libraries write to them without Python.
    for descriptor, stream in ((1, "out"), (2, "err")):
        with output.with_suffix(f".{stream}").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    _begin()
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["mmalign", *arguments]
    from mmalign import cli

    cli.main()
