"""Cost of padding in a text tower: forward and backward passes over captions of mixed length.

    captions (lengths drawn) -> text tower, one way after another -> seconds, tokens computed, gradients

A transformer with random weights in the shapes of multilingual-e5-small (12 layers, width 384, 12 heads;
fewer rows of the embedding). Lengths are log-normal, with the median and the longest of the options.

    padded        one pass, as long as the longest caption
    equal counts  buckets of equally many captions, as up to version 0.1.0
    buckets       what training does: as many buckets, of the fewest tokens (`mmalign.models.length_buckets`)

The ways take turns. Figures are medians over the rounds, ratios are medians over the ratios within a round,
of processor seconds, because other work on a machine affects the wall clock. Without dropout.

Prints a table and, as the last line, one JSON object: times and tokens of buckets relative to the other ways,
tokens per caption token, and the largest difference of features and gradients to `padded`, relative to their
norm.

    python benchmarks/text_lengths.py [--captions 128] [--median 14] [--longest 64] [--rounds 5] [--counts N]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from mmalign.models import text_tower
from mmalign.models.length_buckets import BUCKETS, by_length
from mmalign.models.text_tower import TextTower, TextTowerConfig, build_text_tower

VOCABULARY = 8_000
SHAPE = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
Bucketing = Callable[[Sequence[int]], tuple[list[list[int]], list[int]]]


def draw_lengths(captions: int, median: float, longest: int) -> list[int]:
    """Tokens of each caption, with a beginning and an end."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), 0.6, captions)
    return np.clip(drawn.round().astype(int), 3, longest).tolist()


def equal_counts(length_N: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    """As `by_length`: buckets of equally many rows."""
    order = np.argsort(length_N, kind="stable")
    position_N = np.empty_like(order)
    position_N[order] = np.arange(len(order))
    return [part.tolist() for part in np.array_split(order, count)], position_N.tolist()


def take(
    tower: TextTower, length_N: list[int], way: Bucketing | None
) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and backward pass; the features and all gradients."""
    generator = torch.Generator().manual_seed(0)
    token_NL = torch.randint(1, VOCABULARY, (len(length_N), max(length_N)), generator=generator)
    mask_NL = (torch.arange(max(length_N)) < torch.tensor(length_N)[:, None]).long()
    weight_NF = torch.randn(len(length_N), tower.width, generator=generator)
    tower.zero_grad()
    begun = time.process_time()
    with patch.object(text_tower, "by_length", way or by_length):
        feature_NF = tower(token_NL * mask_NL, mask_NL, length_N if way else ())
    (feature_NF * weight_NF).sum().backward()
    seconds = time.process_time() - begun
    gradients = [p.grad.clone() for p in tower.parameters() if p.grad is not None]
    return seconds, [feature_NF.detach(), *gradients]


def tokens_of(length_N: list[int], way: Bucketing | None) -> int:
    rows = way(length_N)[0] if way else [list(range(len(length_N)))]
    return sum(len(bucket) * max(length_N[n] for n in bucket) for bucket in rows)


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest, relative to the norm of the largest tensor that is compared."""
    norm = max(float(one.norm()) for one in theirs)
    return max(float((a - b).norm()) for a, b in zip(ours, theirs, strict=True)) / norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--median", type=float, default=14)
    parser.add_argument("--longest", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--counts", type=int, nargs="*", default=[], help="other numbers of buckets"
    )
    options = parser.parse_args()
    config = TextTowerConfig(architecture=SHAPE, max_length=options.longest)
    torch.manual_seed(0)
    tower = build_text_tower(config, VOCABULARY, 0).train()
    length_N = draw_lengths(options.captions, options.median, options.longest)
    ways: dict[str, Bucketing | None] = {
        "padded": None,
        "equal counts, 3": partial(equal_counts, count=3),
        **{f"buckets, {n}": partial(by_length, count=n) for n in {*options.counts, BUCKETS}},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[Tensor]] = {}
    take(tower, length_N, None)  # warms up
    for _ in range(options.rounds):
        for name, way in ways.items():
            spent, found[name] = take(tower, length_N, way)
            seconds[name].append(spent)
    ours = f"buckets, {BUCKETS}"
    write_table(length_N, ways, seconds, ours)

    def ratio(other: str) -> float:
        pairs = zip(seconds[ours], seconds[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    tokens = {name: tokens_of(length_N, way) for name, way in ways.items()}
    figures: dict[str, Any] = {
        "time_to_padded": ratio("padded"),
        "time_to_equal_counts": ratio("equal counts, 3"),
        "tokens_to_padded": round(tokens[ours] / tokens["padded"], 3),
        "tokens_to_captions": round(tokens[ours] / sum(length_N), 3),
        "difference": difference(found[ours], found["padded"]),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def write_table(
    length_N: list[int],
    ways: dict[str, Bucketing | None],
    seconds: dict[str, list[float]],
    ours: str,
) -> None:
    sys.stdout.write(
        f"{len(length_N)} captions of {sum(length_N):,} tokens, longest {max(length_N)}\n"
    )
    sys.stdout.write(f"{'way':<18}{'tokens computed':>18}{'seconds':>12}{'ours to it':>14}\n")
    for name, way in ways.items():
        pairs = zip(seconds[ours], seconds[name], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        median = statistics.median(seconds[name])
        sys.stdout.write(
            f"{name:<18}{tokens_of(length_N, way):>18,}{median:>12.2f}{ratio:>14.2f}\n"
        )


if __name__ == "__main__":
    main()
