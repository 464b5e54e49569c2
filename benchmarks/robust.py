"""Cost of robust methods: the time of the gradients of a batch, relative to plain fine-tuning.

    one batch -> plain, then each method, round after round -> ratios to plain -> medians

All layers of a BERT with random weights are fine-tuned, with dropout. Only forward and backward are timed,
because clipping and the optimizer's step cost the same for all methods. Ratios are taken within a round, so
that a busy machine slows both. Prints a table and, as the last line, one JSON object with the ratios.

    python benchmarks/robust.py [--rounds 9] [--layers 4] [--width 256] [--batch 32] [--length 64]
"""

import argparse
import json
import statistics
import sys
import time

import torch

from mmalign.data.tokenizer import train_tokenizer
from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.text.heads.base import TaskBatch
from mmalign.text.heads.features import ClassificationModel
from mmalign.text.robust.consistency import ConsistencyConfig, NoiseView
from mmalign.text.robust.freelb import FreeLbConfig
from mmalign.text.robust.method import MethodConfig, PlainConfig
from mmalign.text.robust.pgd import PgdConfig
from mmalign.text.robust.rs_rp import RsRpConfig
from mmalign.text.tasks.task import Example

LABELS = ("no", "perhaps", "yes")
METHODS: dict[str, MethodConfig] = {
    "plain": PlainConfig(kind="plain"),
    "rs_rp": RsRpConfig(kind="rs_rp", epsilon=0.1, draws=3),
    "pgd_3": PgdConfig(kind="pgd", radius=0.1, step_size=0.05, steps=3),
    "freelb_3": FreeLbConfig(kind="freelb", radius=0.5, step_size=0.2, steps=3),
    "consistency": ConsistencyConfig(
        kind="consistency", view=NoiseView(kind="uniform", layer="embedding", epsilon=0.1)
    ),
}
BARS = {"rs_rp": 1.3, "pgd_3": 4.4, "freelb_3": 3.3}
"""Upper limits of the ratio: K + 1 plain steps for PGD, K for FreeLB, each plus 10 %."""


def build_model(layers: int, width: int) -> ClassificationModel:
    """A text classifier on a BERT with random weights, in training mode."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red ball and a dog sleep on a green chair 0123456789"], 60)
    config = BertConfig(
        vocab_size=tokenizer.vocabulary,
        pad_token_id=tokenizer.padding_id,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    tower = TextEncoder(BertModel(config, add_pooling_layer=False), tokenizer)
    model = ClassificationModel(tower, LABELS, None)
    torch.nn.init.normal_(model.head.output.weight)
    return model.train()


def build_batch(model: ClassificationModel, size: int, length: int) -> TaskBatch:
    """Random tokens: one sequence of the full length per example."""
    vocabulary = model.tower.trunk.config.vocab_size
    token_NL = torch.randint(vocabulary, (size, length), device=model.tower.device)
    target = torch.randint(len(LABELS), (size,), device=model.tower.device)
    examples = [Example(str(i), "en", ("",), LABELS[int(target[i])]) for i in range(size)]
    tokens = Tokens(token_NL, torch.ones_like(token_NL), None, None)
    return TaskBatch(examples, tokens, torch.arange(size, device=model.tower.device), target)


def seconds(model: ClassificationModel, batch: TaskBatch, config: MethodConfig) -> float:
    """Seconds for the gradients of one batch."""
    generator = torch.Generator(model.tower.device).manual_seed(0)
    model.zero_grad()
    started = time.perf_counter()
    config.backward(model, batch, generator)
    if model.tower.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(rounds: int, model: ClassificationModel, batch: TaskBatch) -> dict[str, list[float]]:
    """Seconds by method, one value per round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(rounds + 1):
        for name, config in METHODS.items():
            taken = seconds(model, batch, config)
            if number > 0:
                times[name].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description="cost of robust methods relative to plain training"
    )
    sizes = {"rounds": 9, "layers": 4, "width": 256, "batch": 32, "length": 64}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = build_model(options.layers, options.width)
    batch = build_batch(model, options.batch, options.length)
    times = measure(options.rounds, model, batch)
    ratios = {
        name: statistics.median(a / b for a, b in zip(taken, times["plain"], strict=True))
        for name, taken in times.items()
    }
    write = sys.stdout.write
    write(f"{'method':<14}{'ms/batch':>12}{'to plain':>10}{'limit':>8}\n")
    for name, ratio in ratios.items():
        milliseconds = 1000 * statistics.median(times[name])
        write(f"{name:<14}{milliseconds:>12.0f}{ratio:>10.2f}{BARS.get(name, ''):>8}\n")
    write(json.dumps({name: round(ratios[name], 3) for name in BARS}) + "\n")


if __name__ == "__main__":
    main()
