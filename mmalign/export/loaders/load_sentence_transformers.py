"""Texts, and images where the folder has a route for them, through sentence-transformers: FOLDER -> vectors.

usage: python load_sentence_transformers.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main(folder: Path, probes: Path, out: str) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    texts = json.loads((probes / "texts.json").read_text(encoding="utf-8"))
    vectors = {"texts": model.encode(texts)}
    if (folder / "router_config.json").is_file():
        from PIL import Image, ImageOps  # a text tower alone loads without Pillow

        # The library neither turns images as their EXIF field says nor converts them to RGB.
        paths = sorted(probes.glob("*.image"))
        opened = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
        vectors["images"] = model.encode([image.convert("RGB") for image in opened])
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
