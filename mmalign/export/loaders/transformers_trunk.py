"""The text tower with transformers and torch alone: what sentence-transformers does with the folder, by hand.

    texts -> trunk (config.json, model.safetensors) -> the modules that modules.json lists, in their order

usage: python transformers_trunk.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

BATCH_SIZE = 32


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_trunk(folder: Path) -> Any:
    """The encoder half of T5's kin has a class of its own; AutoModel would add a decoder at random."""
    config = AutoConfig.from_pretrained(folder)
    is_half = config.architectures[0].endswith("EncoderModel")
    return (AutoModelForTextEncoding if is_half else AutoModel).from_pretrained(folder).eval()


def pool(folder: Path, state: Tensor, mask: Tensor) -> Tensor:
    """(N, L, F) states -> (N, F), as `1_Pooling/config.json` says."""
    modes = [name for name, is_on in read_json(folder / "config.json").items() if is_on is True]
    if "pooling_mode_cls_token" in modes:
        return state[:, 0]
    if "pooling_mode_lasttoken" in modes:
        place = torch.arange(mask.shape[1])
        last = (mask * place).argmax(dim=1)
        return state[torch.arange(len(state)), last]
    weight = mask.unsqueeze(-1).to(state.dtype)
    return (state * weight).sum(dim=1) / weight.sum(dim=1)


def dense(folder: Path, vector: Tensor) -> Tensor:
    """A linear map and what follows it: nothing, or GELU between two maps."""
    weights = load_file(folder / "model.safetensors")
    vector = torch.nn.functional.linear(
        vector, weights["linear.weight"], weights.get("linear.bias")
    )
    activation = read_json(folder / "config.json")["activation_function"].rpartition(".")[2]
    return getattr(torch.nn, activation)()(vector)


@torch.inference_mode()
def encode(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer, trunk = AutoTokenizer.from_pretrained(folder), load_trunk(folder)
    rows = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = texts[start : start + BATCH_SIZE]
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        vector = trunk(**tokens).last_hidden_state
        for module in read_json(folder / "modules.json")[1:]:
            kind, part = module["type"].rpartition(".")[2], folder / module["path"]
            if kind == "Pooling":
                vector = pool(part, vector, tokens["attention_mask"])
            elif kind == "Dense":
                vector = dense(part, vector)
            elif kind == "Normalize":
                vector = torch.nn.functional.normalize(vector, dim=-1)
        rows.append(vector.numpy())
    return np.concatenate(rows)


def main(folder: str, probes: Path, out: str) -> None:
    np.savez(out, texts=encode(Path(folder), read_json(probes / "texts.json")))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
