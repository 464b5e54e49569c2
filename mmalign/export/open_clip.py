"""Both towers as an open_clip folder, loadable with no code of ours.

    Encoder -> open_clip_config.json, open_clip_model.safetensors   both towers, as open_clip builds them
            -> config.json, tokenizer files                         what transformers and timm read of them

The pixels of an upright RGB image of any size are ours bit by bit. What open_clip does otherwise, whatever
the model: it fixes texts with ftfy and squeezes white space before the tokenizer. It does not turn images
upright, lays no transparency on white, and resizes images with a palette before it makes them RGB.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.sentence_transformers import write_tokenizer
from mmalign.export.source import Source
from mmalign.export.vision import preprocessor_config
from mmalign.models.encoder import Encoder
from mmalign.models.external.onnx import PREPROCESSOR
from mmalign.models.external.open_clip import CONFIG, WEIGHTS, to_open_clip
from mmalign.models.pooling import POOLINGS

_ELSEWHERE = "export to sentence-transformers instead"
# Fields of a configuration of transformers that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def write_open_clip(source: Source, folder: Path, home: str) -> None:
    """Write both towers to `folder`.

    Args:
        home: where the folder will be found: its absolute path, or its name on the hub (`someone/model`).

    Raises:
        UserError: there is no image tower, or open_clip cannot express the model.
    """
    from transformers import MODEL_MAPPING

    # open_clip (3.3.0) asks transformers for the architecture of a text tower, and timm for an image tower
    # with options, each by a name: a hub id, or a path. The card says how a folder that was moved is loaded.
    encoder = source.both_towers("open_clip")
    tower, bias = encoder.model.image_tower, encoder.model.logit_bias
    image = tower.architecture
    model = {
        "embed_dim": encoder.config.embedding,
        **_vision(encoder, home),
        "text_cfg": _text(encoder, home),
        **({} if bias is None else {"init_logit_bias": bias.item()}),
    }
    pixels = {"mean": list(image.mean), "std": list(image.std), "interpolation": "bicubic"}
    # Our preparation of images in open_clip's words: the whole image, resized to the square.
    preprocess = {"size": tower.size, **pixels, "resize_mode": "squash"}
    write_json(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": preprocess})
    trunk = encoder.model.text_tower.trunk
    text = json.loads(trunk.config.to_json_string())
    facts = {name: value for name, value in text.items() if name not in _IRRELEVANT}
    # open_clip builds the complete encoder-decoder of T5 and keeps its encoder.
    facts["is_encoder_decoder"] = MODEL_MAPPING[type(trunk.config)] is not type(trunk)
    if image.kind == "timm":
        # The fields that timm reads of the same file; sentence-transformers reads its own ones.
        size = [3, tower.size, tower.size]
        facts |= {
            "architecture": image.name.split(".")[0],  # without the tag of its weights
            "model_args": {"num_classes": 0, **image.arguments},
            "pretrained_cfg": {"input_size": size, **pixels, "crop_pct": 1.0},
        }
        # By timm's fields AutoImageProcessor takes the folder for a model of timm, and looks for the class of
        # its processor here; the settings it takes from the file for them.
        facts["image_processor_type"] = preprocessor_config(tower)["image_processor_type"]
    write_json(folder / "config.json", facts)
    write_json(folder / PREPROCESSOR, preprocessor_config(tower))
    save_file(to_open_clip(encoder.model), folder / WEIGHTS[0])
    write_tokenizer(encoder.tokenizer, encoder.max_length, folder)


def set_home(folder: Path, repo_id: str) -> None:
    """Let the configuration in an exported folder, if it has one, name a repository of the hub instead."""
    path = folder / CONFIG
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    text, vision = config["model_cfg"]["text_cfg"], config["model_cfg"]["vision_cfg"]
    text |= {"hf_model_name": repo_id, "hf_tokenizer_name": repo_id}
    if ":" in vision.get("timm_model_name", ""):  # not a network that open_clip builds itself
        vision["timm_model_name"] = f"hf-hub:{repo_id}"
    write_json(path, config)


def _vision(encoder: Encoder, home: str) -> dict[str, Any]:
    """`vision_cfg`, and the one field outside it that concerns the image tower."""
    image = encoder.model.image_tower.architecture
    if image.kind == "timm":
        name = f"local-dir:{home}" if Path(home).is_absolute() else f"hf-hub:{home}"
        timm = {
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": image.arguments.get("global_pool", ""),  # empty: the network's own
            "timm_proj": "linear",
            "image_size": image.size,
        }
        return {"vision_cfg": timm}
    vision = {**image.arguments["vision_cfg"], "image_size": image.size}
    if ":" in vision.get("timm_model_name", ""):
        raise UserError(
            f"model.image.name: `{image.name}` is described in another folder; name it under `kind: timm`"
        )
    if vision.get("timm_proj") in ("", "none"):
        vision["timm_proj"] = "linear"  # ours follows, where the network itself ends without one
    quick = {"quick_gelu": True} if image.arguments["quick_gelu"] else {}
    return {"vision_cfg": vision, **quick}


def _text(encoder: Encoder, home: str) -> dict[str, Any]:
    from open_clip.hf_configs import arch_dict

    text, kind = encoder.config.text, encoder.model.text_tower.trunk.config.model_type
    projection = encoder.config.text_projection
    if kind not in arch_dict:
        raise UserError(
            f"model.text: open_clip has no `{kind}`, only {', '.join(sorted(arch_dict))}; {_ELSEWHERE}"
        )
    pooler = POOLINGS[text.pooling].open_clip
    if pooler is None:
        known = [name for name, one in POOLINGS.items() if one.open_clip is not None]
        raise UserError(
            f"model.text.pooling: open_clip has no `{text.pooling}`, only {', '.join(known)}; {_ELSEWHERE}"
        )
    return {
        "hf_model_name": home,
        "hf_model_pretrained": False,
        "hf_tokenizer_name": home,
        "hf_pooler_type": pooler,
        "hf_proj_type": None if projection == "none" else projection,
        "context_length": encoder.max_length,
        "vocab_size": encoder.tokenizer.vocabulary,
    }
