"""Both towers through open_clip, from wherever the folder lies now: FOLDER, texts and pictures -> vectors.

open_clip_config.json names the place that the towers' architecture is read from; a folder that was moved or
downloaded says so itself. open_clip mends texts (ftfy, white space) before it cuts them into tokens.

usage: python open_clip_folder.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps

BATCH_SIZE = 32


def load(folder: str) -> tuple[Any, Any, Any]:
    """The model, its preprocessing of pictures, its tokenizer."""
    name = f"local-dir:{folder}"
    config = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "hf_model_name": folder}
    vision = dict(config["vision_cfg"])
    if ":" in vision.get("timm_model_name", ""):
        vision["timm_model_name"] = name
    model, preprocess = open_clip.create_model_from_pretrained(
        name, text_cfg=text, vision_cfg=vision
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def open_upright(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF field says: the library does not turn it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def in_batches(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + BATCH_SIZE] for start in range(0, len(values), BATCH_SIZE)]


@torch.inference_mode()
def main(folder: str, probes: Path, out: str) -> None:
    model, preprocess, tokenize = load(folder)
    vectors: dict[str, Any] = {}
    if (probes / "texts.json").is_file():
        texts = json.loads((probes / "texts.json").read_text(encoding="utf-8"))
        rows = [model.encode_text(tokenize(batch), normalize=True) for batch in in_batches(texts)]
        vectors["texts"] = torch.cat(rows).numpy()
    pictures = [preprocess(open_upright(path)) for path in sorted(probes.glob("[0-9]*"))]
    if pictures:
        stacks = [torch.stack(batch) for batch in in_batches(pictures)]
        rows = [model.encode_image(stack, normalize=True) for stack in stacks]
        vectors["images"] = torch.cat(rows).numpy()
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
