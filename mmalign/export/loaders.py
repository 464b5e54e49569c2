"""How an exported folder is loaded where mmalign is not installed: one function per library.

    usage: python loaders.py PACKAGE FOLDER PROBES OUT.npz

PROBES is a folder of `texts.json` (a list of strings) and images (`000.image` and on). OUT.npz gets `texts`
(n, D) and, where the format holds an image tower, `images` (m, D), float32; of a trunk alone `states` (n, F).
This program imports nothing of mmalign, and each function its own library only: `verify.py` runs it in clean
processes, and users may copy it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE = 8  # of ONNX graphs, so that they run with batches of several sizes and lengths


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def upright(probes: Path) -> list[Any]:
    """The images in RGB, turned as their EXIF field says, which no library does by itself."""
    from PIL import Image, ImageOps  # a text tower alone loads without Pillow

    opened = (ImageOps.exif_transpose(Image.open(path)) for path in sorted(probes.glob("*.image")))
    return [image.convert("RGB") for image in opened]


def sentence_transformers(folder: Path, texts: list[str], probes: Path) -> dict[str, Any]:
    """Texts, and images where the folder has a route for them."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    has_images = (folder / "router_config.json").is_file()
    images = {"images": model.encode(upright(probes))} if has_images else {}
    # Without the prompts that the folder may name: the other formats have none.
    return {"texts": model.encode(texts, prompt=""), **images}


def transformers(folder: Path, texts: list[str], probes: Path) -> dict[str, Any]:
    """A VisionTextDualEncoderModel, or the trunk of a text tower: the mean of the states of each text's
    tokens, where pooling and projection begin."""
    import torch
    from torch.nn.functional import normalize
    from transformers import AutoModel, AutoModelForTextEncoding, AutoProcessor, AutoTokenizer

    config = read_json(folder / "config.json")
    is_dual = config["model_type"] == "vision-text-dual-encoder"
    # The encoder half of T5 has a class of its own: AutoModel would add a decoder with random weights.
    is_half = config["architectures"][0].endswith("EncoderModel") and not is_dual
    auto_class = AutoModelForTextEncoding if is_half else AutoModel
    model = auto_class.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        if not is_dual:
            mask_NL1 = tokens["attention_mask"].unsqueeze(-1)
            state_NLF = model(**tokens).last_hidden_state
            return {"states": (state_NLF * mask_NL1).sum(1) / mask_NL1.sum(1)}
        # Pillow's pixels, as in training: where torchvision is installed the library would resize with it.
        loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=False, backend="pil")
        processor = loaded.image_processor
        pixels = processor(images=upright(probes), return_tensors="pt")
        return {
            "texts": normalize(model.get_text_features(**tokens).pooler_output, dim=-1),
            "images": normalize(model.get_image_features(**pixels).pooler_output, dim=-1),
        }


def open_clip(folder: Path, texts: list[str], probes: Path) -> dict[str, Any]:
    """Both towers, from wherever the folder lies now.

    open_clip_config.json names the folder that the towers' architecture is read from. Where the folder was
    moved or downloaded, its new path is given beside the configuration. open_clip fixes texts (ftfy, white
    space) before it tokenizes them.
    """
    import open_clip
    import torch

    name = f"local-dir:{folder}"
    config = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "hf_model_name": str(folder)}
    vision = dict(config["vision_cfg"])
    if ":" in vision.get("timm_model_name", ""):  # not a network that open_clip builds itself
        vision["timm_model_name"] = name
    model, preprocess = open_clip.create_model_from_pretrained(
        name, text_cfg=text, vision_cfg=vision
    )
    model.eval()
    pixels = torch.stack([preprocess(image) for image in upright(probes)])
    with torch.inference_mode():
        return {
            "texts": model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True),
            "images": model.encode_image(pixels, normalize=True),
        }


def onnxruntime(folder: Path, texts: list[str], probes: Path) -> dict[str, Any]:
    """The towers in ONNX Runtime, with neither torch nor transformers."""
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    settings = read_json(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # As the model was trained: texts are cut, and padded within their batch.
    tokenizer.enable_truncation(settings["model_max_length"])
    padding = settings["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    session, rows = InferenceSession(folder / "onnx" / "text_model.onnx"), []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = tokenizer.encode_batch(texts[start : start + BATCH_SIZE])
        inputs = {
            "input_ids": np.array([one.ids for one in batch], np.int64),
            "attention_mask": np.array([one.attention_mask for one in batch], np.int64),
        }
        rows.append(session.run(None, inputs)[0])
    vectors = {"texts": np.concatenate(rows)}
    if (folder / "onnx" / "vision_model.onnx").is_file():
        session = InferenceSession(folder / "onnx" / "vision_model.onnx")
        pixel_BCHW = np.stack([normalised(folder, image) for image in upright(probes)])
        vectors["images"] = session.run(None, {"pixel_values": pixel_BCHW})[0]
    return vectors


def normalised(folder: Path, image: Any) -> np.ndarray:
    """The complete image, resized by Pillow and normalised: (3, H, W) float32."""
    settings = read_json(folder / "preprocessor_config.json")
    size = (settings["size"]["width"], settings["size"]["height"])
    value = np.asarray(image.resize(size, settings["resample"]), np.float32) / 255
    mean, std = (np.asarray(settings[name], np.float32) for name in ("image_mean", "image_std"))
    return ((value - mean) / std).transpose(2, 0, 1)


if __name__ == "__main__":
    package, folder, probes, out = sys.argv[1:]
    vectors = globals()[package](Path(folder), read_json(Path(probes) / "texts.json"), Path(probes))
    np.savez(out, **vectors)
