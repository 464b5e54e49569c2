"""A request to stop is remembered; repeated ones end a process that hangs, and no other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmalign.training.signals import EXIT_HUNG, EXIT_INTERRUPTED, EXIT_STOPPED, StopRequest

ASKING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
# The main thread waits in C code, where Python runs no handlers. `idle`: since the file `moved` was touched;
# 0 while there is a file `saving`.
HUNG = """
import ctypes, sys, time
from pathlib import Path
from mmalign.training import signals
signals.IDLE_SECONDS = 2.0
folder = Path(sys.argv[1])
def idle():
    return 0.0 if (folder / "saving").exists() else time.time() - (folder / "moved").stat().st_mtime
with signals.StopRequest(idle):
    mutex = ctypes.create_string_buffer(128)
    (folder / "started").touch()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_the_first_signal_is_remembered_by_name() -> None:
    for number in ASKING:
        with StopRequest(idle=lambda: 0.0) as stop:
            assert stop.requested is None
            os.kill(os.getpid(), number)
            assert stop.requested == number.name
    with StopRequest(idle=lambda: 0.0) as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested == "SIGUSR1"


@pytest.fixture
def hung(tmp_path: Path) -> "subprocess.Popen[str]":
    (tmp_path / "moved").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HUNG, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    return process


def test_a_second_interrupt_ends_a_hung_process_at_once(hung: "subprocess.Popen[str]") -> None:
    hung.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert hung.poll() is None  # the first one asks the loop to save
    hung.send_signal(signal.SIGINT)
    assert "interrupted twice: ended" in hung.communicate(timeout=5)[1]
    assert hung.returncode == EXIT_INTERRUPTED == 130


def test_repeated_requests_end_only_what_neither_moves_nor_saves(
    hung: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    (tmp_path / "saving").touch()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        hung.send_signal(number)
    time.sleep(4)
    assert hung.poll() is None  # longer than the limit, but it saves
    (tmp_path / "moved").touch()
    (tmp_path / "saving").unlink()
    time.sleep(1)
    assert hung.poll() is None  # it moved a second ago
    assert "without progress for 2 s: ended" in hung.communicate(timeout=10)[1]
    assert hung.returncode == EXIT_HUNG


def test_signals_of_a_forked_process_do_not_count(tmp_path: Path) -> None:
    with StopRequest(idle=lambda: 100.0) as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        time.sleep(1.5)  # long enough for the thread to end this process
        assert stop.requested is None


def test_the_old_handlers_come_back_after_an_error_too() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(ZeroDivisionError), StopRequest(idle=lambda: 0.0):
        assert [signal.getsignal(number) for number in ASKING] != before
        _ = 1 / 0
    assert [signal.getsignal(number) for number in ASKING] == before


def test_the_codes_are_those_that_launchers_know() -> None:
    assert (EXIT_STOPPED, EXIT_HUNG) == (os.EX_TEMPFAIL, 76)
