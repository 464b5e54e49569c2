"""Every verb on outputs, streams and signals that go wrong: how it ends, and whether anything is lost.

    inputs of tests/artefacts (a data set, a run, YAML files) -> one copy per cell
    verb x condition -> the real command line -> exit code, what it said, what lies on the disk -> a cell

    read-only   the output's folder may be read only
    blocked     a file is in the place of the output's folder
    full        no file may grow beyond 2 KB (RLIMIT_FSIZE), as on a full disk
    closed      stdout is closed
    SIGINT, SIGTERM   in the middle of the verb's usual time
    POSIX       a terminal that knows ASCII alone, and an output whose name does not

A cell says how the verb ended: `done` (exit code 0), `sentence` (one line on stderr), `stopped` (by the
signal), `usage` (exit code 2) or `traceback`. `lost` is added where a file of before is gone, a JSON file
or a page is incomplete, a committed folder does not verify, or a verb that ended well left no output. Prints
a table and, as the last line, one JSON object: `cells`, `tracebacks`, `lost`.

    python benchmarks/outputs.py [--short] [--verbs report export] [--conditions full POSIX]
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mmalign.core.commit import MANIFEST, verify
from mmalign.core.console import say
from mmalign.core.errors import UserError

ROOT = Path(__file__).parents[1]
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h
MOST_BYTES = 2048
SECONDS = 600
SECONDS_TO_STOP = 120
CONDITIONS = ("read-only", "blocked", "full", "closed", "SIGINT", "SIGTERM", "POSIX")
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# OUT is the output; a verb without it writes beside its input.
VERBS = {
    "data build": "data build recipe.yaml --out OUT",
    "data index": "data index data/small/test --language en --out OUT",
    "data verify": "data verify data/small/test --json OUT.json",
    "data stats": "data stats data/small/test --json OUT.json --picture OUT.png",
    "train": "train run.yaml --out OUT",
    "embed": "embed run.yaml model.image.frozen=true --data data/small/train",
    "launch": "launch run.yaml --on torchrun --nodes 1 --gpus-per-node 1 --write OUT.sh",
    "eval": "eval eval.yaml --model run --out OUT",
    "eval text": "eval text.yaml --model run --out OUT",
    "eval faiss": "eval faiss.yaml --model run --out OUT",
    "compare": "compare run/eval/small run/eval/small --out OUT.md",
    "report": "report run --out OUT.html",
    "index": "index run --data data/small/test --factory Flat --out OUT",
    "search": "search --model run --data data/small/test --port 0 --cache OUT",
    "finetune": "finetune category.yaml --model run --out OUT",
    "study": "study study.yaml --out OUT --workers 1",
    "export": "export run --out OUT",
    "demo": "demo --out OUT",
}
TEXT_SUITE = """
name: text
groups:
  - name: one
    train: {folder: data/small/tasks/emoji_category}
    fit: {epochs: 1}
    tests: [{name: emoji_category, folder: data/small/tasks/emoji_category}]
"""
FAISS_SUITE = """
name: faiss
set: {name: small, shards: data/small/test}
indexes: [{factory: Flat}]
repeats: 1
"""
SHORT = ("data verify", "launch", "report")


def make_inputs(folder: Path) -> Path:
    with tarfile.open(ROOT / "tests/artefacts/0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "text.yaml").write_text(TEXT_SUITE, encoding="utf-8")
    (folder / "faiss.yaml").write_text(FAISS_SUITE, encoding="utf-8")
    return folder


def start(words: list[str], folder: Path, condition: str) -> "subprocess.Popen[bytes]":
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
        if condition == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))
        if condition == "read-only":  # root may write everywhere, unless this right is given up
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)

    command = [sys.executable, "-m", "mmalign", *words]
    if condition == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" >&-', *command]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            **(ASCII if condition == "POSIX" else {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
        start_new_session=True,
    )


def run_cell(verb: str, condition: str, inputs: Path, usual: float) -> tuple[str, bool]:
    """How the verb ended, and whether something was lost.

    Args:
        usual: seconds that the verb takes where nothing goes wrong.
    """
    with tempfile.TemporaryDirectory(prefix="outputs-") as scratch:
        folder = Path(scratch) / "work"
        shutil.copytree(inputs, folder)
        place = folder / ("sortie-é" if condition == "POSIX" else "place")
        if condition == "blocked":
            place.write_text("a file", encoding="utf-8")
        else:
            place.mkdir()
        if condition == "read-only":
            place.chmod(0o555)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        words = [word.replace("OUT", f"{place.name}/out") for word in VERBS[verb].split()]
        process = start(words, folder, condition)
        number = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(condition)
        if number is None and verb == "search":
            number = signal.SIGINT  # a page is served until then
        try:
            told = process.communicate(timeout=usual if number else SECONDS)
        except subprocess.TimeoutExpired:
            # A terminal sends SIGINT to every process of the command, `kill` sends SIGTERM to the first one.
            if number == signal.SIGINT:
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(number or signal.SIGKILL)
            told = end(process)
        ending = describe(process.returncode, *told)
        wrong = list(broken(folder, before))
        names_output = any(place.name in word for word in words)
        if ending == "done" and names_output and not any(place.glob("out*")):
            wrong.append(place / "out")
        for path in wrong:
            sys.stderr.write(f"{verb}, {condition}: lost {path.relative_to(folder)}\n")
        if ending == "traceback":
            sys.stderr.write(f"{verb}, {condition}:\n{told[1].decode(errors='replace')[-1500:]}\n")
        return ending, bool(wrong)


def end(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    """What a stopped command said; processes of it that stay are ended, and make it a traceback."""
    try:
        return process.communicate(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return out, err + b"\n(Traceback (most recent call last): it did not stop)"


def describe(code: int, out: bytes, err: bytes) -> str:
    if b"Traceback (most recent call last)" in out + err:
        return "traceback"
    if code == 0:
        return "done"
    if code == 2:
        return "usage"
    lines = [line for line in err.splitlines() if line.startswith(b"mmalign: ")]
    return "sentence" if lines else f"stopped ({code})"


def broken(folder: Path, before: dict[Path, bytes]) -> Iterator[Path]:
    """Files that are gone or incomplete."""
    yield from (path for path in before if not path.is_file())
    for path in (path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        is_final = not any(".tmp" in part or part.startswith(".") for part in parts)
        if not is_final or before.get(path) == (data := path.read_bytes()):
            continue
        try:
            if path.suffix == ".json":
                json.loads(data)
            if path.name == MANIFEST:
                verify(path.parent)
            is_complete = path.suffix != ".html" or data.rstrip().endswith(b"</html>")
            is_complete &= bool(data) or not before.get(path)
        except (ValueError, UserError):
            is_complete = False
        if not is_complete:
            yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    options = parser.parse_args()
    verbs = [verb for verb in options.verbs if not options.short or verb in SHORT]
    cells, tracebacks, lost = 0, 0, 0
    say(" | ".join(("verb", *options.conditions)))
    with tempfile.TemporaryDirectory() as scratch:
        inputs = make_inputs(Path(scratch))
        for verb in verbs:
            usual = 0.0
            if {"SIGINT", "SIGTERM"}.intersection(options.conditions) or verb == "search":
                usual = usual_seconds(verb, inputs)
            row = []
            for condition in options.conditions:
                ending, is_lost = run_cell(verb, condition, inputs, usual)
                row.append(f"{ending}, lost" if is_lost else ending)
                cells, lost = cells + 1, lost + is_lost
                tracebacks += ending == "traceback"
            say(" | ".join((verb, *row)))
    say(json.dumps({"cells": cells, "tracebacks": tracebacks, "lost": lost}))
    sys.exit(1 if tracebacks or lost else 0)


def usual_seconds(verb: str, inputs: Path) -> float:
    """Two thirds of the time that a verb takes, or of a page until it can be opened and is idle."""
    if verb == "demo":
        return 30.0  # it takes minutes, and the first verb of it is as good as any
    with tempfile.TemporaryDirectory(prefix="outputs-") as scratch:
        folder = Path(scratch) / "work"
        shutil.copytree(inputs, folder)
        begun = time.monotonic()
        process = start(VERBS[verb].replace("OUT", "out").split(), folder, "")
        assert process.stdout is not None
        if verb == "search":
            while b"http://" not in (line := process.stdout.readline()):
                assert line, "the page was never served"
            seconds = time.monotonic() - begun
            process.kill()
            process.communicate()
            return seconds * 1.5
        process.communicate(timeout=SECONDS)
        return (time.monotonic() - begun) * 2 / 3


if __name__ == "__main__":
    main()
