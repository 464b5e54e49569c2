"""Dual encoders of transformers: CLIP, SigLIP, Chinese-CLIP, AltCLIP, VisionTextDualEncoder, ...

    folder or hub name -> AutoModel, AutoProcessor  -> load_dual_encoder -> ExternalModel
                       -> VisionTextDualEncoder     -> read_dual_encoder -> weights of both towers

Models without an image tower are text encoders: `load.py` reads these by `load_text_encoder`.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.console import hide_library_progress
from mmalign.core.errors import UserError
from mmalign.models.encoder import ExternalModel
from mmalign.models.external.open_clip import State, text_weights, timm_wrapper_weights
from mmalign.models.pooling import Pooling
from mmalign.models.text_tower import find_file, positions_of

# The processors of these know the one length to which texts are padded; that of SigLIP must be given it.
_KNOW_LENGTH = ("align", "siglip2", "tipsv2")


def has_both_towers(name: str) -> bool:
    """Whether the model in a folder or repository of transformers embeds texts and images."""
    from transformers import MODEL_MAPPING, AutoConfig

    kind = type(AutoConfig.from_pretrained(name, trust_remote_code=False))
    return hasattr(MODEL_MAPPING.get(kind, None), "get_image_features")


def load_dual_encoder(name: str) -> ExternalModel:
    """A model that embeds texts and images; UserError: its processor is not there."""
    from transformers import AutoModel, AutoProcessor

    hide_library_progress()
    device = distributed.device()
    model = (
        AutoModel.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
        .to(device)
        .eval()
    )
    # Our exports were trained on Pillow's pixels. transformers 5 would take torchvision's, and no name of a
    # processor in a file changes that.
    is_ours = find_file(name, "lineage.json") is not None
    backend = {"backend": "pil"} if is_ours else {}
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **backend)
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise UserError(f"{name}: no processor of texts and images; save the model's beside it")
    padding = _padding(model, processor.tokenizer)

    def texts(batch: list[str]) -> Tensor:
        inputs = processor(text=batch, return_tensors="pt", **padding).to(device)
        return model.get_text_features(**inputs).pooler_output

    def images(batch: list[Image.Image]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt").to(device)
        return model.get_image_features(**inputs).pooler_output

    return ExternalModel(name, "transformers", model, texts, images, processor.tokenizer)


def _padding(model: Any, tokenizer: Any) -> dict[str, Any]:
    kind = model.config.model_type
    if kind in _KNOW_LENGTH:
        return {"truncation": True}
    # SigLIP (arXiv 2303.15343) reads the state of the last position and was trained with padding up to it.
    padding = "max_length" if kind == "siglip" else True
    # As many tokens as the tokenizer says, but no more than the text tower has positions for.
    longest = tokenizer.model_max_length
    longest = min(longest, positions_of(model, model.config.text_config) or longest)
    return {"padding": padding, "truncation": True, "max_length": longest}


def read_dual_encoder(name: str) -> tuple[State, Pooling]:
    """The weights of a VisionTextDualEncoderModel under open_clip's names, and how it pools texts.

    Raises:
        UserError: it is of another architecture, or has a trained pooler behind its text tower, or an image
            tower that is not timm's.
    """
    from transformers import AutoConfig, VisionTextDualEncoderModel

    kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if kind != "vision-text-dual-encoder":
        raise UserError(
            f"init_from: {name} is a `{kind}`, which cannot be taken apart here; give a run, or an export"
        )
    hide_library_progress()
    model: Any = VisionTextDualEncoderModel.from_pretrained(
        name, trust_remote_code=False, dtype=torch.float32
    )
    # Its text path goes through BERT's pooler, tanh(W x + b) of the first state. Our exports write a small
    # multiple of the identity there (a power of two, so exactly), where tanh is linear; the projection takes
    # it back.
    pooler: Any = getattr(getattr(model.text_model, "pooler", None), "dense", None)
    scale = 0.0 if pooler is None or pooler.bias.any() else pooler.weight[0, 0].item()
    if not scale or not pooler.weight.equal(torch.eye(len(pooler.weight)) * scale):
        raise UserError(
            f"init_from: {name} has a trained pooler behind its text tower; take the text model alone, with "
            "`model.text.pretrained`"
        )
    state = {
        **text_weights(model.text_model, model.text_projection),
        **timm_wrapper_weights(name, model.vision_model, model.visual_projection),
        "logit_scale": model.logit_scale.detach(),
    }
    state["text.proj.weight"] = state["text.proj.weight"] * scale
    return state, "cls"
