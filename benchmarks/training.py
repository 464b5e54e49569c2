"""Training with mmalign and with open_clip's trainer: speed on the same shards, recall@1 after equal time.

    run file -> mmalign train            -> metrics.jsonl -+
             -> open_clip's trainer      -> out.log        +-> pairs per second; in turn, round after round
    the fastest setting of each, as many steps as fit in M minutes -> checkpoint -> suite -> mean recall@1

All trainers get the same towers, tokenizer, images, batch, optimizer, schedule, workers and threads; a
setting is a precision, the memory format of images, and with `--compiled` torch.compile. open_clip's trainer
pads every caption to one length, here that of the longest caption of the set (`--context` sets another; its
default is 77). That of a checkout of its main branch (`--open-clip-main`) pads to the longest of a batch.
Recall is measured by mmalign's suite on the weights of all, and open_clip's best of several learning rates
counts.
Speeds are medians, and ratios are taken within a round, so that a busy machine slows both.

Prints tables and, as the last line, one JSON object; `throughput_ratio` is the lowest at equal precision and
memory format. A short run: --precisions bf16 --rounds 1 --steps 21 --minutes 0.2 --learning-rates 2e-3

    python benchmarks/training.py [--minutes 3] [--rounds 3] [--open-clip-python PATH] [--open-clip-main PATH]

Without PATH, `.venv-open-clip` is created next to this file once, with pip, because open_clip's trainer needs
other packages than mmalign.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip_peer as open_clip
import torch

from mmalign.core import distributed
from mmalign.core.config import load_config
from mmalign.core.errors import UserError
from mmalign.core.record import read_records
from mmalign.evaluation.suite import SuiteConfig, measure
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.models.image_tower import build_image_tower
from mmalign.training.run_config import RunConfig

PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16"}  # our name -> that of open_clip's trainer


@dataclass(frozen=True)
class Setting:
    """A trainer, its precision (our name), and whether images are channels last, as ours always are."""

    trainer: str
    precision: str
    channels_last: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        return f"{self.trainer}, {self.precision}, {layout}" + ", compiled" * self.compiled


Speeds = dict[Setting, list[float]]
"""One value per round."""


@dataclass(frozen=True)
class Contest:
    """The trainers on one run.

    Attributes:
        run: the run file.
        peers: open_clip's trainers by their names.
        folder: where runs are written.
        threads: of each trainer's main process.
    """

    run: Path
    folder: Path
    config: RunConfig
    peers: dict[str, open_clip.Peer]
    threads: int

    def train(self, setting: Setting, name: str, steps: int, lr: float) -> Path:
        """Train from scratch with a cosine over `steps` steps; returns the output folder."""
        say(f"{name}: {setting}, {steps} steps, lr {lr:g}")
        out = self.folder / name
        if setting.trainer == "mmalign":
            open_clip.run(
                [sys.executable, "-m", "mmalign", *self._ours(setting, out, steps, lr)],
                self.threads,
            )
            return out
        return open_clip.train(
            self.peers[setting.trainer],
            out,
            steps,
            self.threads,
            PRECISIONS[setting.precision],
            setting.channels_last,
            lr,
            setting.compiled,
        )

    def speed(self, setting: Setting, name: str, steps: int, skip: int) -> float:
        """Pairs per second: the median over the intervals after the first `skip` steps."""
        out = self.train(setting, name, steps, self.config.optimizer.lr)
        if setting.trainer != "mmalign":
            return statistics.median(open_clip.speeds(out, self.config.batch_size, skip))
        every = open_clip.LOG_EVERY
        return statistics.median(
            record["images_per_second"]
            for record in read_records(out / "metrics.jsonl")
            if "images_per_second" in record and record["step"] - every >= skip
        )

    def _ours(self, setting: Setting, out: Path, steps: int, lr: float) -> list[str]:
        tokenizer = self.peers["open_clip"].folder / "tokenizer"
        return [
            *("train", str(self.run), "--out", str(out)),
            f"steps={steps}",
            f"optimizer.lr={lr}",
            f"engine.precision={setting.precision}",
            f"engine.compile={str(setting.compiled).lower()}",
            f"tokenizer={{kind: pretrained, name: '{tokenizer}'}}",
            f"log.every={open_clip.LOG_EVERY}",
            f"checkpoint.every={steps}",
        ]


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def measure_speeds(
    contest: Contest, settings: Sequence[Setting], rounds: int, steps: int, skip: int
) -> tuple[Speeds, Speeds]:
    """Pairs per second of each setting, and the image tower's share of a step; one value per round.

    In a round each setting runs once.
    """
    speeds: Speeds = {setting: [] for setting in settings}
    shares: Speeds = {setting: [] for setting in settings}
    for number in range(rounds):
        for place, setting in enumerate(settings):
            speed = contest.speed(setting, f"speed-{number}-{place}", steps, skip)
            step_seconds = contest.config.batch_size / speed
            speeds[setting].append(speed)
            shares[setting].append(image_tower_seconds(contest, setting) / step_seconds)
    return speeds, shares


def image_tower_seconds(contest: Contest, setting: Setting) -> float:
    """Forward and backward of the image tower alone on one batch, a cost that both trainers have."""
    torch.set_num_threads(contest.threads)
    device = distributed.device()
    tower = build_image_tower(contest.config.model.image).to(device).train()
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    shape = (contest.config.batch_size, 3, tower.size, tower.size)
    image_BCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
    taken = []
    for _ in range(6):
        tower.zero_grad()
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            feature_BF = tower(image_BCHW)
        feature_BF.backward(torch.ones_like(feature_BF))
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def compare_speeds(contest: Contest, speeds: Speeds, shares: Speeds) -> float:
    """Print the table and the ratios; returns the lowest ratio at equal precision and memory format."""
    write = sys.stdout.write
    write(f"\n{'setting':<40}{'pairs/s':>9}{'ms/step':>11}{'image tower':>13}\n")
    for setting, values in speeds.items():
        speed, share = statistics.median(values), statistics.median(shares[setting])
        milliseconds = 1000 * contest.config.batch_size / speed
        write(f"{setting!s:<40}{speed:>9.0f}{milliseconds:>11.0f}{share:>13.0%}\n")
    ratios = equal_ratios(speeds)
    for precision, ratio in ratios.items():
        write(f"{precision}, both channels last: {ratio:.2f} times open_clip's speed\n")
    ours, our_speed = fastest(speeds, "mmalign")
    for trainer in dict.fromkeys(setting.trainer for setting in speeds):
        if trainer != "mmalign":
            theirs, their_speed = fastest(speeds, trainer)
            write(f"each at its fastest ({ours}; {theirs}): {our_speed / their_speed:.2f} times\n")
    return min(ratios.values())


def equal_ratios(speeds: Speeds) -> dict[str, float]:
    """By precision: our speed to open_clip's at the same memory format, the median over the rounds."""
    return {
        ours.precision: statistics.median(
            a / b for a, b in zip(values, speeds[Setting("open_clip", ours.precision)], strict=True)
        )
        for ours, values in speeds.items()
        if ours.trainer == "mmalign" and not ours.compiled
    }


def fastest(speeds: Speeds, trainer: str) -> tuple[Setting, float]:
    """The trainer's fastest setting and its pairs per second."""
    medians = {s: statistics.median(v) for s, v in speeds.items() if s.trainer == trainer}
    best = max(medians, key=medians.__getitem__)
    return best, medians[best]


def mean_recall(suite: SuiteConfig, encoder: Encoder) -> float:
    """recall@1 over the languages of the suite's first set, the mean of both directions."""
    metrics = measure(suite, encoder).metrics
    prefix = f"retrieval/{suite.sets[0].name}/mean"
    return statistics.mean(
        metrics[f"{prefix}/{direction}/recall@1"]
        for direction in ("text_to_image", "image_to_text")
    )


def recalls(
    contest: Contest,
    suite: SuiteConfig,
    speeds: Speeds,
    minutes: float,
    rates: Sequence[float],
) -> dict[str, float]:
    """By trainer the best mean recall@1, each trained for `minutes` at its fastest setting."""
    found: dict[str, list[float]] = {setting.trainer: [] for setting in speeds}
    sys.stdout.write(f"\n{'after equal minutes':<40}{'steps':>7}{'lr':>9}{'recall@1':>10}\n")
    for trainer, values in found.items():
        setting, speed = fastest(speeds, trainer)
        steps = max(2, round(60 * minutes * speed / contest.config.batch_size))
        for lr in (contest.config.optimizer.lr,) if trainer == "mmalign" else rates:
            out = contest.train(setting, f"recall-{trainer}-{lr:g}", steps, lr)
            ours = trainer == "mmalign"
            encoder = (
                load_encoder(out) if ours else open_clip.load_encoder(contest.peers[trainer], out)
            )
            values.append(mean_recall(suite, encoder))
            sys.stdout.write(f"{setting!s:<40}{steps:>7}{lr:>9.0e}{values[-1]:>10.3f}\n")
    return {trainer: max(values) for trainer, values in found.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("train/emoji_scenes.yaml"))
    parser.add_argument("--suite", type=Path, default=Path("eval/emoji_scenes.yaml"))
    parser.add_argument("--open-clip-python", type=Path, help="interpreter of its environment")
    parser.add_argument("--open-clip-main", type=Path, help="checkout of its main branch")
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=61, help="steps of a timed run")
    parser.add_argument("--skip", type=int, default=10, help="first steps that are not timed")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time before recall; 0: no recall"
    )
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument(
        "--context", type=int, help="length to which open_clip pads captions, in tokens"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    options = parse()
    config = load_config(RunConfig, options.run)
    suite = load_config(SuiteConfig, options.suite)
    layouts = [("mmalign", True), ("open_clip", True), ("open_clip", False)]
    if options.open_clip_main is not None:
        layouts.append(("open_clip checkout", True))
    settings = [
        Setting(trainer, precision, channels_last, compiled)
        for precision in options.precisions
        for compiled in ((False, True) if options.compiled else (False,))
        for trainer, channels_last in layouts
    ]
    with tempfile.TemporaryDirectory(prefix="training-") as name:
        folder = Path(name)
        peer = open_clip.describe(config, folder, options.open_clip_python, options.context)
        peers = {peer.name: peer}
        if options.open_clip_main is None:
            sys.stdout.write("open_clip's main branch: not measured, no --open-clip-main PATH\n")
        else:
            checkout = open_clip.of_checkout(peer, options.open_clip_main)
            peers[checkout.name] = checkout
        contest = Contest(options.run, folder, config, peers, options.threads)
        sys.stdout.write(
            f"batch {config.batch_size}, {options.threads} threads, {config.data.workers} workers; "
            f"open_clip pads captions to {peer.context} tokens\n"
        )
        rounds = (options.rounds, options.steps, options.skip)
        speeds, shares = measure_speeds(contest, settings, *rounds)
        ratio = compare_speeds(contest, speeds, shares)
        found: dict[str, float] = {}
        if options.minutes > 0:
            found = recalls(contest, suite, speeds, options.minutes, options.learning_rates)
    names = {trainer: f"recall_{trainer.replace(' ', '_')}" for trainer in found}
    figures = {"throughput_ratio": ratio, **{names[key]: value for key, value in found.items()}}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
