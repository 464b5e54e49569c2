"""With transformers and torch alone: both towers of a VisionTextDualEncoderModel, or a text tower.

    texts, images -> AutoModel -> features of unit length
    texts -> trunk -> the modules that modules.json lists: what sentence-transformers does, by hand

usage: python load_transformers.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, normalize
from transformers import AutoModel, AutoModelForTextEncoding, AutoProcessor, AutoTokenizer


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pool(modes: dict[str, Any], state: Tensor, mask: Tensor) -> Tensor:
    """(N, L, F) states -> (N, F), as `1_Pooling/config.json` says."""
    if modes["pooling_mode_cls_token"]:
        return state[:, 0]
    if modes["pooling_mode_lasttoken"]:
        last = (mask * torch.arange(mask.shape[1])).argmax(dim=1)
        return state[torch.arange(len(state)), last]
    weight = mask.unsqueeze(-1).to(state.dtype)
    return (state * weight).sum(dim=1) / weight.sum(dim=1)


def dense(facts: dict[str, Any], weights: dict[str, Tensor], vector: Tensor) -> Tensor:
    """A linear map and its activation: the identity, or GELU between two maps."""
    activation = facts["activation_function"].rpartition(".")[2]
    vector = linear(vector, weights["linear.weight"], weights.get("linear.bias"))
    return getattr(torch.nn, activation)()(vector)


def encode_by_hand(folder: Path, texts: list[str]) -> dict[str, Any]:
    # The encoder half of T5 has a class of its own: AutoModel would add a decoder with random weights.
    is_half = read_json(folder / "config.json")["architectures"][0].endswith("EncoderModel")
    trunk = (AutoModelForTextEncoding if is_half else AutoModel).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    vector = trunk(**tokens).last_hidden_state
    for module in read_json(folder / "modules.json")[1:]:
        part = folder / module["path"]
        facts, kind = read_json(part / "config.json"), module["type"].rpartition(".")[2]
        if kind == "Pooling":
            vector = pool(facts, vector, tokens["attention_mask"])
        elif kind == "Dense":
            vector = dense(facts, load_file(part / "model.safetensors"), vector)
        elif kind == "Normalize":
            vector = normalize(vector, dim=-1)
    return {"texts": vector}


def encode_both(folder: Path, texts: list[str], images: list[Any]) -> dict[str, Any]:
    model = AutoModel.from_pretrained(folder).eval()
    # Pillow's pixels, as in training: where torchvision is installed the library would resize with it.
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    pixels = processor.image_processor(images=images, return_tensors="pt")
    return {
        "texts": normalize(model.get_text_features(**tokens).pooler_output, dim=-1),
        "images": normalize(model.get_image_features(**pixels).pooler_output, dim=-1),
    }


@torch.inference_mode()
def main(folder: Path, probes: Path, out: str) -> None:
    texts = read_json(probes / "texts.json")
    if read_json(folder / "config.json")["model_type"] == "vision-text-dual-encoder":
        # The library does not turn images as their EXIF field says.
        opened = [
            ImageOps.exif_transpose(Image.open(one)) for one in sorted(probes.glob("*.image"))
        ]
        vectors = encode_both(folder, texts, [image.convert("RGB") for image in opened])
    else:
        vectors = encode_by_hand(folder, texts)
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
