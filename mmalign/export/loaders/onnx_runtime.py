"""The towers in ONNX Runtime, with neither torch nor transformers: FOLDER, texts and pictures -> vectors.

    tokenizer.json -> onnx/text_model.onnx            preprocessor_config.json -> onnx/image_model.onnx

usage: python onnx_runtime.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

BATCH_SIZE = 32


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, which cuts texts and pads them as the model was trained."""
    settings = read_json(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(settings["model_max_length"])
    padding = settings["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    return tokenizer


def open_upright(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF field says."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pixels(settings: dict[str, Any], image: Image.Image) -> np.ndarray:
    """The whole picture, squeezed by Pillow and normalised: (3, H, W) float32."""
    size = (settings["size"]["width"], settings["size"]["height"])
    image = image.resize(size, Image.Resampling(settings["resample"]))
    value = np.asarray(image, np.float32) / 255
    mean = np.asarray(settings["image_mean"], np.float32)
    std = np.asarray(settings["image_std"], np.float32)
    return ((value - mean) / std).transpose(2, 0, 1)


def in_batches(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + BATCH_SIZE] for start in range(0, len(values), BATCH_SIZE)]


def encode_texts(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer = load_tokenizer(folder)
    session = onnxruntime.InferenceSession(folder / "onnx" / "text_model.onnx")
    rows = []
    for batch in in_batches(texts):
        encoded = tokenizer.encode_batch(batch)
        inputs = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        }
        rows += session.run(["text_embeds"], inputs)
    return np.concatenate(rows)


def encode_images(folder: Path, images: list[Image.Image]) -> np.ndarray:
    settings = read_json(folder / "preprocessor_config.json")
    session = onnxruntime.InferenceSession(folder / "onnx" / "image_model.onnx")
    rows = []
    for batch in in_batches(images):
        inputs = {"pixel_values": np.stack([pixels(settings, image) for image in batch])}
        rows += session.run(["image_embeds"], inputs)
    return np.concatenate(rows)


def main(folder: str, probes: Path, out: str) -> None:
    vectors: dict[str, Any] = {}
    if (probes / "texts.json").is_file():
        vectors["texts"] = encode_texts(Path(folder), read_json(probes / "texts.json"))
    pictures = [open_upright(path) for path in sorted(probes.glob("[0-9]*"))]
    if pictures and (Path(folder) / "onnx" / "image_model.onnx").is_file():
        vectors["images"] = encode_images(Path(folder), pictures)
    np.savez(out, **vectors)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
