"""Speed of text encoding on a CPU: eager PyTorch and ONNX Runtime.

    one text tower -> Tower.encode, as in mmalign's evaluation     -+
                   -> exported -> OnnxModel.encode_texts, fp32     -+-> ratios within a round -> medians
                               -> OnnxModel.encode_texts, int8     -+

Both start from texts and return embeddings, so tokenizer, sorting and padding are included. For eager PyTorch
texts are sorted by characters, for ONNX Runtime by tokens. The number of padded tokens of both is printed,
because it explains a part of the ratio at batches of 64. Both have `--threads` threads, with a pause between
them.

Without `--model` the tower is an XLM-R with random weights and the shape of a multilingual MiniLM (12 layers,
width 384), with a tokenizer trained on the texts: names of emoji (CLDR, 14 languages) and of languages (in
40 languages), one to four joined to the length of a caption. Prints a table and, as the last line, one JSON
object: the speed of fp32 ONNX Runtime relative to eager PyTorch, and the largest difference of a component.

    python benchmarks/onnx.py [--model RUN] [--texts 1024] [--singles 48] [--rounds 5] [--layers 12]
        [--width 384] [--threads 2]

Half a minute: --layers 4 --texts 256 --rounds 3.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F

from mmalign.data.tokenizer import train_tokenizer
from mmalign.export.onnx import write_onnx
from mmalign.export.source import Source
from mmalign.models.external.onnx import load_onnx
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder

# This file has the name of the package onnx, so its folder must not be on the import path.
sys.path = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

BATCH = 64
VOCABULARY = 8000
MAX_LENGTH = 64
# Languages whose names CLDR has in their own script; several languages for widespread scripts.
LANGUAGES = (
    "en de fr vi tr sw el ru uk kk ka hy he yi ar fa ur hi mr ne bn as pa gu or ta te kn ml si th "
    "lo my km bo dz zh ja ko am ti chr ii nqo sat ff-Adlm zgh ccp"
)
REST = 0.05  # seconds; torch's threads wait about as long for work before they sleep
Encode = Callable[[Sequence[str]], np.ndarray]


def build_texts(number: int) -> list[str]:
    """Texts of the length of captions in many languages; deterministic."""
    from langcodes import Language

    emoji.config.load_language()
    names = [
        name.strip(":").replace("_", " ")
        for entry in emoji.EMOJI_DATA.values()
        for lang, name in entry.items()
        if len(lang) == 2 and isinstance(name, str)
    ]
    codes = LANGUAGES.split()
    names += [Language.get(a).display_name(b) for a in codes for b in codes] * 10
    generator = random.Random(0)
    return [" ".join(generator.choices(names, k=generator.randint(1, 4))) for _ in range(number)]


def build_tower(layers: int, width: int) -> TextEncoder:
    """An XLM-R with random weights and a projection, and a trained tokenizer."""
    from transformers import AutoConfig, AutoModel

    tokenizer = train_tokenizer(build_texts(8000), VOCABULARY)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "xlm-roberta",
        vocab_size=tokenizer.vocabulary,
        pad_token_id=tokenizer.padding_id,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=MAX_LENGTH + 2,
    )
    trunk = AutoModel.from_config(config, add_pooling_layer=False)
    projection = torch.nn.Linear(width, width, bias=False)
    facts = {"path": "random", "sha256": "0" * 64, "step": 0}
    return TextEncoder(trunk, tokenizer, "mean", projection, True, MAX_LENGTH, facts)


def places(tower: TextEncoder, texts: Sequence[str], by_tokens: bool) -> int:
    """Number of tokens of the sorted batches, including padding."""
    ids = tower.tokenizer.inner(list(texts), truncation=True, max_length=tower.max_length)
    length = [len(row) for row in ids["input_ids"]]
    order = sorted(range(len(texts)), key=lambda i: length[i] if by_tokens else len(texts[i]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return sum(len(batch) * max(length[i] for i in batch) for batch in batches)


def seconds(encode: Encode, calls: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """The time of all calls, and their results."""
    time.sleep(REST)
    started = time.perf_counter()
    rows = [encode(texts) for texts in calls]
    return time.perf_counter() - started, np.concatenate(rows)


def measure(
    sides: dict[str, Encode], calls: Sequence[Sequence[str]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each method by round, and its largest difference to the first; one more round warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    vectors: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        for name, encode in sides.items():
            taken, vectors[name] = seconds(encode, calls)
            if number > 0:
                times[name].append(taken)
    first = vectors[next(iter(sides))]
    return times, {name: float(np.abs(rows - first).max()) for name, rows in vectors.items()}


def show(
    title: str, times: dict[str, list[float]], differences: dict[str, float], texts: int
) -> dict[str, float]:
    """Print one table and return the ratios to its first row."""
    first = next(iter(times.values()))
    sys.stdout.write(f"{title:<14}{'ms/text':>10}{'ratio':>7}{'rounds':>14}{'difference':>12}\n")
    ratios = {}
    for name, taken in times.items():
        by_round = sorted(a / b for a, b in zip(first, taken, strict=True))
        ratios[name] = statistics.median(by_round)
        spread = f"{by_round[0]:.2f} - {by_round[-1]:.2f}"
        milliseconds = 1000 * statistics.median(taken) / texts
        sys.stdout.write(
            f"{name:<14}{milliseconds:>10.2f}{ratios[name]:>7.2f}{spread:>14}{differences[name]:>12.1e}\n"
        )
    return ratios


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="text encoding: eager PyTorch and ONNX Runtime")
    parser.add_argument("--model", help="a run, a fine-tuned tower or another text encoder")
    sizes = {"texts": 1024, "singles": 48, "rounds": 5, "layers": 12, "width": 384, "threads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    tower = (
        load_text_encoder(options.model)
        if options.model
        else build_tower(options.layers, options.width)
    )
    texts = build_texts(options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        write_onnx(Source(tower), Path(scratch))
        fp32, int8 = load_onnx(scratch), load_onnx(scratch, "int8")
        sizes = {f.name: f.stat().st_size for f in sorted(Path(scratch, "onnx").glob("*.onnx*"))}

    def eager(some: Sequence[str]) -> np.ndarray:
        rows = torch.from_numpy(tower.encode(some, BATCH))
        return F.normalize(rows, dim=-1).numpy()

    sides: dict[str, Encode] = {
        "eager PyTorch": eager,
        "ONNX fp32": lambda some: fp32.encode_texts(some, BATCH),
        "ONNX int8": lambda some: int8.encode_texts(some, BATCH),
    }
    singles = [[text] for text in texts[: options.singles]]
    one, one_off = measure(sides, singles, options.rounds)
    many, many_off = measure(sides, [texts], options.rounds)
    of_one = show("batch 1", one, one_off, len(singles))
    of_many = show(f"batches of {BATCH}", many, many_off, len(texts))
    by_characters, by_tokens = places(tower, texts, False), places(tower, texts, True)
    sys.stdout.write(f"tokens in batches: eager {by_characters}, ONNX {by_tokens}\n{sizes}\n")
    figures = {
        "batch_1_ratio": round(of_one["ONNX fp32"], 3),
        "batch_64_ratio": round(of_many["ONNX fp32"], 3),
        "max_difference": max(one_off["ONNX fp32"], many_off["ONNX fp32"]),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
