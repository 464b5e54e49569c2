"""A signal to a Slurm job on two nodes: it must save, requeue, resume and end with the results of one host.

    run on one host, 2 ranks -> losses, weights --------------------------------------+
    `mmalign launch --on slurm --nodes 2` -> sbatch -> SIGUSR1, as before a time limit +-> equal, bit for bit?
      -> stopped.json -> requeued by the script -> the same job again, to its end -----+

Needs Slurm with two free nodes that can access the temporary folder (`--folder` names another), and
`torchrun` and `mmalign` on PATH; `sbatch` passes PATH on.

Prints one line per event and, as the last line, one JSON object: `exact`, `stopped_after_step`, `restarts`
(of the job, as Slurm counts them) and `state` (of the job at the end).

    python benchmarks/two_nodes_slurm.py [--steps 60] [--signal-after 25] [--folder DIR]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lives import Case, Life, losses_of, prepare, weights_of

from mmalign.core.console import say
from mmalign.launch.render import render

PATIENCE = 1800.0  # seconds; a requeued job waits two minutes before it starts again


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--signal-after", type=int, default=25, help="step")
    arguments.add_argument(
        "--folder", help="where to work; the system's temporary folder by default"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = measure(Path(name), options.steps, options.signal_after)
    say(json.dumps(result))
    sys.exit(0 if result["exact"] else 1)


def measure(folder: Path, steps: int, signal_after: int) -> dict[str, str | float | bool]:
    """The run on one host, the job on two nodes, and their comparison."""
    prepare(folder, steps, every=5)
    reference = folder / "reference"
    if code := Life(Case(folder, 2, steps), reference).end():
        raise RuntimeError(f"the run on one host ended with {code}; see {reference}.log")
    run = folder / "run"
    job = submit(folder, run)
    say(f"job {job} is submitted")
    wait_until(lambda: step_of(run) >= signal_after, job)
    slurm("scancel", "--signal=USR1", job)
    wait_until((run / "stopped.json").exists, job)
    stopped = json.loads((run / "stopped.json").read_text())
    say(f"stopped: {stopped}")
    wait_until(lambda: state_of(job)["Restarts"] != "0", job)
    say("requeued")
    wait_until(lambda: state_of(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"), job)
    end = state_of(job)
    exact = losses_of(run) == losses_of(reference) and weights_of(run) == weights_of(reference)
    return {
        "exact": exact and end["JobState"] == "COMPLETED",
        "stopped_after_step": stopped["step"],
        "restarts": int(end["Restarts"]),
        "state": end["JobState"],
    }


def submit(folder: Path, out: Path) -> str:
    """Submit the script of `mmalign launch --on slurm`; returns the job id."""
    options = {"nodes": 2, "gpus_per_node": 0, "ranks_per_node": 1}
    options |= {"cpus_per_node": 1, "time": "01:00:00"}
    script = folder / "run.sbatch"
    script.write_text(render("slurm", folder / "run.yaml", (), out, options))
    # One thread per rank, as in the run on one host: the order of sums depends on the number of threads.
    threads = "--export=ALL,OMP_NUM_THREADS=1"
    return slurm("sbatch", "--parsable", threads, "--chdir", str(folder), str(script)).strip()


def slurm(*words: str) -> str:
    """Call a program of Slurm."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def state_of(job: str) -> dict[str, str]:
    """The controller's record of a job: `JobState`, `Restarts`, ..."""
    return dict(re.findall(r"(\w+)=(\S*)", slurm("scontrol", "show", "job", job)))


def step_of(run: Path) -> int:
    """The newest recorded step."""
    return max(losses_of(run), default=0)


def wait_until(condition: Callable[[], bool], job: str) -> None:
    """Wait until it is true.

    Raises:
        RuntimeError: the job failed, or the time is over.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        failed = state_of(job)["JobState"] in ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
        if failed or time.monotonic() > deadline:
            raise RuntimeError(f"job {job} failed, or made no progress")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
