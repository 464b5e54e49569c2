"""Training a text tower with a frozen image tower: from pixels, and from cached image features.

    drawn images, or --data -> run file -> mmalign embed                             -> features
                                          -> mmalign train data.image_features=false -+
                                          -> mmalign train data.image_features=true  -+-> speeds, losses

Both runs take the same samples in the same order, with the same dropout masks, so that their losses can be
compared step by step. Speeds are medians over the steps after the first ones. The ratio is taken within a
round, and the median over the rounds is reported. Its upper limit depends on the towers: 1 + (decoding and
image tower, forward) / (text tower, forward and backward). Weights are random, which does not change the
speed; nothing is downloaded. In bf16 the run from pixels rounds its features to bfloat16, coarser than the
cached ones.

Prints a table and, as the last line, one JSON object. A run of less than a minute:
--tower vit_tiny_patch16_224 --text-layers 4 --text-width 192 --samples 64 --batch 16 --steps 9 --rounds 1

    python benchmarks/cached_tower.py [--tower NAME] [--data FOLDER] [--rounds 3]
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import write_yaml
from mmalign.core.record import read_records
from mmalign.data.shards.pack import write_pairs, write_split

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "grey", "pink")
THINGS = ("dog", "cat", "house", "tree", "river", "boat", "child", "road")


@dataclass(frozen=True)
class Trained:
    """One run: its pairs per second, and its loss after each step."""

    speed: float
    losses: list[float]


def draw_set(folder: Path, count: int, side: int) -> Path:
    """A data set of JPEGs of `side` pixels, in colours that their captions name."""
    pairs = drawn_pairs(count, side)
    parts = iter(lambda: list(islice(pairs, 256)), [])
    reports = [write_pairs(folder / f"{i:05d}.tar", part) for i, part in enumerate(parts)]
    facts = {"name": "drawn", "split": "train", "recipe": {}, "recipe_sha256": "0" * 64}
    write_split(folder, facts, reports)
    return folder


def drawn_pairs(count: int, side: int) -> Iterator[Pair]:
    rng = np.random.default_rng(0)
    for number in range(count):
        one, other, thing = rng.integers(len(COLOURS), size=3).tolist()
        coarse_HWC = rng.integers(0, 256, (6, 6, 3), np.uint8)
        coarse_HWC[:3, :, one % 3] //= 1 + one
        coarse_HWC[3:, :, other % 3] //= 1 + other
        encoded = io.BytesIO()
        picture = Image.fromarray(coarse_HWC).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(encoded, "JPEG", quality=90)
        text = f"a {COLOURS[one]} {THINGS[thing]} over something {COLOURS[other]}, number {number}"
        yield Pair(
            key=f"{number:06d}",
            image=encoded.getvalue(),
            captions=(Caption("en", text),),
            picture=str(number),
            split="train",
            source="drawn",
            license="CC0-1.0",
        )


def run_tree(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The run file of both runs."""
    width = options.text_width
    return {
        "name": "cached_tower",
        "steps": options.steps,
        "batch_size": options.batch,
        "data": {"train": [str(data)], "workers": options.workers},
        "tokenizer": {"kind": "trained", "vocabulary": 512},
        "model": {
            "embedding": 256,
            "image": {
                "kind": "timm",
                "name": options.tower,
                "image_size": options.image_size,
                "frozen": True,
            },
            "text": {
                "architecture": {
                    "model_type": "bert",
                    "hidden_size": width,
                    "num_hidden_layers": options.text_layers,
                    "num_attention_heads": max(1, width // 64),
                    "intermediate_size": 4 * width,
                    "max_position_embeddings": 128,
                },
                "max_length": 64,
            },
        },
        "optimizer": {"lr": options.lr, "warmup_steps": min(10, options.steps - 1)},
        "engine": {"precision": options.precision},
        "log": {"every": 1},
        "checkpoint": {"every": options.steps},
    }


def mmalign(threads: int, *arguments: str) -> float:
    """Run a command in its own process; returns its seconds."""
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "mmalign", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def train(options: argparse.Namespace, run: Path, out: Path, features: bool) -> Trained:
    flag = f"data.image_features={str(features).lower()}"
    mmalign(options.threads, "train", str(run), "--out", str(out), flag)
    records = [record for record in read_records(out / "metrics.jsonl") if "loss" in record]
    shutil.rmtree(out)
    timed = [r["images_per_second"] for r in records if r["step"] > options.skip]
    return Trained(statistics.median(timed), [record["loss"] for record in records])


def measure(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """The ratio of speeds and the largest difference of two losses of one step; prints the table."""
    write = sys.stdout.write
    data = options.data or draw_set(folder / "data", options.samples, options.side)
    run = folder / "run.yaml"
    run.write_text(write_yaml(run_tree(options, data)), encoding="utf-8")
    seconds = mmalign(options.threads, "embed", str(run))
    write(
        f"{options.tower} at {options.image_size}, text {options.text_layers} x {options.text_width}, batch "
        f"{options.batch}, {options.precision}, {options.threads} threads, {options.workers} workers; embed "
        f"once: {seconds:.0f} s, including the start of the process\n\npairs per second\n"
        f"{'round':<8}{'pixels':>10}{'features':>12}{'ratio':>8}{'losses differ by':>18}\n"
    )
    ratios, differences = [], []
    for number in range(options.rounds):
        pixels = train(options, run, folder / "pixels", features=False)
        features = train(options, run, folder / "features", features=True)
        ratios.append(features.speed / pixels.speed)
        pairs = zip(pixels.losses, features.losses, strict=True)
        differences.append(max(abs(one - other) for one, other in pairs))
        write(
            f"{number:<8}{pixels.speed:>10.1f}{features.speed:>12.1f}{ratios[-1]:>8.2f}"
            f"{differences[-1]:>18.1e}\n"
        )
    write(f"losses from pixels: {pixels.losses[0]:.3f} to {pixels.losses[-1]:.3f}\n")
    return statistics.median(ratios), max(differences)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", default="vit_base_patch16_224", help="a timm model")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--text-layers", type=int, default=12)
    parser.add_argument("--text-width", type=int, default=384)
    parser.add_argument(
        "--data", type=Path, help="a data set; the features are written to its folder"
    )
    parser.add_argument("--samples", type=int, default=512, help="number of drawn images")
    parser.add_argument("--side", type=int, default=640, help="side of a drawn image in pixels")
    parser.add_argument("--lr", type=float, default=5e-4, help="as train/lit_multilingual.yaml")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.steps <= options.skip:
        parser.error("--steps must be more than --skip")
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="cached-tower-") as folder:
        ratio, difference = measure(options, Path(folder))
    figures = {"pairs_per_second_ratio": ratio, "loss_difference": difference}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
