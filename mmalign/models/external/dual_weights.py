"""Both towers of a sentence-transformers Router or of a transformers model, under open_clip's names.

    Router                  -> text route, image route   -+
    VisionTextDualEncoder   -> text_model, vision_model  -+-> visual.trunk.*, visual.head.proj.weight,
                                                              text.transformer.*, text.proj.*, logit_scale

The image tower must be a network of timm (`TimmWrapperModel`), which keeps timm's own names.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.external.open_clip_weights import text_stack
from mmalign.models.external.sentence_transformers import open_sentence_transformer
from mmalign.models.external.transformers import has_both_towers
from mmalign.models.pooling import Pooling, pooling_of_sentence_transformers
from mmalign.models.projection import projection_of

_DUAL = "vision-text-dual-encoder"


def is_dual(name: str) -> bool:
    """Whether a folder or repository of transformers holds both towers.

    Raises:
        UserError: it does, in an architecture that cannot be read.
    """
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(name)
    if settings.model_type != _DUAL and has_both_towers(settings):
        raise UserError(
            f"init_from: {name} is a `{settings.model_type}` model of transformers, whose towers cannot be "
            "taken apart here; give a run, or an export of one to open_clip"
        )
    return bool(settings.model_type == _DUAL)


def read_dual_encoder(name: str) -> tuple[dict[str, Tensor], Pooling]:
    """The weights of a VisionTextDualEncoderModel, and how it pools texts.

    Raises:
        UserError: it has a trained pooler behind its text tower, or an image tower that is not timm's.
    """
    from transformers import VisionTextDualEncoderModel

    model: Any = VisionTextDualEncoderModel.from_pretrained(name, dtype=torch.float32)
    # Its text path goes through BERT's pooler, tanh(W x + b) of the first state. Our exports write a small
    # multiple of the identity there, where tanh is linear; the projection takes it back.
    pooler = getattr(getattr(model.text_model, "pooler", None), "dense", None)
    scale = _multiple_of_identity(pooler)
    if scale is None:
        raise UserError(
            f"init_from: {name} has a trained pooler behind its text tower, which has no counterpart here; "
            "take its text model alone, with `model.text.pretrained`"
        )
    state = {
        **_text(model.text_model, model.text_projection),
        **_image(name, model.vision_model, model.visual_projection),
        "logit_scale": model.logit_scale.detach(),
    }
    state["text.proj.weight"] = state["text.proj.weight"] * scale
    return state, "cls"


def read_router(name: str) -> tuple[dict[str, Tensor], Pooling, Tokenizer]:
    """The weights of a sentence-transformers model with a text route and an image route, how it pools texts,
    and its tokenizer.

    Raises:
        UserError: sentence-transformers is missing, or the routes hold other modules than our exports do.
    """
    routes = dict(open_sentence_transformer(name)[0].sub_modules.items())
    text, image = (_by_kind(name, routes, route) for route in ("text", "image"))
    if len(image.get("Dense", [])) != 1 or "Pooling" not in text:
        raise UserError(f"init_from: the routes of {name} are not those of an export of mmalign")
    projection = projection_of(text.get("Dense", []), name)
    state = {
        **_text(text["Transformer"][0].auto_model, projection),
        **_image(name, image["Transformer"][0].auto_model, image["Dense"][0].linear),
    }
    pooling = pooling_of_sentence_transformers(text["Pooling"][0], name)
    return state, pooling, Tokenizer(text["Transformer"][0].tokenizer)


def _by_kind(name: str, routes: dict[str, Any], route: str) -> dict[str, list[Any]]:
    """The modules of a route by the names of their classes."""
    modules: dict[str, list[Any]] = {}
    for module in routes.get(route, ()):
        modules.setdefault(type(module).__name__, []).append(module)
    if "Transformer" not in modules:
        raise UserError(f"init_from: {name} has no route `{route}` with a Transformer in it")
    return modules


def _multiple_of_identity(linear: nn.Linear | None) -> float | None:
    """s where a linear map is s times the identity, without bias; None: it is not."""
    # Exactly so, and not nearly: our exports write a power of two.
    if linear is None or linear.bias.any():
        return None
    scale = linear.weight[0, 0].item()
    is_multiple = scale != 0 and linear.weight.equal(torch.eye(len(linear.weight)) * scale)
    return scale if is_multiple else None


def _text(trunk: Any, projection: nn.Module | None) -> dict[str, Tensor]:
    stack = text_stack(trunk).state_dict()
    weights = {} if projection is None else projection.state_dict()
    # The zeros that our exports write for an unused pooler have no place in open_clip's model.
    return {
        **{f"text.transformer.{n}": t for n, t in stack.items() if not n.startswith("pooler.")},
        **{f"text.proj.{n}": t for n, t in weights.items()},
    }


def _image(name: str, model: Any, projection: nn.Linear) -> dict[str, Tensor]:
    if not hasattr(model, "timm_model"):
        raise UserError(
            f"init_from: the image tower of {name} is a {type(model).__name__} of transformers, whose names "
            "are not read here; give the run, or its export to open_clip"
        )
    state = {f"visual.trunk.{n}": t for n, t in model.timm_model.state_dict().items()}
    return {**state, "visual.head.proj.weight": projection.weight.detach()}
