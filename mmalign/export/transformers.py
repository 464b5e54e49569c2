"""Both towers as a VisionTextDualEncoderModel of transformers, where that computes the same.

    Source -> config.json, model.safetensors             both towers, projections, temperature
           -> preprocessor_config.json, tokenizer files  what AutoProcessor reads

Its text path is `pooler_output -> Linear without bias`, and the pooler of BERT and its variants is
tanh(W x + b) of the first state. With W = s I, b = 0 and a small s this is the first state itself, scaled:

    tanh(s x) / s = x (1 - (s x)^2 / 3 + ...)

So `cls` pooling can be expressed: s is written into the pooler, and 1 / s into the projection. Such weights
are for float32 and bfloat16, not for float16. No W makes a mean or a last state out of the first one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.sentence_transformers import auto_class, write_tokenizer
from mmalign.export.source import Source
from mmalign.export.vision import preprocessor_config, vision_model
from mmalign.models.encoder import on_host
from mmalign.models.external.onnx import PREPROCESSOR
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import save_pretrained

# Both factors are exact in binary, and while |x| <= 256 the relative error is at most 2^-24 / 3 = 2e-8, below
# the rounding of float32 (6e-8). No component of a normalised state exceeds the root of its width (64 for a
# width of 4,096) times the norm's gain.
POOLER_SCALE = 2.0**-20
_ELSEWHERE = "export to sentence-transformers-router, open_clip or onnx instead"


def write_transformers(source: Source, folder: Path) -> None:
    """Write both towers to `folder`, for AutoModel and AutoProcessor.

    Raises:
        UserError: this is a text tower alone, its pooling or projection cannot be expressed, or transformers
            has no network that computes the same as the image tower.
    """
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    encoder, tower = source.both_towers("transformers"), source.tower
    text = _text_model(tower)
    vision, visual_projection = vision_model(encoder)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=encoder.config.embedding
    )
    model = VisionTextDualEncoderModel(config, vision_model=vision, text_model=text)
    tensors = {
        **{f"vision_model.{name}": tensor for name, tensor in vision.state_dict().items()},
        **{f"text_model.{name}": tensor for name, tensor in tower.trunk.state_dict().items()},
        # The pooler that passes on the first state (see above).
        "text_model.pooler.dense.weight": POOLER_SCALE * torch.eye(tower.state_width),
        "text_model.pooler.dense.bias": torch.zeros(tower.state_width),
        "visual_projection.weight": visual_projection.weight,
        "text_projection.weight": _projection(tower) / POOLER_SCALE,
        # The model has no parameter for the constant that a sigmoid loss adds to every score, so
        # `logits_per_image` lacks it. Cosines depend on neither.
        "logit_scale": encoder.model.logit_scale.reshape(()),
    }
    assert tensors.keys() == model.state_dict().keys(), tensors.keys() ^ model.state_dict().keys()
    save_pretrained(model, folder, state_dict=on_host(tensors))
    write_json(folder / PREPROCESSOR, preprocessor_config(encoder.model.image_tower))
    write_tokenizer(tower.tokenizer, tower.max_length, folder)


def _projection(tower: TextEncoder) -> Tensor:
    if isinstance(tower.projection, nn.Linear):
        return tower.projection.weight
    return torch.eye(tower.state_width)  # `text_projection: none`


def _text_model(tower: TextEncoder) -> Any:
    """The trunk as AutoModel builds it, pooler included, without memory for weights."""
    from transformers import AutoModel

    if not isinstance(tower.projection, nn.Linear | None):
        raise UserError(
            f"model.text_projection: VisionTextDualEncoderModel has one linear map; {_ELSEWHERE}"
        )
    if tower.pooling != "cls":
        raise UserError(
            f"model.text.pooling: VisionTextDualEncoderModel pools the first token, not `{tower.pooling}`; "
            f"{_ELSEWHERE}"
        )
    with torch.device("meta"):
        model = AutoModel.from_config(tower.trunk.config, trust_remote_code=False)
    pooler = getattr(model, "pooler", None)
    activation = getattr(pooler, "activation", None)
    if auto_class(tower.trunk) is not AutoModel or not isinstance(activation, nn.Tanh):
        raise UserError(
            f"model.text: a `{model.config.model_type}` model has no pooler that VisionTextDualEncoderModel "
            f"could take a text's feature from; {_ELSEWHERE}"
        )
    return model
