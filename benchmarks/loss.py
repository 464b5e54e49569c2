"""Cost of the contrastive loss: mmalign's tiled loss, and open_clip's ClipLoss, which holds all scores.

    new process: random embeddings -> loss, forward and backward -> peak memory, seconds, gradients

One process without ranks, float32, one caption per image, temperature 0.07 (the initial value of
training). Each measurement runs in its own process, after a small batch that warms up library and allocator.
The two methods take turns. Figures are medians over the rounds, ratios are medians over the ratios within a
round. Memory is the peak resident memory of the process, minus that with the embeddings before the loss; it
includes the gradients of the embeddings. Wall-clock and processor seconds are printed, because other work on
a busy machine affects the former.

A second table says by how much gradients in float32, and with `objective.bf16_scores`, differ from those in
float64, relative to the norm of these: softmax and sigmoid, at the initial and at the lowest temperature.

Prints the tables and, as the last line, one JSON object for the batch of `--batch`: ratios of memory and time
of ours to open_clip's, the relative difference of the gradients (norm of the difference to norm, the largest
of images, captions and temperature), and the largest of the second table. The first table also has a small
batch, ours at a large batch, and the difference of gradients in float64. Reads /proc, so it needs Linux.

    python benchmarks/loss.py [--batch 16384] [--small 2048] [--large 65536] [--width 512] [--rounds 3]
                              [--rounding-only]
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import open_clip.loss
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core.batch import Embeddings
from mmalign.training.exchange import Exchange
from mmalign.training.loss import LOSSES, LossName, contrastive_loss, gather

METHODS = ("mmalign", "open_clip")
FLOAT64_BATCH = 256
WARM_UP_BATCH = 64
ROUNDING_BATCH = 4096

Gradients = tuple[Tensor, ...]
Figures = dict[str, float]


def embeddings(batch: int, width: int, dtype: torch.dtype = torch.float32) -> Embeddings:
    """Embeddings of images and slightly similar captions, created in place to leave no other memory."""
    generator = torch.Generator().manual_seed(0)
    image_BD, text_BD = (
        torch.empty(batch, width, dtype=dtype).normal_(generator=generator) for _ in range(2)
    )
    text_BD.add_(image_BD, alpha=0.3)
    for rows in (image_BD, text_BD):
        F.normalize(rows, dim=-1, out=rows)
        rows.requires_grad_()
    scale = torch.tensor([1 / 0.07], dtype=dtype, requires_grad=True)
    return Embeddings(image_BD, text_BD, scale)


def gradients(method: str, given: Embeddings) -> Gradients:
    """Gradients of images, captions and scale after one forward and backward pass."""
    leaves = given.image_BD, given.text_ND, given.logit_scale
    if method == "mmalign":
        ids = torch.arange(len(given.image_BD))
        contrastive_loss(given, gather(given, Exchange()(ids, ids))).backward()
    else:
        open_clip.loss.ClipLoss()(*leaves).backward()
    return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


def resident_mib(key: str) -> float:
    """VmRSS: resident memory now. VmHWM: its peak in this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found, f"no {key} in /proc/self/status"
    return int(found[1]) / 1024


def measure(method: str, batch: int, width: int, keep: Path | None) -> Figures:
    """Memory and time of one forward and backward pass; the gradients are saved at `keep`."""
    gradients(method, embeddings(WARM_UP_BATCH, width))
    given = embeddings(batch, width)
    before = resident_mib("VmRSS")
    clock, processor = time.perf_counter(), time.process_time()
    found = gradients(method, given)
    figures = {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "mib": resident_mib("VmHWM") - before,
    }
    if keep is not None:
        torch.save(found, keep)
    return figures


def in_fresh_process(method: str, batch: int, width: int, keep: Path | None = None) -> Figures:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(measure, method, batch, width, keep).result()


def compare(batch: int, width: int, rounds: int, folder: Path) -> Figures:
    """Ratios of ours to open_clip's, and the gradients of each method; writes one line per method."""
    found: dict[str, list[Figures]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            found[method].append(in_fresh_process(method, batch, width, folder / f"{method}.pt"))
    for method in METHODS:
        keys = found[method][0]
        write_row(
            method, batch, {key: statistics.median(f[key] for f in found[method]) for key in keys}
        )
    ratios = {
        key: statistics.median(
            ours[key] / theirs[key]
            for ours, theirs in zip(found["mmalign"], found["open_clip"], strict=True)
        )
        for key in found["mmalign"][0]
    }
    write_row("ratio", batch, ratios)
    return ratios


def write_row(name: str, batch: int, figures: Figures) -> None:
    digits = 3 if name == "ratio" else 2
    sys.stdout.write(f"{name:<12}{batch:>8,}")
    for key in ("seconds", "processor_seconds", "mib"):
        sys.stdout.write(f"{figures[key]:>20,.{digits}f}")
    sys.stdout.write("\n")
    sys.stdout.flush()


def gradient_error(ours: Gradients, theirs: Gradients) -> float:
    """The largest of the relative differences."""
    return max(
        float((a - b).double().norm() / b.double().norm())
        for a, b in zip(ours, theirs, strict=True)
    )


def gradients_in(
    dtype: torch.dtype, name: LossName, exact: Embeddings, temperature: float, **options: bool
) -> Gradients:
    """Gradients of images, captions and scale of a loss of ours, computed in `dtype`."""
    numbers = (torch.tensor([one], dtype=dtype) for one in (1 / temperature, -10.0))
    rows = (one.detach().to(dtype) for one in (exact.image_BD, exact.text_ND))
    given = Embeddings(*(one.requires_grad_() for one in (*rows, *numbers)))
    ids = torch.arange(len(given.image_BD))
    LOSSES[name](given, gather(given, Exchange()(ids, ids)), **options).backward()
    leaves = given.image_BD, given.text_ND, given.logit_scale
    return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


def rounding_errors(batch: int, width: int) -> Figures:
    """The largest relative errors against float64, of float32 and with rounded scores; writes the table."""
    exact = embeddings(batch, width, torch.float64)
    largest: Figures = {}
    sys.stdout.write(f"{'gradients against float64':<34}{'float32':>12}{'bf16_scores':>14}\n")
    for name in LOSSES:
        for temperature in (0.07, 0.01):
            given = (name, exact, temperature)
            truth = gradients_in(torch.float64, *given)
            rough = gradients_in(torch.float32, *given)
            rounded = gradients_in(torch.float32, *given, bf16_scores=True)
            errors = {
                "float32": gradient_error(rough, truth),
                "bf16_scores": gradient_error(rounded, truth),
            }
            largest = {key: max(largest.get(key, 0.0), error) for key, error in errors.items()}
            label = f"{name}, temperature {temperature}"
            sys.stdout.write(
                f"{label:<34}{errors['float32']:>12.1e}{errors['bf16_scores']:>14.1e}\n"
            )
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16_384, help="batch of the last line")
    parser.add_argument("--small", type=int, default=2_048, help="0: leave out")
    parser.add_argument(
        "--large", type=int, default=65_536, help="ours only, one round; 0: leave out"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounding-only", action="store_true", help="the second table alone")
    options = parser.parse_args()
    if options.rounding_only:
        sys.stdout.write(json.dumps(rounding_errors(ROUNDING_BATCH, options.width)) + "\n")
        return
    sys.stdout.write(
        f"{'method':<12}{'batch':>8}{'seconds':>20}{'of the processor':>20}{'MiB of memory':>20}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.small:
            compare(options.small, options.width, options.rounds, folder)
        ratios = compare(options.batch, options.width, options.rounds, folder)
        error = gradient_error(*(torch.load(folder / f"{method}.pt") for method in METHODS))
    if options.large:
        write_row(
            "mmalign", options.large, in_fresh_process("mmalign", options.large, options.width)
        )
    exact = [
        gradients(method, embeddings(FLOAT64_BATCH, options.width, torch.float64))
        for method in METHODS
    ]
    sys.stdout.write(f"gradients at batch {options.batch:,} in float32 differ by {error:.1e}, ")
    sys.stdout.write(f"at {FLOAT64_BATCH} in float64 by {gradient_error(*exact):.1e}\n")
    rounding = rounding_errors(ROUNDING_BATCH, options.width)
    figures = {
        "memory_ratio": ratios["mib"],
        "time_ratio": ratios["seconds"],
        "gradient_error": error,
        "bf16_scores_error": rounding["bf16_scores"],
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
