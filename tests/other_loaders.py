"""What people call on an exported folder beside the loaders of `verify.py`: one function per call.

    usage: python other_loaders.py NAME FOLDER OUT.npz

This program imports nothing of mmalign, and each function its own library only, so that it also runs where
only that library is installed (test_clean_environments.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ["two dogs run and stop", "a red ball"]
LONG = "two dogs run and " * 600


def gradient() -> Any:
    """An image that no resize leaves as it is."""
    from PIL import Image

    ramp = np.arange(50 * 70 * 3, dtype=np.uint32).reshape(50, 70, 3)
    return Image.fromarray((ramp * 2654435761 >> 24).astype(np.uint8))


def image_processor(folder: Path) -> dict[str, Any]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return {"pixels": processor(images=[gradient()], return_tensors="np")["pixel_values"]}


def tokenizer(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)
    ids = tokens(TEXTS)["input_ids"]
    return {"decoded": tokens.batch_decode(ids, skip_special_tokens=True)}


def pipeline(folder: Path) -> dict[str, Any]:
    """The states of a text that is longer than the model takes; without `truncation` torch raises."""
    from transformers import pipeline

    extract = pipeline("feature-extraction", model=str(folder), device="cpu")
    return {"long_states": np.asarray(extract(LONG, truncation=True))}


def sentence_transformers_onnx(folder: Path) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    file = {"file_name": "text_model.onnx"}
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=file)
    return {"texts": model.encode(TEXTS)}


def sentence_transformers_trainer(folder: Path) -> dict[str, Any]:
    """Two steps, saved and loaded again."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    model = SentenceTransformer(str(folder), device="cpu")
    before = model.encode(TEXTS)
    out = folder.parent / "trained"
    arguments = SentenceTransformerTrainingArguments(
        str(out / "steps"), max_steps=2, learning_rate=0.01, report_to="none", use_cpu=True
    )
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    loss = losses.MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, pairs, loss=loss).train()
    model.save_pretrained(str(out / "saved"))
    loaded = SentenceTransformer(str(out / "saved"), device="cpu")
    return {"before": before, "trained": model.encode(TEXTS), "reloaded": loaded.encode(TEXTS)}


def open_clip_moved(folder: Path) -> dict[str, Any]:
    """As the card says for a folder that was moved."""
    import open_clip
    import torch

    config = open_clip.get_model_config(f"local-dir:{folder}")
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}",
        text_cfg={**config["text_cfg"], "hf_model_name": str(folder)},
        vision_cfg={**config["vision_cfg"], "timm_model_name": f"local-dir:{folder}"},
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        texts = model.eval().encode_text(tokens, normalize=True)
        images = model.encode_image(preprocess(gradient())[None], normalize=True)
    return {"texts": texts, "images": images}


if __name__ == "__main__":
    name, path, out = sys.argv[1:]
    found = {key: np.asarray(one) for key, one in globals()[name](Path(path)).items()}
    np.savez(out, **found)
    sys.stderr.write(json.dumps(sorted(found)) + "\n")
