"""Dual encoders of transformers: CLIP, SigLIP, Chinese-CLIP, AltCLIP, VisionTextDualEncoder, ...

    folder or hub name -> AutoModel, AutoProcessor -> ExternalModel

Models without an image tower are text encoders: `load.py` reads these by `load_text_encoder`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.models.encoder import has_file
from mmalign.models.external.model import ExternalModel

# The processors of these know the one length to which texts are padded; that of SigLIP must be given it.
_KNOW_LENGTH = ("align", "siglip2", "tipsv2")


def has_both_towers(settings: Any) -> bool:
    """Whether a configuration of transformers is of a model with both towers."""
    from transformers import MODEL_MAPPING

    return hasattr(MODEL_MAPPING.get(type(settings), None), "get_image_features")


def load_dual_encoder(name: str) -> ExternalModel:
    """A model that embeds texts and images.

    Raises:
        UserError: its processor is not there.
    """
    from transformers import AutoModel, AutoProcessor

    device = distributed.device()
    model = AutoModel.from_pretrained(name, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(name, **_backend(name))
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise UserError(f"{name}: no processor of texts and images; save the model's beside it")
    padding = _padding(model, processor.tokenizer)

    def texts(batch: list[str]) -> Tensor:
        inputs = processor(text=batch, return_tensors="pt", **padding).to(device)
        return _features(model.get_text_features(**inputs))

    def images(batch: list[Image.Image]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt").to(device)
        return _features(model.get_image_features(**inputs))

    return ExternalModel(name, "transformers", model, texts, images)


def _backend(name: str) -> dict[str, str]:
    """Pillow, where the model's file names a processor that computes with it; transformers ignores that."""
    from transformers.utils import cached_file

    if not has_file(name, "preprocessor_config.json"):
        return {}
    file = Path(str(cached_file(name, "preprocessor_config.json")))
    kind = json.loads(file.read_text(encoding="utf-8")).get("image_processor_type", "")
    return {"backend": "pil"} if kind.endswith("Pil") else {}


def _padding(model: Any, tokenizer: Any) -> dict[str, Any]:
    """How texts are cut and padded, as keywords of the processor."""
    kind = model.config.model_type
    if kind in _KNOW_LENGTH:
        return {"truncation": True}
    # SigLIP (arXiv 2303.15343) reads the state of the last position and was trained with padding up to it.
    padding = "max_length" if kind == "siglip" else True
    return {"padding": padding, "truncation": True, "max_length": _longest(model, tokenizer)}


def _longest(model: Any, tokenizer: Any) -> int:
    """How many tokens the text tower takes: as its tokenizer says, but no more than it has positions for."""
    positions = model.config.text_config.max_position_embeddings
    # RoBERTa and its variants count positions from behind the id of their padding token.
    tables = [m for name, m in model.named_modules() if name.endswith(".position_embeddings")]
    offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return int(min(tokenizer.model_max_length, positions - max(offsets, default=0)))


def _features(output: Any) -> Tensor:
    # transformers 5 returns an output whose pooled state is the feature, 4 the feature itself.
    return output if isinstance(output, Tensor) else output.pooler_output
