"""The image tower as a model of transformers, with the preprocessing that computes our pixels.

Encoder -> a network of timm             -> TimmWrapperModel  -+
        -> open_clip's around one        -> TimmWrapperModel  -+-> pooler_output -> Linear -> shared space
        -> open_clip's VisionTransformer -> CLIPVisionModel   -+
        -> preprocessor_config.json: RGB, resized to the square by Pillow, normalised
"""

from typing import Any

from torch import Tensor, nn

from mmalign.core.errors import UserError, one_line
from mmalign.models.encoder import Encoder
from mmalign.models.image_tower import ImageTower

# Our names of the parts of open_clip's VisionTransformer, and what CLIPVisionModel calls them.
_CLIP_NAMES = (
    ("conv1.", "embeddings.patch_embedding."),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.", ".self_attn."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def vision_model(encoder: Encoder) -> tuple[Any, nn.Linear]:
    """The image tower in transformers, and the projection that leads from there into the shared space.

    Returns:
        A model whose `pooler_output` is (B, F), and `Linear(F, D, bias=False)`; both in evaluation mode and
        on the encoder's device.

    Raises:
        UserError: transformers has no network that computes the same.
    """
    trunk = encoder.model.image_tower.trunk
    try:
        model, weight_DF = _equal(encoder, encoder.model.image_projection.weight.detach())
    except (RuntimeError, TypeError, ValueError) as error:  # other weights, or no such option
        raise UserError(
            "model.image: transformers has no network that computes the same as this "
            f"{type(trunk).__name__} ({one_line(error, 150)}); export to open_clip or onnx instead"
        ) from None
    projection = nn.Linear(weight_DF.shape[1], weight_DF.shape[0], bias=False)
    projection.weight = nn.Parameter(weight_DF, requires_grad=False)
    return model.to(encoder.device).eval(), projection.to(encoder.device)


def preprocessor_config(tower: ImageTower) -> dict[str, Any]:
    """What `preprocessor_config.json` holds: `Preprocess` of an evaluation in the words of transformers."""
    return {
        # The name that transformers 4 and 5 and transformers.js know. transformers 5 resizes by torchvision
        # where it finds it, and such pixels differ from Pillow's by 1 of 255 here and there, unless whoever
        # loads this gives `backend="pil"` too.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,  # also lays transparency on white
        "do_resize": True,
        "size": {"height": tower.size, "width": tower.size},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower.architecture.mean),
        "image_std": list(tower.architecture.std),
    }


def _equal(encoder: Encoder, weight_DF: Tensor) -> tuple[Any, Tensor]:
    tower = encoder.model.image_tower
    trunk: Any = tower.trunk
    if tower.architecture.kind == "timm":
        return _timm_wrapper(trunk, tower.architecture.arguments, tower.width), weight_DF
    kind = type(trunk).__name__
    # Linear maps at the end of an open_clip network become part of the projection.
    if kind == "TimmModel":
        parts = {name: one for name, one in trunk.head.named_children() if name != "drop"}
        last: Any = parts.pop("proj", None)
        if parts or (last is not None and last.bias is not None):
            raise ValueError("its head is not one linear map without bias")
        weight_DF = weight_DF if last is None else _product(weight_DF, last.weight.detach())
        return _timm_wrapper(trunk.trunk, {}, weight_DF.shape[1]), weight_DF
    if kind == "VisionTransformer":
        return _clip_vision(trunk), _product(weight_DF, trunk.proj.detach().T)
    raise ValueError(f"it is a {kind}")


def _product(left: Tensor, right: Tensor) -> Tensor:
    # In float64, so that the product of the two maps is rounded once.
    return (left.double() @ right.double()).float()


def _timm_wrapper(trunk: Any, arguments: dict[str, Any], width: int) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    config = TimmWrapperConfig(
        architecture=trunk.pretrained_cfg["architecture"],
        model_args=arguments,
        num_labels=0,
        num_features=width,  # where sentence-transformers looks for the width
        hidden_size=width,  # where a dual encoder of transformers does
    )
    model = TimmWrapperModel(config)
    model.timm_model.load_state_dict(trunk.state_dict())
    return model


def _clip_vision(trunk: Any) -> Any:
    """open_clip's own vision transformer, where it is built as CLIP's (arXiv 2103.00020)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    block = trunk.transformer.resblocks[0]
    if type(block).__name__ != "ResidualAttentionBlock":
        raise ValueError("its blocks are not those of CLIP")
    if trunk.pool_type != "tok":  # no weights show it, and CLIPVisionModel pools the class token
        raise ValueError(f"its pooling is `{trunk.pool_type}`")
    quick = type(block.mlp.gelu).__name__ == "QuickGELU"
    config = CLIPVisionConfig(
        hidden_size=trunk.class_embedding.shape[0],
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(trunk.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=trunk.image_size[0],
        patch_size=trunk.patch_size[0],
        hidden_act="quick_gelu" if quick else "gelu",
        layer_norm_eps=trunk.ln_post.eps,
    )
    model = CLIPVisionModel(config)
    model.load_state_dict(_clip_tensors(trunk.state_dict()))
    return model


def _clip_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in state.items():
        if name == "proj":  # part of the projection
            continue
        for ours, theirs in _CLIP_NAMES:
            name = name.replace(ours, theirs)
        if ".in_proj_" in name:  # torch keeps queries, keys and values in one
            stem, _, kind = name.rpartition(".in_proj_")
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{stem}.{part}_proj.{kind}"] = rows
        else:
            tensors[name] = tensor
    return tensors
