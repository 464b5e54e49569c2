"""What ranks decide together, on real gloo ranks: rank 0's work, errors of one rank, equal values."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import run_ranks

from mmalign.core import distributed
from mmalign.core.errors import UserError


def refusal(work: Any) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return "no error"


def fail_on(rank: int, error: Exception) -> int:
    if distributed.rank() == rank:
        raise error
    return distributed.rank()


def decide_together(folder: Path) -> dict[str, Any]:
    rank = distributed.rank()
    missing = OSError(2, "No such file or directory", "a.bin")
    of_rank = torch.full((2, 3), float(rank)).t()  # not contiguous
    distributed.broadcast_([of_rank, torch.tensor(rank)])
    return {
        "main": distributed.on_main(lambda: f"of rank {distributed.rank()}"),
        "all": distributed.on_all(lambda: rank),
        "none": distributed.on_main(lambda: None),
        "broadcast": of_rank.tolist(),
        "errors": [
            refusal(lambda: distributed.on_main(lambda: fail_on(0, UserError("a: is wrong")))),
            refusal(lambda: distributed.on_all(lambda: fail_on(1, missing))),
            refusal(lambda: distributed.must_agree(rank, "the files")),
            refusal(lambda: distributed.must_agree("same", "the files")),
        ],
    }


def test_ranks_decide_alike_and_raise_alike(tmp_path: Path) -> None:
    first, second = run_ranks(2, decide_together, tmp_path / "ranks", tmp_path)
    assert (first.pop("all"), second.pop("all")) == (0, 1)
    assert first == second
    assert (first["main"], first["none"]) == ("of rank 0", None)
    assert first["broadcast"] == [[0.0, 0.0]] * 3
    of_main, of_one, differs, same = first["errors"]
    assert of_main == "a: is wrong"
    assert of_one.startswith("a.bin: No such file or directory; ")
    assert differs == "the files differ between the ranks; give every host the same files"
    assert same == "no error"


def wait_for_rank_0(port: int) -> list[Any]:
    """Work of rank 0 that takes three times the time-out of collectives, and a collective that does."""
    dist.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.start(timedelta(seconds=4))
    slept = distributed.on_main(lambda: time.sleep(12) or "slept")  # type: ignore[func-returns-value]
    if distributed.is_main():
        return [slept]
    try:
        distributed.gather_objects(0)  # rank 0 is not there
    except RuntimeError as error:
        return [slept, type(error).__name__]
    return [slept, "no time-out"]


def test_work_of_rank_0_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, waited = run_ranks(2, wait_for_rank_0, tmp_path / "ranks", port)
    assert waited[0] == "slept"
    assert waited[1] != "no time-out"
