"""Both towers as an open_clip folder, loadable without a line of ours.

    Encoder -> open_clip_config.json, open_clip_model.safetensors   both towers, as open_clip builds them
            -> config.json, tokenizer files                         what transformers and timm read of them
            -> loaded by open_clip, compared with the encoder       the folder is kept only if they agree
            -> README.md, results.json, MANIFEST.json               what a person needs

open_clip (3.3.0) asks transformers for the architecture of a text tower, and timm for an image tower with
options, each by a *name*: a hub id, or a path. The path of this folder is written, so the folder loads where
it was exported to; the card says how one that was moved is loaded. With `repo_id` the names are those of the
hub. One config.json serves both libraries: neither looks at the other's fields.

What open_clip computes otherwise than this package, whatever the model: it mends texts with ftfy and squeezes
white space before the tokenizer; it shrinks a picture in one step, so that pixels differ (by 1 or 2 of 255 in
the mean) where a side has four times the tower's size or more; and it lays no transparency on white.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmalign.commit import committed_folder, write_json
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.results import Results
from mmalign.export.card import write_card
from mmalign.export.sentence_transformers import without_paths, write_tokenizer
from mmalign.model.image_tower import OpenClipTower, TimmTower, takes_image_size
from mmalign.model.text_tower import Pooling

POOLERS: dict[Pooling, str] = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}
# Where the networks of open_clip end in a linear map (rows are outputs), which ours can be folded into.
LAST_LINEAR = ("attnpool.c_proj", "head.proj")
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


def export_open_clip(
    encoder: Encoder,
    out: Path,
    results: Results | None,
    run_config: dict[str, Any],
    license: str | None = None,
    repo_id: str | None = None,
) -> None:
    """Write both towers to the folder `out`, whole or not at all.

    Args:
        results: what the card and `results.json` report; none: both stay silent.
        run_config: the resolved configuration of the run, for the card.
        license: identifier for the card (`apache-2.0`); none: the card names no licence.
        repo_id: name on the hub (`someone/model`) that the folder will be published under; none: it
            loads from the place where it was written.

    Raises:
        UserError: open_clip cannot express the model, or computes other vectors from it.
    """
    config = {
        "model_cfg": _model_config(encoder, out, repo_id),
        "preprocess_cfg": _preprocess_config(encoder),
    }
    info = {
        "format": "open_clip",
        "model_sha256": encoder.facts["sha256"],
        "step": encoder.facts["step"],
    }
    with committed_folder(out, info) as folder:
        write_json(folder / "open_clip_config.json", config)
        write_json(folder / "config.json", {**_text_facts(encoder), **_image_facts(encoder)})
        save_file(_tensors(encoder), folder / "open_clip_model.safetensors")
        write_tokenizer(encoder, folder)
        _must_agree(encoder, folder)
        card = (encoder, folder, out.name, None, results, run_config, license)
        write_card(*card, library="open_clip", repo_id=repo_id)
        if results is not None:
            without_paths(results).write(folder / "results.json")


def load_open_clip(folder: Path, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of an exported folder, wherever it was moved to.

    Only open_clip's own functions are used; the model's card tells its readers the same.
    """
    import open_clip

    name = f"local-dir:{folder}"
    config: Any = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "hf_model_name": str(folder)}
    vision = dict(config["vision_cfg"])
    if ":" in vision.get("timm_model_name", ""):
        vision["timm_model_name"] = name
    model, preprocess = open_clip.create_model_from_pretrained(
        name, device=device, text_cfg=text, vision_cfg=vision
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def _model_config(encoder: Encoder, out: Path, repo_id: str | None) -> dict[str, Any]:
    """What open_clip builds the two towers from."""
    config = encoder.config
    home = repo_id or str(out.resolve())
    timm_home = f"hf-hub:{repo_id}" if repo_id else f"local-dir:{home}"
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
    if text.pooling not in POOLERS:
        raise UserError(
            f"model.text.pooling: open_clip cannot pool the `{text.pooling}` token of a text, only "
            f"{' and '.join(POOLERS)}; export to sentence-transformers instead"
        )
    return {
        "hf_model_name": home,
        "hf_model_pretrained": False,
        "hf_tokenizer_name": home,
        "hf_pooler_type": POOLERS[text.pooling],
        "hf_proj_type": "linear",
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
    facts.pop("_name_or_path", None)  # where it lay on somebody's disk
    return {**facts, "is_encoder_decoder": is_half}


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


def _tensors(encoder: Encoder) -> dict[str, Tensor]:
    """All weights under open_clip's names, each in memory of its own."""
    model = encoder.model
    tensors = {
        **_image_tensors(encoder),
        **_prefixed("text.transformer.", _text_stack(model.text_tower.trunk).state_dict()),
        "text.proj.weight": model.text_projection.weight,
        "logit_scale": model.logit_scale.reshape(()),
    }
    if model.logit_bias is not None:
        tensors["logit_bias"] = model.logit_bias.reshape(())
    return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def _image_tensors(encoder: Encoder) -> dict[str, Tensor]:
    weight_DF = encoder.model.image_projection.weight.detach()
    state = encoder.model.image_tower.trunk.state_dict()
    if isinstance(encoder.config.image, TimmTower):
        return {**_prefixed("visual.trunk.", state), "visual.head.proj.weight": weight_DF}
    return _prefixed("visual.", _folded(state, weight_DF))


def _folded(state: dict[str, Tensor], weight_DF: Tensor) -> dict[str, Tensor]:
    """An open_clip network whose last linear map and our projection are one map."""
    if "proj" in state:  # its vision transformer keeps the map transposed
        return {**state, "proj": state["proj"] @ weight_DF.T}
    last = next((name for name in LAST_LINEAR if f"{name}.weight" in state), None)
    if last is None:
        return {**state, "head.proj.weight": weight_DF}
    folded = {**state, f"{last}.weight": weight_DF @ state[f"{last}.weight"]}
    if f"{last}.bias" in state:
        folded[f"{last}.bias"] = weight_DF @ state[f"{last}.bias"]
    return folded


def _text_stack(trunk: Any) -> Any:
    """T5's encoder class wraps the stack that open_clip takes out of the whole model."""
    return trunk.encoder if type(trunk).__name__.endswith("EncoderModel") else trunk


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@torch.no_grad()
def _must_agree(encoder: Encoder, folder: Path) -> None:
    """Stop where open_clip loads something else from the folder: a pooling or an option that it drops."""
    try:
        model, _, tokenize = load_open_clip(folder, str(encoder.device))
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
