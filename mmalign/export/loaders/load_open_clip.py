"""Both towers through open_clip, from wherever the folder lies now: FOLDER, texts and images -> vectors.

open_clip_config.json names the folder that the towers' architecture is read from. Where the folder was moved
or downloaded, its new path is given beside the configuration. open_clip fixes texts (ftfy, white space)
before it tokenizes them.

usage: python load_open_clip.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps


@torch.inference_mode()
def main(folder: str, probes: Path, out: str) -> None:
    name = f"local-dir:{folder}"
    config = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "hf_model_name": folder}
    vision = dict(config["vision_cfg"])
    if ":" in vision.get("timm_model_name", ""):  # not a network that open_clip builds itself
        vision["timm_model_name"] = name
    model, preprocess = open_clip.create_model_from_pretrained(
        name, text_cfg=text, vision_cfg=vision
    )
    tokenize = open_clip.get_tokenizer(name)
    model.eval()
    texts = json.loads((probes / "texts.json").read_text(encoding="utf-8"))
    # The library does not turn images as their EXIF field says, and resizes a palette before it is RGB.
    paths = sorted(probes.glob("*.image"))
    opened = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
    pixels = torch.stack([preprocess(image.convert("RGB")) for image in opened])
    np.savez(
        out,
        texts=model.encode_text(tokenize(texts), normalize=True),
        images=model.encode_image(pixels, normalize=True),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
