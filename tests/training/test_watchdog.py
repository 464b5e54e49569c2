"""A rank that hangs is reported with its line, and all processes of the run end soon after."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist
from shard_sets import make_image
from tiny import tiny_model, tiny_model_config, tiny_tokenizer

from mmalign.core import distributed
from mmalign.training.engine import EngineConfig
from mmalign.training.evaluate import WatchedEncoder
from mmalign.training.signals import EXIT_HUNG
from mmalign.training.watchdog import Watchdog

SECONDS = 2.0
CODE_THAT_KEEPS_THE_LOCK = """
import ctypes, sys
from pathlib import Path
from mmalign.training.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 1.0):
    ctypes.PyDLL(None).sleep(60)  # unlike ctypes.CDLL, PyDLL keeps the lock
"""


def test_the_rank_that_sleeps_is_named_and_the_other_one_waits(tmp_path: Path) -> None:
    started = [tmp_path / f"started{rank}" for rank in (0, 1)]
    ranks = [start(rank, tmp_path, started[rank]) for rank in (0, 1)]
    wait_for(started)
    began = time.monotonic()
    told = [process.communicate(timeout=300)[1] for process in ranks]
    assert time.monotonic() - began < SECONDS + 10
    assert [process.returncode for process in ranks] == [EXIT_HUNG, EXIT_HUNG], told

    line = next(n for n, text in enumerate(own_lines(), 1) if text.strip() == "time.sleep(600)")
    assert re.search(
        rf"mmalign: rank 1 hangs at \S+/test_watchdog\.py:{line} in slow; no heartbeat for \d+ s, "
        r"the last one: step 7: gather; ",
        told[1],
    )
    assert re.search(r"mmalign: rank 0 waits for other ranks at \S+test_watchdog\.py:", told[0])
    stacks = (tmp_path / "hang-rank1.txt").read_text()
    assert "time.sleep(600)" in stacks and "MainThread" in stacks
    assert "all_reduce" in (tmp_path / "hang-rank0.txt").read_text()


def test_code_that_keeps_pythons_lock_is_ended_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE_THAT_KEEPS_THE_LOCK, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert 'File "<string>", line 6 in <module>' in done.stderr


def test_heartbeats_keep_it_quiet(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0.4) as watchdog:
        for step in range(4):
            watchdog.heartbeat(f"step {step}")
            time.sleep(0.2)
    time.sleep(0.6)  # nothing watches any more
    assert list(tmp_path.iterdir()) == []


def test_a_pause_is_no_hang_and_a_save_is_not_idle(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0.4) as watchdog:
        watchdog.pause("tokenizer: training")
        time.sleep(1.0)
        assert watchdog.idle() == 0
        watchdog.heartbeat("saving step 1", saves=True)
        time.sleep(0.2)
        assert watchdog.idle() == 0
        watchdog.heartbeat("step 2")
        time.sleep(0.2)
        assert 0.2 <= watchdog.idle() < 0.4
    assert list(tmp_path.iterdir()) == []


def test_runs_are_watched_and_their_long_phases_report(tmp_path: Path) -> None:
    assert EngineConfig().hang_seconds == 1800
    beats: list[str] = []
    encoder = WatchedEncoder(tiny_model(), tiny_model_config(), tiny_tokenizer(), facts={})
    encoder.heartbeat = beats.append
    encoder.encode_texts(["a dog"] * 3, batch_size=2)
    encoder.encode_images([make_image(0)] * 3, batch_size=2)
    assert beats == ["evaluation: texts"] * 2 + ["evaluation: images"] * 2


def test_zero_seconds_watch_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0) as watchdog:
        watchdog.heartbeat("step 1")
    assert list(tmp_path.iterdir()) == []


def start(rank: int, folder: Path, started: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, str(rank), str(folder), str(started)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def wait_for(files: list[Path]) -> None:
    deadline = time.monotonic() + 300
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)


def own_lines() -> list[str]:
    return Path(__file__).read_text(encoding="utf-8").splitlines()


def slow() -> None:
    """The rank that hangs, before its collective."""
    time.sleep(600)


def run_rank(rank: int, folder: Path, started: Path) -> None:
    import torch

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with Watchdog(folder, SECONDS) as watchdog:
        watchdog.heartbeat("step 7: gather")
        distributed.gather_objects(None)
        started.touch()
        if rank == 1:
            slow()
        distributed.sum_over_ranks(torch.ones(1))


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
