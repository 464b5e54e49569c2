"""The towers in ONNX Runtime, with neither torch nor transformers: FOLDER, texts and images -> vectors.

    tokenizer.json -> onnx/text_model.onnx            preprocessor_config.json -> onnx/image_model.onnx

usage: python load_onnxruntime.py FOLDER PROBES OUT.npz
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

BATCH_SIZE = 8  # so that the graphs run with batches of several sizes and lengths


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(path: Path, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The one output of a graph, over all batches."""
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


def token_batches(folder: Path, texts: list[str]) -> list[dict[str, np.ndarray]]:
    """Tokens as the model was trained on them: texts are cut, and padded within their batch."""
    settings = read_json(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(settings["model_max_length"])
    padding = settings["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    encoded = [
        tokenizer.encode_batch(texts[start : start + BATCH_SIZE])
        for start in range(0, len(texts), BATCH_SIZE)
    ]
    return [
        {
            "input_ids": np.array([one.ids for one in batch], np.int64),
            "attention_mask": np.array([one.attention_mask for one in batch], np.int64),
        }
        for batch in encoded
    ]


def pixels(settings: dict[str, Any], path: Path) -> np.ndarray:
    """The whole image, upright, resized by Pillow and normalised: (3, H, W) float32."""
    size = (settings["size"]["width"], settings["size"]["height"])
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    value = np.asarray(image.resize(size, Image.Resampling(settings["resample"])), np.float32) / 255
    mean = np.asarray(settings["image_mean"], np.float32)
    std = np.asarray(settings["image_std"], np.float32)
    return ((value - mean) / std).transpose(2, 0, 1)


def main(folder: Path, probes: Path, out: str) -> None:
    texts = token_batches(folder, read_json(probes / "texts.json"))
    vectors = {"texts": run(folder / "onnx" / "text_model.onnx", texts)}
    if (folder / "onnx" / "image_model.onnx").is_file():
        settings = read_json(folder / "preprocessor_config.json")
        images = np.stack([pixels(settings, path) for path in sorted(probes.glob("*.image"))])
        vectors["images"] = run(folder / "onnx" / "image_model.onnx", [{"pixel_values": images}])
    np.savez(out, **vectors)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
