"""Training on one GPU, in ten minutes and without a network: is it right, is it fast, does it learn?

    parity   loss and gradients of one step against float32 on the CPU: each loss, plain, cached, compiled
    speed    towers of base size on random data through the engine -> images, tokens, MFU, memory
    run      emoji scenes -> `mmalign train`, `mmalign eval` -> time waiting for data, recall@1

Prints one JSON object as the last line. Exit code 1 if a parity exceeds its tolerance, or if a run of the
usual length does not learn. `--device cpu --short` runs everything small, which tests the script itself.

    python benchmarks/gpu.py [--device cuda] [--short]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Batch, StreamState
from mmalign.core.config import validate
from mmalign.core.record import read_records
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.execution import compile_towers
from mmalign.training.cached import cached_backward, split
from mmalign.training.engine import Engine, EngineConfig
from mmalign.training.exchange import Exchange
from mmalign.training.meter import read_metrics
from mmalign.training.objective import ContrastiveConfig, exchange_ids, outcome_of
from mmalign.training.optimizer import OptimizerConfig
from mmalign.training.throughput import device_peak

ROOT = Path(__file__).resolve().parents[1]
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, smoothing, weights": {"label_smoothing": 0.1, "language_weights": {"sw": 2.0}},
    "softmax, text-text, prefixes": {"text_text": 0.5, "dims": [32]},
    "sigmoid": {"loss": "sigmoid"},
    "softmax, bf16 scores": {"bf16_scores": True},
    "sigmoid, bf16 scores": {"loss": "sigmoid", "bf16_scores": True},
}
# Relative norm of the difference of all gradients; a step in bfloat16 has 8 bits.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}


def model_of(size: str, vocabulary: int, logit_bias: float | None = None) -> DualEncoder:
    """ViT and BERT of size `small` or `base`, the same at each call."""
    small = size == "small"
    width, layers = (64, 2) if small else (768, 12)
    text = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": width // 32 if small else 12, "intermediate_size": 4 * width}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    image = {"kind": "timm", "name": "vit_base_patch32_224", "image_size": 64 if small else 224}
    if small:
        image["options"] = {"depth": layers, "embed_dim": width, "num_heads": 2, "patch_size": 16}
    tree = {"image": image, "text": {"architecture": text}, "embedding": 64 if small else 512}
    config = validate(ModelConfig, {**tree, "logit_bias": logit_bias}, "benchmarks/gpu.py")
    torch.manual_seed(0)
    return build_dual_encoder(config, vocabulary, 0)


def batch_of(images: int, side: int, length: int, vocabulary: int) -> Batch:
    """Images of one colour and noise, one or two captions each, of which some are short."""
    draw = torch.Generator().manual_seed(1)
    colour_BC11 = torch.randint(0, 200, (images, 3, 1, 1), generator=draw)
    noise_BCHW = torch.randint(0, 56, (images, 3, side, side), generator=draw)
    counts_B = torch.randint(1, 3, (images,), generator=draw)
    captions = int(counts_B.sum())
    length_N = torch.randint(4, length + 1, (captions,), generator=draw)
    mask_NL = (torch.arange(length) < length_N[:, None]).long()
    token_NL = torch.randint(5, vocabulary, (captions, length), generator=draw) * mask_NL
    return Batch(
        image_BCHW=(colour_BC11 + noise_BCHW).to(torch.uint8),
        token_NL=token_NL,
        mask_NL=mask_NL,
        language_N=tuple("sw" if n % 3 else "de" for n in range(captions)),
        image_index_N=torch.repeat_interleave(torch.arange(images), counts_B),
        picture_id_B=torch.arange(images) // 2 * 2,  # every second image shows the one before
        key_B=tuple(map(str, range(images))),
        state=StreamState(0, images),
        length_N=tuple(length_N.tolist()),
    )


def gradients(
    config: ContrastiveConfig, batch: Batch, device: torch.device, precision: str, how: str
) -> Tensor:
    """The loss and all gradients of one step, as one vector on the host."""
    bias = -10.0 if config.loss == "sigmoid" else None
    model = model_of("small", 500, bias).to(device).train()
    if how == "compiled":
        compile_towers(model)
    ids, moved = exchange_ids(Exchange(), config, batch), batch.to(device)

    def forward(*inputs: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(*inputs)

    if how == "cached":

        def backward(surrogate: Tensor, _: bool) -> None:
            surrogate.backward()

        found = cached_backward(
            config, forward, backward, lambda number: None, moved, ids, split(moved, 5)
        )
    else:
        found = outcome_of(config, forward, moved, ids)
        found.local_loss.backward()
    of_all = [p.grad for p in model.parameters() if p.grad is not None]
    loss = found.parts["loss"].reshape(1)
    return torch.cat([loss, *(gradient.flatten() for gradient in of_all)]).double().cpu()


def parity(device: torch.device, short: bool) -> dict[str, float]:
    """Case -> relative difference of loss and gradients to those of the CPU in float32."""
    batch, found = batch_of(16, 64, 24, 500), {}
    ways = ("plain", "cached") if short else ("plain", "cached", "compiled")
    for name, fields in LOSSES.items():
        config = validate(ContrastiveConfig, {"kind": "contrastive", **fields}, "test")
        truth = gradients(config, batch, torch.device("cpu"), "fp32", "plain")
        for precision in TOLERANCES:
            for how in ways:
                ours = gradients(config, batch, device, precision, how)
                difference = float((ours - truth).norm() / truth.norm())
                found[f"{name}, {precision}, {how}"] = difference
    return found


def speed(short: bool) -> dict[str, Any]:
    """Images and tokens per second of the engine, the share of the GPU's peak, and the memory."""
    size, images, side, length, vocabulary, steps = (
        ("small", 16, 64, 24, 500, 4) if short else ("base", 1024, 224, 48, 250_000, 40)
    )
    engine = Engine(
        model_of(size, vocabulary),
        validate(ContrastiveConfig, {"kind": "contrastive"}, "test"),
        validate(EngineConfig, {"precision": "fp32" if short else "auto"}, "test"),
        validate(OptimizerConfig, {"lr": 1e-4}, "test"),
        steps,
        images,
        0.01,
    )
    batch = batch_of(images, side, length, vocabulary)
    operations = engine.operations_per_image(batch)
    batch = batch.to(distributed.device())
    read_metrics([engine.step(batch) for _ in range(3)])
    before = time.perf_counter()
    read_metrics([engine.step(batch) for _ in range(steps)])
    seconds = (time.perf_counter() - before) / steps
    found: dict[str, Any] = {
        "images_per_second": images / seconds,
        "tokens_per_second": sum(batch.length_N) / seconds,
        "tflops_per_second": operations * images / seconds / 1e12,
    }
    if peak := device_peak():
        found |= {"mfu": operations * images / seconds / peak[1], "peak_of": peak[0]}
    if torch.cuda.is_available():
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def run(short: bool) -> dict[str, float]:
    """A run on emoji scenes by the command line: share of the time without data, and recall@1."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def mmalign(*arguments: str) -> None:
            command = [sys.executable, "-m", "mmalign", *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

        sizes = {"train_scenes": 64, "test_scenes": 16, "object_scenes": 16, "sentence_scenes": 16}
        sizes |= {"unpaired_scenes": 28}
        sizes |= {f"entailment.{part}": 8 for part in ("train", "dev", "test")}
        scenes = [f"source.{name}={n}" for name, n in sizes.items()] if short else []
        mmalign("data", "build", str(ROOT / "data_recipes" / "emoji_scenes.yaml"), *scenes)
        changes = ["steps=4", "batch_size=16"] if short else ["data.workers=8"]
        train = str(ROOT / "train" / "emoji_scenes.yaml")
        mmalign("train", train, "--out", "run", "log.every=2", *changes)
        of_test = {"name": "test", "shards": "data/emoji_scenes/test", "measures": ["retrieval"]}
        (folder / "suite.yaml").write_text(json.dumps({"name": "gpu", "sets": [of_test]}))
        mmalign("eval", "suite.yaml", "--model", "run", "--out", "measured")
        records = read_records(folder / "run" / "metrics.jsonl")
        metrics = json.loads((folder / "measured" / "results.json").read_text())["metrics"]
    last = records[-1]
    kept = {k: last[k] for k in ("loss", "images_per_second", "data_wait", "mfu") if k in last}
    return {**kept, "recall@1": metrics["retrieval/test/mean/text_to_image/recall@1"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="small sizes, to test the script")
    arguments = parser.parse_args()
    if (arguments.device == "cuda") != torch.cuda.is_available():
        sys.exit(f"--device {arguments.device}: this machine's device is another one")
    distributed.start()
    device = distributed.device()
    started, found = time.perf_counter(), dict[str, Any]()
    parts: dict[str, Callable[[], Any]] = {
        "parity": lambda: parity(device, arguments.short),
        "speed": lambda: speed(arguments.short),
        "run": lambda: run(arguments.short),
    }
    for name, part in parts.items():
        found[name] = part()
        sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
    exceeded = [
        case
        for case, difference in found["parity"].items()
        if not difference <= TOLERANCES[case.split(", ")[-2]]
    ]
    learns = arguments.short or found["run"]["recall@1"] > 0.5
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"device": name, "torch": torch.__version__, "exceeded": exceeded, "learns": learns}
    sys.stdout.write(json.dumps({**facts, **found}) + "\n")
    sys.stdout.flush()
    distributed.stop()
    sys.exit(bool(exceeded) or not learns)


if __name__ == "__main__":
    main()
