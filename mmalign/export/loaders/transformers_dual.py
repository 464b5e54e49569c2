"""Both towers through transformers (VisionTextDualEncoderModel): FOLDER, texts and pictures -> vectors.

usage: python transformers_dual.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

BATCH_SIZE = 32


def open_upright(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF field says: the library does not turn it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def in_batches(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + BATCH_SIZE] for start in range(0, len(values), BATCH_SIZE)]


@torch.inference_mode()
def main(folder: str, probes: Path, out: str) -> None:
    model = AutoModel.from_pretrained(folder).eval()
    # Pillow's pixels, as in training; with torchvision at hand the library would resize otherwise.
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    vectors: dict[str, Any] = {}
    if (probes / "texts.json").is_file():
        rows = []
        for texts in in_batches(json.loads((probes / "texts.json").read_text(encoding="utf-8"))):
            tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            rows.append(normalize(model.get_text_features(**tokens).pooler_output, dim=-1))
        vectors["texts"] = torch.cat(rows).numpy()
    pictures = [open_upright(path) for path in sorted(probes.glob("[0-9]*"))]
    if pictures:
        rows = []
        for batch in in_batches(pictures):
            pixels = processor.image_processor(images=batch, return_tensors="pt")
            rows.append(normalize(model.get_image_features(**pixels).pooler_output, dim=-1))
        vectors["images"] = torch.cat(rows).numpy()
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
