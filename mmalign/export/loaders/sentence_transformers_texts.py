"""The text tower through sentence-transformers: FOLDER, texts -> vectors.

usage: python sentence_transformers_texts.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main(folder: str, probes: Path, out: str) -> None:
    texts = json.loads((probes / "texts.json").read_text(encoding="utf-8"))
    model = SentenceTransformer(folder, device="cpu")
    np.savez(out, texts=model.encode(texts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
