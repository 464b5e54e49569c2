"""Both towers as an open_clip folder, loadable without a line of ours.

    Encoder -> open_clip_config.json, open_clip_model.safetensors   both towers, as open_clip builds them
            -> config.json, tokenizer files                         what transformers and timm read of them
            -> loaded by open_clip, compared with the encoder       an error where they do not agree

open_clip (3.3.0) asks transformers for the architecture of a text tower, and timm for an image tower with
options, each by a *name*: a hub id, or a path. What is written is the `home` that the folder will have; the
card says how one that was moved is loaded. One config.json serves both libraries, and that of
sentence-transformers beside them: none looks at the other's fields.

The pixels of an upright RGB picture of any size are ours bit by bit. What open_clip does otherwise, whatever
the model: it mends texts with ftfy and squeezes white space before the tokenizer; it does not turn pictures
upright, lays no transparency on white, and resizes pictures with a palette before it makes them RGB. Pictures
that were turned upright and made RGB beforehand get our vectors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.source import Source
from mmalign.export.tokenizer import write_tokenizer
from mmalign.models.encoder import Encoder
from mmalign.models.external.open_clip import CONFIG, WEIGHTS, load_open_clip_folder
from mmalign.models.external.open_clip_weights import to_open_clip
from mmalign.models.image_tower import OpenClipTower, TimmTower, takes_image_size
from mmalign.models.pooling import POOLINGS

# Of a model of transformers, what says nothing about how it computes.
_NO_ARCHITECTURE = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
PROBES = (
    "",
    "two dogs",
    "zwei Hunde rennen",
    "две собаки",
    "كلبان",
    "二匹の犬",
    "two dogs run " * 40,
)
TOLERANCE = 1e-5  # of one component of a vector of unit length; rounding stays below 1e-6


def write_open_clip(source: Source, folder: Path, home: str) -> None:
    """Write both towers to `folder`.

    Args:
        home: where the folder will be found by its name: its absolute path, or its name on the hub
            (`someone/model`).

    Raises:
        UserError: there is no image tower, or open_clip cannot express the model, or computes other vectors
            from it.
    """
    encoder = source.both_towers("open_clip")
    write_json(
        folder / CONFIG,
        {"model_cfg": _model_config(encoder, home), "preprocess_cfg": _preprocess_config(encoder)},
    )
    write_json(folder / "config.json", {**_text_facts(encoder), **_image_facts(encoder)})
    save_file(to_open_clip(encoder.model), folder / WEIGHTS[0])
    write_tokenizer(encoder.tokenizer, encoder.config.text.max_length, folder)
    _must_agree(encoder, folder)


def _model_config(encoder: Encoder, home: str) -> dict[str, Any]:
    """What open_clip builds the two towers from."""
    config = encoder.config
    timm_home = f"local-dir:{home}" if Path(home).is_absolute() else f"hf-hub:{home}"
    image = config.image
    vision = (
        _timm_vision(image, timm_home)
        if isinstance(image, TimmTower)
        else _open_clip_vision(image, encoder.model.image_tower.size)
    )
    bias = encoder.model.logit_bias
    return {
        "embed_dim": config.embedding,
        **vision,
        "text_cfg": _text_config(encoder, home),
        **({} if bias is None else {"init_logit_bias": bias.item()}),
    }


def _timm_vision(image: TimmTower, home: str) -> dict[str, Any]:
    vision = {
        "timm_model_name": home,
        "timm_model_pretrained": False,
        "timm_pool": image.options.get("global_pool", ""),  # empty: the network's own
        "timm_proj": "linear",
        "image_size": image.image_size,
    }
    return {"vision_cfg": vision}


def _open_clip_vision(image: OpenClipTower, size: int) -> dict[str, Any]:
    """The section that the tower was built from, and the one field beside it that concerns the tower."""
    import open_clip

    base: Any = open_clip.get_model_config(image.name) or {}
    merged = {**base, **image.options}
    vision = {**base.get("vision_cfg", {}), **image.options.get("vision_cfg", {})}
    vision["image_size"] = size
    if ":" in vision.get("timm_model_name", ""):
        raise UserError(
            f"model.image.name: the network of `{image.name}` is described in another folder; name it "
            "under `kind: timm` to export it to open_clip"
        )
    if vision.get("timm_proj") in ("", "none"):
        vision["timm_proj"] = "linear"  # ours follows, where the network itself ends without one
    activation = {"quick_gelu": True} if merged.get("quick_gelu") else {}
    return {"vision_cfg": vision, **activation}


def _text_config(encoder: Encoder, home: str) -> dict[str, Any]:
    from open_clip.hf_configs import arch_dict

    text, kind = encoder.config.text, encoder.model.text_tower.trunk.config.model_type
    if kind not in arch_dict:
        raise UserError(
            f"model.text: open_clip cannot hold a text tower of type `{kind}`, only "
            f"{', '.join(sorted(arch_dict))}; export to sentence-transformers instead"
        )
    pooler = POOLINGS[text.pooling].open_clip
    if pooler is None:
        known = [name for name, one in POOLINGS.items() if one.open_clip is not None]
        raise UserError(
            f"model.text.pooling: open_clip cannot pool the `{text.pooling}` token of a text, only "
            f"{' and '.join(known)}; export to sentence-transformers instead"
        )
    return {
        "hf_model_name": home,
        "hf_model_pretrained": False,
        "hf_tokenizer_name": home,
        "hf_pooler_type": pooler,
        "hf_proj_type": encoder.config.text_projection,
        "context_length": text.max_length,
        "vocab_size": encoder.tokenizer.vocabulary,
    }


def _preprocess_config(encoder: Encoder) -> dict[str, Any]:
    """Our preparation of pictures in open_clip's words: the whole picture, squeezed to the square."""
    tower = encoder.model.image_tower
    return {
        "size": tower.size,
        "mean": list(tower.mean),
        "std": list(tower.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def _text_facts(encoder: Encoder) -> dict[str, Any]:
    """The fields of config.json that transformers reads."""
    from transformers import MODEL_MAPPING

    trunk = encoder.model.text_tower.trunk
    is_half = MODEL_MAPPING[type(trunk.config)] is not type(trunk)
    # open_clip builds the whole encoder-decoder of this type and keeps its encoder.
    facts = json.loads(trunk.config.to_json_string())
    kept = {name: value for name, value in facts.items() if name not in _NO_ARCHITECTURE}
    return {**kept, "is_encoder_decoder": is_half}


def _image_facts(encoder: Encoder) -> dict[str, Any]:
    """The fields of config.json that timm reads; none for a network of open_clip's own."""
    image, tower = encoder.config.image, encoder.model.image_tower
    if not isinstance(image, TimmTower):
        return {}
    size = {"img_size": image.image_size} if takes_image_size(image.name) else {}
    return {
        "architecture": image.name.split(".")[0],  # without the tag of its weights
        "model_args": {"num_classes": 0, **size, **image.options},
        "pretrained_cfg": {
            "input_size": [3, tower.size, tower.size],
            "mean": list(tower.mean),
            "std": list(tower.std),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    }


@torch.no_grad()
def _must_agree(encoder: Encoder, folder: Path) -> None:
    """Stop where open_clip loads something else from the folder: a pooling or an option that it drops."""
    try:
        model, _, tokenize = load_open_clip_folder(folder, str(encoder.device))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model: open_clip cannot build these towers ({reason})") from None
    size = encoder.model.image_tower.size
    noise = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    image_BCHW = noise.to(encoder.device)
    ours_BD = encoder.model.encode_image(image_BCHW)
    of_images = (model.encode_image(image_BCHW, normalize=True) - ours_BD).abs().max().item()
    theirs_ND = model.encode_text(tokenize(list(PROBES)).to(encoder.device), normalize=True)
    of_texts = np.abs(theirs_ND.cpu().numpy() - encoder.encode_texts(PROBES)).max()
    for section, difference in (("image", of_images), ("text", float(of_texts))):
        if not difference <= TOLERANCE:
            raise UserError(
                f"model.{section}: open_clip loads this tower but computes other vectors (off by "
                f"{difference:.1g}), so it drops one of its options; export to sentence-transformers instead"
            )
