"""Tiny dual encoders of every kind that can be exported; each takes a second and no network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import MODEL, tiny_tokenizer
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmalign.core.config import validate
from mmalign.data.tokenizer import Tokenizer
from mmalign.export import loaders
from mmalign.export.source import Source
from mmalign.export.verify import Loader
from mmalign.models.dual_encoder import ModelConfig, build_dual_encoder
from mmalign.models.encoder import Encoder
from mmalign.models.text_encoder import text_side

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
NARROW = {"stem_width": 8, "channels": [16, 16, 32, 32]}
_VIT = {"layers": 1, "width": 64, "patch_size": 32}
_TEXT = {"layers": 1, "width": 64, "heads": 2}


def _open_clip(vision: dict[str, Any], name: str = "ViT-B-32", size: int = 64) -> dict[str, Any]:
    options = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": _TEXT}
    return {"kind": "open_clip", "name": name, "image_size": size, "options": options}


_AROUND = {"timm_model_name": "test_vit", "timm_pool": ""}
IMAGES: dict[str, dict[str, Any]] = {
    "resnet10t": {"kind": "timm", "name": "resnet10t", "image_size": 32, "options": NARROW},
    "vit": {"kind": "timm", "name": "test_vit", "image_size": 64},
    "open_clip": _open_clip(_VIT),
    "averaged": _open_clip({**_VIT, "pool_type": "avg"}),
    "scaled": _open_clip({**_VIT, "ls_init_value": 0.1}),
    "attention": _open_clip({"layers": [1, 1, 1, 1], "width": 8}, "RN50"),
    "perceptron": _open_clip({**_AROUND, "timm_proj": "mlp"}, size=160),
    "around_timm": _open_clip({**_AROUND, "timm_proj": "linear"}, size=160),
}
_M2M = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
TRUNKS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_size": 32, **SMALL},
    "xlm-roberta": {"model_type": "xlm-roberta", "hidden_size": 32, **SMALL},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "hidden_dim": 48,
        "n_heads": 2,
        "n_layers": 1,
    },
    "mt5": {
        "model_type": "mt5",
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 16,
        "num_layers": 1,
        "num_heads": 2,
    },
    "m2m_100": {"model_type": "m2m_100", "d_model": 32, "encoder_ffn_dim": 48, **_M2M},
    "modernbert": {"model_type": "modernbert", "hidden_size": 32, **SMALL},
}


def build_encoder(
    image: str = "resnet10t",
    trunk: str = "bert",
    pooling: str = "mean",
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Encoder:
    """A dual encoder with random weights, the same at every call; `changes` are fields of `model`."""
    text = {**MODEL["text"], "architecture": TRUNKS[trunk], "pooling": pooling}
    tree = {**MODEL, "image": IMAGES[image], "text": text, **changes}
    config = validate(ModelConfig, tree, "tests/export_cases.py")
    tokenizer = tokenizer or tiny_tokenizer()
    torch.manual_seed(5)
    model = build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
    for module in model.modules():  # at initialization batch norm is nearly the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return Encoder(model, config, tokenizer, {"path": "somewhere", "step": 3, "sha256": "0" * 64})


def bare_tokenizer() -> Tokenizer:
    """Byte-level BPE as GPT-2 and Qwen have it: an empty text has no tokens."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator((), trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    inner = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    assert inner("")["input_ids"] == []
    return Tokenizer(inner)


def load_in_this_process(loader: Loader, folder: Path, probes: Path) -> dict[str, np.ndarray]:
    """In place of `run_loader`, which starts a process for each library."""
    texts = loaders.read_json(probes / "texts.json")
    found = getattr(loaders, loader.package)(folder, texts, probes)
    return {name: np.asarray(one) for name, one in found.items()}


def source_of(encoder: Encoder) -> Source:
    """The encoder as input of an export."""
    return Source(tower=text_side(encoder), encoder=encoder)


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its path inside the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
