"""Failure and restart of one of two hosts: the run must resume by itself with the same results.

    run on one host, 2 ranks -> losses, weights ----------------------------------+
    two network namespaces (veth) -> the script of `mmalign launch --on torchrun` +-> equal, bit for bit?
      on both -> SIGKILL to all of the second host -> the script there again -----+

The hosts are network namespaces of one machine. Each has its own address and reaches the other only through a
virtual cable. Run as root, with iproute2, and with `torchrun` and `mmalign` on PATH.

Prints one line per event and, as the last line, one JSON object: `exact`, `killed_after_step`,
`went_on_after_step` and `seconds_to_go_on` (from the second host's return to the first step).

    python benchmarks/two_hosts.py [--steps 60] [--kill-after 25]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lives import Case, Life, losses_of, newest_step, prepare, weights_of

from mmalign.core.console import say
from mmalign.launch.render import render

HOSTS = {"mmalign-a": "10.77.0.1", "mmalign-b": "10.77.0.2"}
FIRST, SECOND = HOSTS
PATIENCE = 900.0  # seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--kill-after", type=int, default=25, help="step")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name, two_hosts():
        result = measure(Path(name), options.steps, options.kill_after)
    say(json.dumps(result))
    sys.exit(0 if result["exact"] else 1)


def measure(folder: Path, steps: int, kill_after: int) -> dict[str, float | bool]:
    """The uninterrupted run, the run with a failure, and their comparison."""
    prepare(folder, steps, every=5)
    reference = folder / "reference"
    if code := Life(Case(folder, 2, steps), reference).end():
        raise RuntimeError(f"the run on one host ended with {code}; see {reference}.log")
    run, script = folder / "run", folder / "run.sh"
    script.write_text(launch_script(folder / "run.yaml", run))
    first, second = start(FIRST, script), start(SECOND, script)
    wait_until(lambda: step_of(run) >= kill_after, first, folder)
    kill_host(SECOND)
    second.wait()
    killed_after, went_on_after = step_of(run), newest_step(run)
    say(f"{SECOND} was killed after step {killed_after}; step {went_on_after} is saved")
    returned = time.monotonic()
    second = start(SECOND, script)
    wait_until(lambda: "from step" in second_start(folder), second, folder)
    seconds = time.monotonic() - returned
    say(f"{SECOND} was restarted; the run resumed after {seconds:.0f} s")
    codes = [process.wait(PATIENCE) for process in (first, second)]
    say(f"the launchers ended with {codes}")
    exact = losses_of(run) == losses_of(reference) and weights_of(run) == weights_of(reference)
    return {
        "exact": exact and codes == [0, 0],
        "killed_after_step": killed_after,
        "went_on_after_step": went_on_after,
        "seconds_to_go_on": round(seconds, 1),
    }


def launch_script(run_yaml: Path, out: Path) -> str:
    """The script of `mmalign launch --on torchrun` for the two hosts, one rank each."""
    options = {"nodes": 2, "gpus_per_node": 0, "ranks_per_node": 1}
    options |= {"host": HOSTS[FIRST], "interface": "eth0"}
    return render("torchrun", run_yaml, (), out, options)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them; removed with all their processes at the end."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ends = ("link", "add", "eth0", "netns", FIRST, "type", "veth")
        ip(*ends, "peer", "name", "eth0", "netns", SECOND)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
        yield
    finally:
        for host in HOSTS:
            kill_host(host)
            subprocess.run(["ip", "netns", "delete", host], check=False)


def ip(*words: str) -> str:
    """Call iproute2's `ip`."""
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def start(host: str, script: Path) -> "subprocess.Popen[bytes]":
    """Start the script on a host; its output is appended to `<host>.log` in the same folder."""
    with script.with_name(f"{host}.log").open("ab") as log:
        command = ["ip", "netns", "exec", host, "bash", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def kill_host(host: str) -> None:
    """Send SIGKILL to every process of a host until none is left."""
    while pids := ip("netns", "pids", host).split():
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def step_of(run: Path) -> int:
    """The newest recorded step."""
    return max(losses_of(run), default=0)


def second_start(folder: Path) -> str:
    """The output of the hosts after the first start printed its first step."""
    return "".join(log_of(folder, host).partition("from step 0")[2] for host in HOSTS)


def log_of(folder: Path, host: str) -> str:
    """The output of a host."""
    path = folder / f"{host}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def wait_until(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", folder: Path
) -> None:
    """Wait until it is true.

    Raises:
        RuntimeError: the process ended before, or the time is over.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            ends = "\n".join(f"--- {host}\n{log_of(folder, host)[-8000:]}" for host in HOSTS)
            raise RuntimeError(f"the run ended too early, or made no progress\n{ends}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
