"""Both towers of a folder of sentence-transformers' Router or of transformers, under open_clip's names.

    Router                  -> text route, image route   -+
    VisionTextDualEncoder   -> text_model, vision_model  -+-> visual.trunk.*, visual.head.proj.weight,
                                                              text.transformer.*, text.proj.*, logit_scale

The image tower must be a network of timm (`TimmWrapperModel`), whose names are timm's own there.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.external.open_clip_weights import text_stack
from mmalign.models.projection import projection_of

_DUAL = "vision-text-dual-encoder"


def is_dual(name: str) -> bool:
    """Whether a folder or repository of transformers holds both towers.

    Raises:
        UserError: it does, in an architecture that cannot be read.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    settings = AutoConfig.from_pretrained(name)
    if settings.model_type == _DUAL:
        return True
    known = MODEL_MAPPING.get(type(settings), None)
    if hasattr(known, "get_image_features"):
        raise UserError(
            f"init_from: {name} is a `{settings.model_type}` model of transformers, whose towers cannot be "
            "taken apart here; give a run, or an export of one to open_clip"
        )
    return False


def read_dual_encoder(name: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a VisionTextDualEncoderModel, and how it pools texts.

    Its text path goes through BERT's pooler, tanh(W x + b) of the first state. Our exports write a small
    multiple of the identity there, which is undone; a trained one has no place in a text tower.

    Raises:
        UserError: that, or an image tower that is not timm's.
    """
    from transformers import VisionTextDualEncoderModel

    model: Any = VisionTextDualEncoderModel.from_pretrained(name, dtype=torch.float32)
    pooler = getattr(getattr(model.text_model, "pooler", None), "dense", None)
    scale = _multiple_of_identity(pooler)
    if scale is None:
        raise UserError(
            f"init_from: {name} has a trained pooler behind its text tower, for which there is no place "
            "here; take its text model alone, with `model.text.pretrained`"
        )
    state = {
        **_text(model.text_model, model.text_projection),
        **_image(name, model.vision_model, model.visual_projection),
        "logit_scale": model.logit_scale.detach(),
    }
    state["text.proj.weight"] = state["text.proj.weight"] * scale
    return state, "cls"


def read_router(name: str) -> tuple[dict[str, Tensor], str, Tokenizer]:
    """The weights of a sentence-transformers model with a route for texts and one for images, how it pools
    texts, and what cuts them.

    Raises:
        UserError: sentence-transformers is missing, or the routes hold other modules than our exports do.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"{name}: a sentence-transformers model; install `mmalign[export]` to read it"
        ) from None
    routes: Any = SentenceTransformer(name, device="cpu")[0].sub_modules
    text, image = _by_kind(name, routes, "text"), _by_kind(name, routes, "image")
    if len(image.get("Dense", [])) != 1 or "Pooling" not in text:
        raise UserError(f"init_from: the routes of {name} are not those of an export of mmalign")
    projection = projection_of(text.get("Dense", []), name)
    state = {
        **_text(text["Transformer"][0].auto_model, projection),
        **_image(name, image["Transformer"][0].auto_model, image["Dense"][0].linear),
    }
    mode = text["Pooling"][0].pooling_mode
    mode = mode if isinstance(mode, str) else mode[0]
    tokenizer = Tokenizer(text["Transformer"][0].tokenizer)
    return state, "last" if mode == "lasttoken" else mode, tokenizer


def _by_kind(name: str, routes: Any, route: str) -> dict[str, list[Any]]:
    """The modules of a route by the names of their classes."""
    modules: dict[str, list[Any]] = {}
    for module in dict(routes.items()).get(route, ()):
        modules.setdefault(type(module).__name__, []).append(module)
    if "Transformer" not in modules:
        raise UserError(f"init_from: {name} has no route `{route}` with a Transformer in it")
    return modules


def _multiple_of_identity(linear: nn.Linear | None) -> float | None:
    """How many times the identity a linear map without bias is; None: it is not."""
    if linear is None or linear.bias.any():
        return None
    scale = linear.weight[0, 0].item()
    is_multiple = scale != 0 and linear.weight.equal(torch.eye(len(linear.weight)) * scale)
    return scale if is_multiple else None


def _text(trunk: Any, projection: nn.Module | None) -> dict[str, Tensor]:
    state = {
        f"text.transformer.{name}": tensor
        for name, tensor in text_stack(trunk).state_dict().items()
        if not name.startswith("pooler.")
    }
    weights = {} if projection is None else projection.state_dict()
    return {**state, **{f"text.proj.{name}": tensor for name, tensor in weights.items()}}


def _image(name: str, model: Any, projection: nn.Linear) -> dict[str, Tensor]:
    if not hasattr(model, "timm_model"):
        raise UserError(
            f"init_from: the image tower of {name} is a {type(model).__name__} of transformers, whose names "
            "are not read here; give the run, or its export to open_clip"
        )
    state = {f"visual.trunk.{part}": t for part, t in model.timm_model.state_dict().items()}
    return {**state, "visual.head.proj.weight": projection.weight.detach()}
