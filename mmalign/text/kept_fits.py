"""Fits that are kept: a finished one is not trained again, one that was stopped goes on where it was.

    tower, training examples, configuration, seed -> fit_key -> <folder>/<key>.safetensors   trained weights
                                                             -> <folder>/<key>.pt            of a stopped fit

The key holds all that training depends on and nothing of the tests, so that other tests, languages and
perturbations find the same fit. A fit that goes on gives the numbers of one that was never stopped.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.core.code_version import VERSION
from mmalign.core.commit import replacing
from mmalign.core.errors import UserError
from mmalign.models.encoder import on_host, weights_sha256
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.tasks.task import Task

_TOKENIZED = 64  # training examples that stand for the tokenizer


def fit_key(tower: TextEncoder, task: Task, config: Mapping[str, Any], seed: int) -> str:
    """24 hexadecimal digits for the weights that training ends with.

    Args:
        config: what is trained and how, as JSON values.
    """
    texts = [text for one in task.train[:_TOKENIZED] for text in one.texts]
    parts = {
        "weights": weights_sha256(tower),
        "tower": [tower.pooling, tower.unit_length, tower.max_length, tower.prompts.facts],
        "tokens": tower.tokenize(texts).token_NL.tolist() if texts else [],
        "task": [task.kind, task.labels],
        "train": _hash_of_rows(task.train),
        "dev": _hash_of_rows(task.dev.get(task.source, [])),
        "config": config,
        "files": {str(path): hash_of_files(path) for path in files_read_by(config)},
        "seed": seed,
        "mmalign": VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


# In several scripts, so that tokenizers that differ are likely to cut one of them in another way.
_SENTENCES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Съешь ещё этих мягких французских булок.",
    "いろはにほへと ちりぬるを 天地玄黄",
    "نص حكيم له سر قاطع और एक छोटी कहानी ሰላም ለዓለም",
)


def tower_identity(tower: TextEncoder) -> str:
    """24 hexadecimal digits for all that a tower's features depend on: weights, pooling, tokens, prompts."""
    parts = {
        "weights": weights_sha256(tower),
        "tower": [tower.pooling, tower.unit_length, tower.max_length, tower.prompts.facts],
        "tokens": tower.tokenize(_SENTENCES).token_NL.tolist(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _hash_of_rows(rows: list[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def files_read_by(config: Any) -> Iterator[Path]:
    """The files and folders that a fine-tuning reads, by the names of the fields that name them."""
    trees = [config]
    for tree in trees:  # grows while it is read
        if isinstance(tree, Mapping):
            for name in ("folder", "dictionaries", "neighbours"):
                # `hf`: the folder may be a name on the hub, whose revision is part of the configuration.
                if isinstance(tree.get(name), str) and not (
                    tree.get("hf") and not Path(tree[name]).exists()
                ):
                    yield Path(tree[name])
            trees += tree.values()
        elif isinstance(tree, list):
            trees += tree


def hash_of_files(path: Path) -> str:
    """sha256 over names and bytes of a file or of all files of a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; the fine-tuning needs it")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


class KeptFit:
    """The two files of one fit. Either may be missing; both are complete or absent."""

    def __init__(self, folder: Path, key: str) -> None:
        self._finished = folder / f"{key}.safetensors"
        self._progress = folder / f"{key}.pt"

    def finished(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The trained weights and the history of training."""
        if not self._finished.is_file():
            return None
        with safe_open(self._finished, "pt") as file:
            history = json.loads(file.metadata()["history"])
        return load_file(self._finished), history

    def finish(self, weights: Mapping[str, Tensor], history: Mapping[str, Any]) -> None:
        with replacing(self._finished) as path:
            save_file(on_host(weights), path, metadata={"history": json.dumps(history)})
        self._progress.unlink(missing_ok=True)

    def progress(self) -> dict[str, Any] | None:
        """What `save_progress` was given last."""
        if not self._progress.is_file():
            return None
        state: dict[str, Any] = torch.load(self._progress, map_location="cpu", weights_only=True)
        return state

    def save_progress(self, state: Mapping[str, Any]) -> None:
        """Keep tensors, numbers, texts, and lists, tuples and dictionaries of them."""
        with replacing(self._progress) as path:
            torch.save(dict(state), path)
