"""Texts and images on which an export is compared with the model that it was made from.

probe_texts.txt: many scripts, an empty text; two very long ones -+
5 images: RGB, grey, palette, turned, 1 pixel wide ---------------+-> write_probes: what the loaders read
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# One text per line, the first one empty. In Unicode's form NFC and without doubled spaces, because open_clip
# fixes texts (ftfy, white space) before it tokenizes them.
_SHORT = Path(__file__).with_name("probe_texts.txt").read_text(encoding="utf-8").splitlines()
# Two texts that are longer than any text tower takes.
TEXTS = (*_SHORT, "two dogs run and " * 600 + "stop", "две собаки бегут и " * 600 + "стоят")


def probe_images() -> list[bytes]:
    """The five images, encoded; the same at every call."""
    # Opaque, because libraries differ in the background that they give to transparent ones.
    rng = np.random.default_rng(6)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    image = coarse.resize((150, 110), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    return [
        _encoded(image, "JPEG"),
        _encoded(image.convert("L"), "PNG"),
        _encoded(image.quantize(64), "PNG"),
        _encoded(image, "JPEG", exif=exif),
        _encoded(image.resize((1, 300)), "WEBP", lossless=True),
    ]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def probe_texts(tokenizer: Any) -> list[str]:
    """The texts of which a tokenizer of transformers makes tokens."""
    # GPT-2's and Qwen's make none of an empty text, which each library then treats in its own way.
    ids = tokenizer(list(TEXTS), truncation=True, max_length=8)["input_ids"]
    return [text for text, tokens in zip(TEXTS, ids, strict=True) if tokens]


def write_probes(folder: Path, texts: Sequence[str]) -> None:
    """Write `texts.json` and the images, `000.image` and on."""
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    for number, data in enumerate(probe_images()):
        (folder / f"{number:03}.image").write_bytes(data)
