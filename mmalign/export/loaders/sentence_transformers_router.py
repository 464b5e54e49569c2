"""Both towers through sentence-transformers' Router: FOLDER, texts and pictures -> vectors in one space.

usage: python sentence_transformers_router.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from sentence_transformers import SentenceTransformer


def open_upright(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF field says: neither is done by the library."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def main(folder: str, probes: Path, out: str) -> None:
    model = SentenceTransformer(folder, device="cpu")
    vectors: dict[str, Any] = {}
    if (probes / "texts.json").is_file():
        texts = json.loads((probes / "texts.json").read_text(encoding="utf-8"))
        vectors["texts"] = model.encode(texts)
    pictures = [open_upright(path) for path in sorted(probes.glob("[0-9]*"))]
    if pictures:
        vectors["images"] = model.encode(pictures)
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
