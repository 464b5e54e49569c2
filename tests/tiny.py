"""The smallest model, tokenizer and run that the code accepts; they take a second and no network."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmalign.core.commit import committed_folder
from mmalign.core.config import validate, write_yaml
from mmalign.data.tokenizer import Tokenizer, train_tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder

SEED = 0
MODEL: dict[str, Any] = {
    "image": {
        "kind": "timm",
        "name": "resnet10t",
        "image_size": 32,
        "options": {"stem_width": 8, "channels": [8, 8, 16, 16]},
    },
    "text": {
        "architecture": {
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
        "max_length": 32,
    },
    "embedding": 16,
}
TEXTS = (
    "a red ball and a dog",
    "ein roter Ball und ein Hund",
    "красный мяч и собака",
    "赤いボールと犬",
    "mpira mwekundu na mbwa",
    "the cat sleeps on a green chair 0123456789",
)


def tiny_model_config() -> ModelConfig:
    return validate(ModelConfig, MODEL, "tests/tiny.py")


@lru_cache(maxsize=1)  # the training of the tokenizer is not deterministic
def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, vocabulary=160)


def tiny_model(seed: int = SEED) -> DualEncoder:
    """An untrained model, determined by the seed."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    return build_dual_encoder(tiny_model_config(), tokenizer.vocabulary, tokenizer.padding_id)


def tiny_run(folder: Path, trained: DualEncoder | None = None) -> Path:
    """A run folder with one committed checkpoint, at step 1.

    Args:
        trained: the checkpoint's weights; by default those of another seed than the run's, so that
            the trained and the untrained model differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": SEED, "model": MODEL, "tokenizer": {"kind": "trained", "vocabulary": 160}}
    (folder / "config.yaml").write_text(write_yaml(config), encoding="utf-8")
    tiny_tokenizer().save(folder / "tokenizer")
    model = tiny_model(SEED + 1) if trained is None else trained
    (folder / "checkpoints").mkdir()
    with committed_folder(folder / "checkpoints" / "step-000000001", {"step": 1}) as checkpoint:
        save_file(model.state_dict(), checkpoint / "model.safetensors")
    return folder
