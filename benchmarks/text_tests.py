"""Tests of a fine-tuned model: memory over many rows, and speed beside transformers' pipeline.

    rows in 15 languages, once and repeated -> measure(), clean and under 4 perturbations -> peak memory
    rows -> ours, and the pipeline "text-classification" of the same weights and batches -> rows per second

Memory is that of a tower of one layer, whose size does not hide that of the rows: it is flat if ten times
the rows cost the texts themselves and nothing more. Both sides of the speed have the trunk of `--model` and a
head with random weights, on the CPU in float32, and take turns. The pipeline gets the rows in their order,
as it is used; ours sorts them by length itself. The last line is one JSON object. Reads /proc, so it needs
Linux.

    python benchmarks/text_tests.py --model FOLDER [--rows FOLDER] [--repeat 10] [--per-language 200]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from finetune import LANGUAGES, say, write_model, write_rows

PERTURBATIONS = [
    {"kind": "characters", "severity": 2},
    {"kind": "keyboard", "severity": 2},
    {"kind": "words", "edit": "drop", "severity": 3},
    {"kind": "surface", "edit": "upper", "severity": 3},
]
BATCH = 32

# In a process of its own, because a peak never falls. Arguments: rows, model, repeats of the rows.
CHILD = """
import json, sys
from dataclasses import replace
from mmalign.core.config import validate
from mmalign.models.load import load_text_encoder
from mmalign.results.results import Results
from mmalign.text.fit import fit
from mmalign.text.fit_config import FitConfig
from mmalign.text.measure import TestConfig, measure
from mmalign.text.tasks.read import TaskConfig, read_task
rows, model, repeat, perturbations = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
task = read_task(TaskConfig(name="xnli", folder=rows))
tests = {
    lang: [replace(one, id=f"{one.id}-{n}") for n in range(repeat) for one in examples]
    for lang, examples in task.tests.items()
}
task = replace(task, tests=tests)
tower = load_text_encoder(model)
fitted = fit(tower, task, FitConfig(epochs=1), seed=0)
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))
before = memory("VmRSS")
config = validate(TestConfig, {"perturbations": perturbations}, "benchmark")
measure(fitted, task, config, tower, Results(suite="benchmark", model={}))
counts = sum(len(examples) for examples in tests.values())
print(json.dumps({"rows": counts, "before_mib": before, "peak_mib": memory("VmHWM")}))
"""


def measure_memory(rows: Path, model: Path, repeat: int) -> dict[str, int]:
    """Rows tested, and memory before the tests and at its peak, in MiB."""
    command = [sys.executable, "-c", CHILD, str(rows), str(model), str(repeat)]
    done = subprocess.run(
        [*command, json.dumps(PERTURBATIONS)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_speed(rows: Path, model: Path, per_language: int, rounds: int) -> float:
    """Median over rounds of our rows per second relative to the pipeline's."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    from mmalign.models.load import load_text_encoder
    from mmalign.text.fit import build_model
    from mmalign.text.tasks.read import TaskConfig, read_task

    task = read_task(TaskConfig(name="xnli", folder=str(rows), test_examples=per_language))
    examples = [one for tests in task.tests.values() for one in tests]
    ours = build_model(load_text_encoder(str(model)), task, "joint", None).eval()
    ours.evaluation_batch = BATCH
    peer = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=3),
        tokenizer=AutoTokenizer.from_pretrained(model),
        device="cpu",
        batch_size=BATCH,
    )
    pairs = [{"text": one.texts[0], "text_pair": one.texts[1]} for one in examples]

    def predict() -> None:
        # Else the features of the round before are reused.
        torch.autograd.graph.increment_version(next(ours.tower.parameters()))
        ours.predict(examples)

    def classify() -> None:
        peer(pairs, truncation=True, max_length=128)

    calls: dict[str, Callable[[], None]] = {"ours": predict, "pipeline": classify}
    ratios = []
    for number in range(rounds):
        speed = {}
        for name in sorted(calls, reverse=bool(number % 2)):
            start = time.perf_counter()
            calls[name]()
            speed[name] = len(examples) / (time.perf_counter() - start)
        say(f"rows/s: ours {speed['ours']:.1f}, pipeline {speed['pipeline']:.1f}")
        ratios.append(speed["ours"] / speed["pipeline"])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder of transformers; none: no speed")
    parser.add_argument("--rows", type=Path, help="folder with a train and tests; none: made up")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--per-language", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made, one_layer = folder / "rows", folder / "one-layer"
        made.mkdir()
        write_rows(made, 256, 501)
        write_model(one_layer, folder / "words.txt", 128, 1, 5100)
        rows = args.rows or made
        once = measure_memory(rows, one_layer, 1)
        many = measure_memory(rows, one_layer, args.repeat)
        for one in (once, many):
            say(
                f"{one['rows']} rows in {len(LANGUAGES)} languages: {one['before_mib']} MiB before the "
                f"tests, {one['peak_mib']} MiB at the peak"
            )
        found["rows"] = many["rows"]
        for name, one in (("once", once), ("repeated", many)):
            found[f"added_mib_{name}"] = one["peak_mib"] - one["before_mib"]
        if args.model:
            found["speed_over_pipeline"] = compare_speed(
                rows, args.model, args.per_language, args.rounds
            )
    say(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
