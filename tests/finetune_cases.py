"""A small task of words in files, for tests of fine-tuning from files to files."""

from pathlib import Path
from typing import Any

from text_tasks import LEARNS

from mmalign.core.config import validate
from mmalign.text.finetune import FinetuneConfig

WORDS = ("red ball", "dog", "green chair", "a cat", "0123", "and sleeps", "Hund", "ein Ball")
LABELS = ("thing", "animal")
NAME = "text/toy/de/clean/accuracy"


def right(i: int) -> str:
    return LABELS[i % 2]


def wrong(i: int) -> str:
    return LABELS[1 - i % 2]


def rows_of(label_of: Any) -> list[tuple[str, str, str]]:
    return [(str(i), label_of(i), word) for i, word in enumerate(WORDS)]


def write_task(folder: Path, **files: list[tuple[str, str, str]]) -> Path:
    """`train_en=rows` becomes train.en.tsv; by default there is one with the right labels."""
    folder.mkdir(exist_ok=True)
    for name, rows in {"train_en": rows_of(right), **files}.items():
        lines = ["id\tlabel\ttext", *("\t".join(row) for row in rows)]
        path = folder / f"{name.replace('_', '.')}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def config_for(folder: Path, **fields: Any) -> FinetuneConfig:
    tree = {"task": {"name": "toy", "folder": str(folder)}, **LEARNS, **fields}
    return validate(FinetuneConfig, tree, "test")
