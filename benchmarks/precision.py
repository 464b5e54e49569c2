"""Is bf16 autocast faster than float32 on this device? Training steps of a run, in both by turns.

    run file -> `mmalign train` for a few steps in fp32, in bf16, in fp32, ... -> seconds per step -> medians

Prints a line per training and, as the last line, one JSON object; `ratio`: the time in bf16 by that in fp32.

    python benchmarks/precision.py train/emoji_scenes.yaml [OVERRIDE ...] [--steps 16] [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mmalign.core.console import say


def seconds_per_step(run: str, overrides: list[str], precision: str, steps: int) -> float:
    """The median over the second half of the steps; the first half warms up."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        fields = [f"engine.precision={precision}", f"steps={steps}", f"checkpoint.every={steps}"]
        fields += ["evaluation=null", "log.every=1", "optimizer.warmup_steps=2", *overrides]
        command = [sys.executable, "-m", "mmalign", "train", run, "--out", str(out), *fields]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taken = [line["step_seconds"] for line in lines if "step_seconds" in line]
    return statistics.median(taken[len(taken) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    taken: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(given.rounds):
        for precision, found in taken.items():
            found.append(seconds_per_step(given.run, given.overrides, precision, given.steps))
            say(f"round {number + 1}, {precision}: {found[-1]:.3f} s per step")
    ratio = statistics.median(b / a for a, b in zip(taken["fp32"], taken["bf16"], strict=True))
    medians = {f"{name}_seconds": round(statistics.median(s), 3) for name, s in taken.items()}
    say(json.dumps({**medians, "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
