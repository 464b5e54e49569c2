"""Cost of exact retrieval: mmalign, FAISS called directly, and CLIP_benchmark's metric.

    new process: embeddings of texts and images -> retrieval -> seconds, peak memory, recall

    time_over_faiss               `hits_at`, texts to images, recall at 1, 5 and 10, relative to FAISS:
                                  `IndexFlatIP`, add the images, search 10 for each text
    speed_over_clip_benchmark     `recall_at_k` of CLIP_benchmark 1.6.2 on all scores, both directions, in its
                                  batches of 64, relative to `measure_retrieval`: both directions, all
                                  intervals
    memory_over_clip_benchmark    `measure_retrieval` relative to the same

Embeddings are random, float32, of unit length, with one text per image. A text is similar to its image, so
that some are found. Each measurement runs in its own process, after a small one that warms up the libraries.
The methods take turns. Figures are medians over the rounds, ratios are medians over the ratios within a
round. Memory is the peak resident memory of the process, minus that with the embeddings before retrieval. The
table has the recalls of all methods. They must agree, except for queries with a wrong item within 1e-6 of the
right one, which ours counts as misses.

Prints a table and, as the last line, one JSON object. Reads /proc, so it needs Linux.

    python benchmarks/retrieval.py [--size 100000] [--peer-size 20000] [--width 512] [--rounds 3]
                                   [--threads N] [--clip-benchmark-python PATH]

Without PATH, `.venv-clip-benchmark` is created next to this file once, with pip.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from environments import make_environment

REQUIREMENT = "clip_benchmark==1.6.2"
KS = (1, 5, 10)
LEANING = 4.0  # similarity of a text to its image, in standard deviations of a random score
WARM_UP = 64
PEER_BATCH = 64  # CLIP_benchmark's default
BLOCK = 4096

Figures = dict[str, float]


def vectors(size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of texts and images, created in place in blocks to leave no other memory."""
    rng = np.random.default_rng(0)
    text_ND, image_ND = (np.empty((size, width), np.float32) for _ in range(2))
    for start in range(0, size, BLOCK):
        image, text = image_ND[start : start + BLOCK], text_ND[start : start + BLOCK]
        for rows in (image, text):
            rng.standard_normal(out=rows, dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        text += LEANING / width**0.5 * image
        text /= np.linalg.norm(text, axis=1, keepdims=True)
    return text_ND, image_ND


def faiss_by_hand(text_ND: np.ndarray, image_ND: np.ndarray) -> Figures:
    import faiss

    index = faiss.IndexFlatIP(image_ND.shape[1])
    index.add(image_ND)
    _, found_NK = index.search(text_ND, max(KS))
    right_NK = found_NK == np.arange(len(text_ND))[:, None]
    return {f"text_to_image@{k}": float(right_NK[:, :k].any(1).mean()) for k in KS}


def hits(text_ND: np.ndarray, image_ND: np.ndarray) -> Figures:
    """Ours: the same as FAISS called directly, with ties."""
    from mmalign.evaluation.nearest import hits_at

    places = np.arange(len(text_ND))
    found = hits_at(text_ND, image_ND, places, places, KS)
    return {f"text_to_image@{k}": float(found[k].mean()) for k in KS}


def measured(text_ND: np.ndarray, image_ND: np.ndarray) -> Figures:
    """Ours: both directions, with intervals and chance, as in `mmalign eval`."""
    from mmalign.evaluation.embed import EmbeddedSet
    from mmalign.evaluation.retrieval import DIRECTIONS, measure_retrieval
    from mmalign.results.results import Results

    size = len(text_ND)
    embedded = EmbeddedSet(
        name="s",
        image_PD=image_ND,
        text_MD=text_ND,
        sample_P=list(range(size)),
        picture_M=np.arange(size),
        language_M=np.full(size, "en"),
        texts=[""] * size,
    )
    results = Results(suite="benchmark", model={})
    measure_retrieval(embedded, KS, results)
    return {
        f"{direction}@{k}": results.metrics[f"retrieval/s/en/{direction}/recall@{k}"]
        for direction in DIRECTIONS
        for k in KS
    }


def clip_benchmark(text_ND: np.ndarray, image_ND: np.ndarray) -> Figures:
    """Its `recall_at_k` through its `batchify`, on the matrices of its `evaluate`."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores_NP = torch.from_numpy(text_ND) @ torch.from_numpy(image_ND).t()
    right_NP = torch.zeros_like(scores_NP, dtype=torch.bool)
    right_NP.fill_diagonal_(True)
    sides = {"text_to_image": (scores_NP, right_NP), "image_to_text": (scores_NP.T, right_NP.T)}
    recalls = {}
    for direction, (scores, right) in sides.items():
        for k in KS:
            shares = batchify(recall_at_k, scores, right, PEER_BATCH, "cpu", k=k)
            recalls[f"{direction}@{k}"] = float((shares > 0).float().mean())
    return recalls


METHODS = {
    "faiss": faiss_by_hand,
    "hits_at": hits,
    "measure_retrieval": measured,
    "clip_benchmark": clip_benchmark,
}


def resident_mib(key: str) -> float:
    """VmRSS: resident memory now. VmHWM: its peak in this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found, f"no {key} in /proc/self/status"
    return int(found[1]) / 1024


def measure_here(method: str, size: int, width: int) -> None:
    """Print the figures of one method as JSON (runs in the child process)."""
    METHODS[method](*vectors(WARM_UP, width))
    given = vectors(size, width)
    before = resident_mib("VmRSS")
    clock, processor = time.perf_counter(), time.process_time()
    recalls = METHODS[method](*given)
    figures = {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "mib": resident_mib("VmHWM") - before,
        **recalls,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def in_fresh_process(python: Path, method: str, size: int, width: int, threads: int) -> Figures:
    command = [str(python), __file__, "--only", method, "--size", str(size), "--width", str(width)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(ours: str, theirs: str, python: Path, options: argparse.Namespace) -> Figures:
    """Medians over the rounds of the ratios of ours to theirs; writes one line per method."""
    size = options.peer_size if theirs == "clip_benchmark" else options.size
    pythons = {ours: Path(sys.executable), theirs: python}
    found: dict[str, list[Figures]] = {method: [] for method in pythons}
    for _ in range(options.rounds):
        for method, interpreter in pythons.items():
            found[method].append(
                in_fresh_process(interpreter, method, size, options.width, options.threads)
            )
    for method, rounds in found.items():
        write_row(method, size, medians(rounds))
    pairs = list(zip(found[ours], found[theirs], strict=True))
    keys = ("seconds", "processor_seconds", "mib")
    ratios = medians([{key: a[key] / max(b[key], 1e-9) for key in keys} for a, b in pairs])
    write_row("ratio", size, ratios)
    return ratios


def medians(rounds: Sequence[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def write_row(name: str, size: int, figures: Figures) -> None:
    digits = 3 if name == "ratio" else 2
    sys.stdout.write(f"{name:<20}{size:>9,}")
    for key in ("seconds", "processor_seconds", "mib"):
        sys.stdout.write(f"{figures[key]:>18,.{digits}f}")
    recalls = [value for key, value in figures.items() if "@" in key]
    sys.stdout.write("   " + " ".join(f"{value:.6f}" for value in recalls) + "\n")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000, help="texts and images, against FAISS")
    parser.add_argument(
        "--peer-size", type=int, default=20_000, help="texts and images, against CLIP_benchmark"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clip-benchmark-python", type=Path, help="interpreter of its environment")
    parser.add_argument(
        "--only", choices=METHODS, help="measure this method in this process and print its figures"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.only:
        measure_here(options.only, options.size, options.width)
        return
    given = options.clip_benchmark_python
    python = given.absolute() if given else make_environment("clip-benchmark", [REQUIREMENT])
    sys.stdout.write(f"{options.threads} threads, D = {options.width}, recall at {KS}\n")
    sys.stdout.write(
        f"{'method':<20}{'size':>9}{'seconds':>18}{'of the processor':>18}{'MiB':>18}\n"
    )
    beside_faiss = compare("hits_at", "faiss", Path(sys.executable), options)
    beside_peer = compare("measure_retrieval", "clip_benchmark", python, options)
    figures = {
        "time_over_faiss": beside_faiss["seconds"],
        "speed_over_clip_benchmark": 1 / beside_peer["seconds"],
        "memory_over_clip_benchmark": beside_peer["mib"],
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
