"""With transformers and torch alone: a VisionTextDualEncoderModel, or the trunk of a text tower.

    texts, images -> AutoModel -> features of unit length
    texts -> trunk -> the mean of the states of each text's tokens, where pooling and projection begin

usage: python load_transformers.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForTextEncoding, AutoProcessor, AutoTokenizer


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def encode_trunk(folder: Path, texts: list[str]) -> dict[str, Any]:
    # The encoder half of T5 has a class of its own: AutoModel would add a decoder with random weights.
    is_half = read_json(folder / "config.json")["architectures"][0].endswith("EncoderModel")
    trunk = (AutoModelForTextEncoding if is_half else AutoModel).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    mask_NL1 = tokens["attention_mask"].unsqueeze(-1)
    state_NLF = trunk(**tokens).last_hidden_state
    return {"states": (state_NLF * mask_NL1).sum(1) / mask_NL1.sum(1)}


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
        from PIL import Image, ImageOps  # a text tower alone loads without Pillow

        # The library does not turn images as their EXIF field says.
        paths = sorted(probes.glob("*.image"))
        opened = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
        vectors = encode_both(folder, texts, [image.convert("RGB") for image in opened])
    else:
        vectors = encode_trunk(folder, texts)
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
