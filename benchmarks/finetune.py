"""Time of fine-tuning and of its tests: this code beside an older checkout, and beside transformers' trainer.

    rows -> the same YAML files -> finetune() of the checkout, then ours, in processes of their own
                                   seconds in `fit` and `measure` -> ratios new / old
    rows -> one epoch of plain fine-tuning: ours and `transformers.Trainer` in turn -> samples per second

The workload is XNLI's: English pairs, four methods (plain, RS-RP, FreeLB, consistency), and tests in 15
languages, clean and under three perturbations. One factor scales all row counts; everything is float32. The
texts consist of made-up words and have the lengths of MNLI in XLM-R's tokens (45 on average, the longest of
32 about 95). The model is a BERT with random weights in the shape of multilingual-e5-small (12 layers of
width 384, 250,037 embeddings), or `--model`. The last line is one JSON object.

    git worktree add ../old 1614cb0
    python benchmarks/finetune.py --old ../old [--scale 0.005] [--model FOLDER] [--peer-rows 256] [--rounds 3]
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmalign.text.tasks.task import Task

LANGUAGES = (
    "ar",
    "bg",
    "de",
    "el",
    "en",
    "es",
    "fr",
    "hi",
    "ru",
    "sw",
    "th",
    "tr",
    "ur",
    "vi",
    "zh",
)
LABELS = ("entailment", "neutral", "contradiction")
TRAIN, TEST, SEEDS, BATCH = 10_000, 500, 3, 32
METHODS = {
    "plain": {"kind": "plain"},
    "rs_rp": {"kind": "rs_rp", "epsilon": 0.1},
    "freelb": {"kind": "freelb", "norm": "l2_sequence", "radius": 0.5, "step_size": 0.2},
    "consistency": {
        "kind": "consistency",
        "view": {"kind": "uniform", "layer": "embedding", "epsilon": 0.1},
    },
}
PERTURBATIONS = [
    {"kind": "characters", "severity": 2},
    {"kind": "characters", "severity": 3},
    {"kind": "words", "edit": "drop", "severity": 3},
]
MEAN_TOKENS, SPREAD = 45, 0.4  # of a log-normal distribution: the longest of 32 has 95 tokens

# Runs in the checkout that PYTHONPATH names. Arguments: fine-tuning YAML, model, folder for the results.
CHILD = """
import importlib, json, sys, time
from pathlib import Path
# Not by import: an editable installation finds our modules in place of those that the checkout lacks.
is_old = not Path("mmalign/text").is_dir()
name = "mmalign.finetuning.loop" if is_old else "mmalign.text.finetune"
module = importlib.import_module(name)
jobs = importlib.import_module("mmalign.finetuning.jobs" if is_old else "mmalign.text.jobs")
seconds = {"fit": 0.0, "measure": 0.0}
def timed(part, call):
    def run(*args, **kwargs):
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start
    return run
for part in seconds:
    setattr(module, part, timed(part, getattr(module, part)))
assert Path(module.__file__).is_relative_to(Path.cwd()), module.__file__
module.finetune(jobs.read_job(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))
print(json.dumps(seconds))
"""


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_rows(folder: Path, train: int, test: int) -> None:
    """Training pairs in English, and test pairs in every language, in our own layout."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, random.integers(3, 9))) for _ in range(5000)]

    def texts() -> tuple[str, str]:
        # Of 3 special tokens and two texts, of which the hypothesis is the shorter one.
        tokens = max(6, int(random.lognormal(math.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD)) - 3)
        drawn = [words[i] for i in random.integers(0, len(words), tokens)]
        return " ".join(drawn[: tokens * 2 // 3]), " ".join(drawn[tokens * 2 // 3 :])

    for name, rows in (("train.en", train), *((f"test.{lang}", test) for lang in LANGUAGES)):
        lines = [
            "\t".join((str(i), *texts(), LABELS[random.integers(len(LABELS))])) for i in range(rows)
        ]
        header = "id\tpremise\thypothesis\tlabel"
        (folder / f"{name}.tsv").write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    (folder.parent / "words.txt").write_text("\n".join(words), encoding="utf-8")


def write_model(folder: Path, words: Path, width: int, layers: int, vocabulary: int) -> None:
    """A BERT with random weights whose tokenizer has one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: i for i, word in enumerate([*special, *words.read_text("utf-8").split()])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = dict(
        zip(
            ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True
        )
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    BertModel(config).save_pretrained(folder)


def write_job(path: Path, rows: Path, method: dict[str, object], **more: object) -> None:
    """A fine-tuning; without `more` one that 0.1.0 reads, which always trains in float32."""
    job = {
        "task": {"name": "xnli", "folder": str(rows)},
        "seeds": list(range(SEEDS)),
        "trainable": "all",
        "epochs": 1,
        "batch_size": BATCH,
        "method": method,
        "tests": {"perturbations": PERTURBATIONS, "draws": 1},
        **more,
    }
    path.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML


def time_checkout(checkout: Path, job: Path, model: Path, out: Path) -> dict[str, float]:
    """Seconds in training and in tests."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CHILD, str(job), str(model), str(out)]
    # In the checkout: with `-c` Python looks for packages in the working folder first.
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr[-2000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def compare_checkouts(old: Path, rows: Path, model: Path, folder: Path) -> dict[str, float]:
    """Ratios new / old of training, tests and both; the two checkouts take turns."""
    here = Path(__file__).parents[1]
    total = {"old": {"fit": 0.0, "measure": 0.0}, "new": {"fit": 0.0, "measure": 0.0}}
    for name, method in METHODS.items():
        for which, checkout in (("old", old), ("new", here)):
            job = folder / f"{name}-{which}.yaml"
            write_job(job, rows, method, **({} if which == "old" else {"precision": "fp32"}))
            found = time_checkout(checkout, job, model, folder / which / name)
            say(f"{name:12} {which}: fit {found['fit']:.1f} s, tests {found['measure']:.1f} s")
            for part, seconds in found.items():
                total[which][part] += seconds
    ratio = {part: total["new"][part] / total["old"][part] for part in ("fit", "measure")}
    both = sum(total["new"].values()) / sum(total["old"].values())
    return {"fit_ratio": ratio["fit"], "evaluation_ratio": ratio["measure"], "total_ratio": both}


def compare_trainer(rows: Path, model: Path, count: int, rounds: int, folder: Path) -> float:
    """Median over rounds of our samples per second relative to transformers' trainer."""
    from mmalign.models.load import load_text_encoder
    from mmalign.text.fit import fit
    from mmalign.text.fit_config import FitConfig
    from mmalign.text.tasks.read import TaskConfig, read_task

    task = read_task(TaskConfig(name="xnli", folder=str(rows), train_examples=count))
    tower = load_text_encoder(str(model))
    config = FitConfig(trainable="all", precision="fp32", epochs=1, batch_size=BATCH, warmup=0)
    trainings = {
        "ours": lambda: fit(tower, task, config, seed=0),
        "peer": prepare_trainer(task, model, folder),
    }
    ratios = []
    for number in range(rounds):
        speed = {}
        # The order changes, because the first of a round may meet cold caches.
        for name in sorted(trainings, reverse=bool(number % 2)):
            start = time.perf_counter()
            trainings[name]()
            speed[name] = len(task.train) / (time.perf_counter() - start)
        say(f"samples/s: ours {speed['ours']:.1f}, transformers {speed['peer']:.1f}")
        ratios.append(speed["ours"] / speed["peer"])
    return statistics.median(ratios)


def prepare_trainer(task: Task, model: Path, folder: Path) -> Callable[[], object]:
    """One epoch of transformers' trainer; tokenizing counts, as it does in ours."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    numbers = {label: i for i, label in enumerate(task.labels)}
    tokenizer = AutoTokenizer.from_pretrained(model)
    # Like ours, which copies a loaded tower in every round.
    loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(numbers))
    arguments = TrainingArguments(
        output_dir=str(folder / "peer"),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )

    def train() -> object:
        encoded = [
            {
                **tokenizer(*one.texts, truncation=True, max_length=128),
                "labels": numbers[str(one.target)],
            }
            for one in task.train
        ]
        collate = DataCollatorWithPadding(tokenizer)
        trainer = Trainer(
            copy.deepcopy(loaded), arguments, train_dataset=encoded, data_collator=collate
        )
        return trainer.train()

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="a checkout to compare with; none: the peer only")
    parser.add_argument("--scale", type=float, default=0.005, help="factor of all row counts")
    parser.add_argument("--model", type=Path, help="a folder of transformers; none: random weights")
    parser.add_argument("--shape", type=int, nargs=3, default=(384, 12, 250_037), metavar="N")
    parser.add_argument("--peer-rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = folder / "rows"
        rows.mkdir()
        # Two batches of training and four rows per test at least.
        scaled = max(2 * BATCH, round(TRAIN * args.scale)), max(4, round(TEST * args.scale))
        write_rows(rows, *scaled)
        model = args.model or folder / "model"
        if args.model is None:
            write_model(model, folder / "words.txt", *args.shape)
        found = compare_checkouts(args.old.resolve(), rows, model, folder) if args.old else {}
        more = folder / "peer-rows"
        more.mkdir()
        write_rows(more, args.peer_rows, BATCH)
        found["samples_per_second_ratio"] = compare_trainer(
            more, model, args.peer_rows, args.rounds, folder
        )
    say(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
