"""The only file that knows all kinds of models: the format of a name, and the two doors that load it.

    name -> detect_format -+-> load_model        -> DualModel     images and texts -> vectors in one space
                           +-> load_text_encoder -> TextEncoder   texts -> states of tokens, features

The readers are in `encoder.py` (our runs), `text_encoder.py` (fine-tuned), `adapters.py` and `external/`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

import torch

from mmalign.core.errors import UserError, one_line
from mmalign.data.storage.remote import is_remote
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models import adapters, text_encoder
from mmalign.models import encoder as encoders
from mmalign.models.encoder import DualModel, Encoder, ExternalModel, load_encoder, run_of
from mmalign.models.external import onnx, open_clip, sentence_transformers, transformers
from mmalign.models.prompts import Side
from mmalign.models.stored_run import local_path
from mmalign.models.text_encoder import TextEncoder, saved_text_encoder, text_side
from mmalign.models.text_tower import find_file, load_trunk

Prompted = TypeVar("Prompted", bound=DualModel | TextEncoder)
OWN_PROMPTS: Mapping[Side, str] = MappingProxyType({})
# "tower" is a text encoder alone: a fine-tuned one, or a LoRA adapter with its base.
Format = Literal[
    "run", "open_clip", "sentence-transformers", "transformers", "onnx", "onnx-int8", "tower"
]
_PREFIXES: dict[str, Format] = {
    "open_clip:": "open_clip",
    "local-dir:": "open_clip",
    "hf-hub:": "open_clip",
    "sentence-transformers:": "sentence-transformers",
    "transformers:": "transformers",
    "onnx:": "onnx",
    "onnx-int8:": "onnx-int8",
}
# The first file that is there decides: config.json is beside all the others.
_TEXT_FILES: dict[str, Format] = {
    "modules.json": "sentence-transformers",
    adapters.CONFIG: "tower",
    "config.json": "transformers",
}
_FILES: dict[str, Format] = {
    text_encoder.FILE: "tower",
    open_clip.CONFIG: "open_clip",
    **_TEXT_FILES,
    onnx.TEXT_MODELS["fp32"]: "onnx",
}


def detect_format(name: str, files: Mapping[str, Format] = _FILES) -> Format:
    """Which library a model is for, by its prefix, or by the files in its folder or on the hub.

    Args:
        files: those that are looked for, in this order, after a fine-tuning's and a run's.

    Raises:
        UserError: none of them is there.
    """
    for prefix, found in _PREFIXES.items():
        if name.startswith(prefix):
            return found
    if saved_text_encoder(Path(name)) is not None:
        return "tower"  # before a run: a fine-tuning has a config.yaml as well
    if (run_of(Path(name)) / "config.yaml").is_file():
        return "run"
    for file, found in files.items():
        if find_file(name, file):
            return found
    where = "in this folder" if Path(name).is_dir() else "in a folder or on the hub of that name"
    raise UserError(
        f"{name}: no model {where}: it has none of config.yaml (a run), {', '.join(files)}; give a "
        "folder, a hub name or a prefix such as `open_clip:`"
    )


def load_model(name: str, prompts: Mapping[Side, str] = OWN_PROMPTS) -> DualModel:
    """Any model that can be measured, on this rank's device (ONNX graphs: on CPUs).

    Args:
        prompts: in place of the model's own; a side that is not given keeps the model's.
        name: one of

            runs/demo, runs/demo/checkpoints/best       a run, or one of its checkpoints
            s3://bucket/demo                            likewise, in a store: also gs:// and file://
            runs/demo/export, OWNER/NAME                a folder or repository of any library below
            open_clip:ViT-B-32/laion2b_s34b_b79k        architecture / weights (a tag or a file)
            local-dir:FOLDER, hf-hub:OWNER/NAME         open_clip's own names
            sentence-transformers:NAME, transformers:NAME, onnx:NAME, onnx-int8:NAME

    Raises:
        UserError: nothing there that can be loaded, or its library is not installed.
    """
    if is_remote(name):  # a run; no other name has a scheme
        run = load_encoder(local_path(name))
        run.facts["path"] = name
        return _prompted(run, prompts)
    model_format = detect_format(name)
    if model_format == "run":
        return _prompted(load_encoder(Path(name)), prompts)
    load: dict[Format, Callable[[str], DualModel]] = {
        "open_clip": open_clip.load_open_clip,
        "sentence-transformers": sentence_transformers.load_sentence_transformers,
        "transformers": transformers.load_dual_encoder,
        "onnx": onnx.load_onnx,
        "onnx-int8": partial(onnx.load_onnx, precision="int8"),
    }
    place = _without_prefix(name, model_format)
    try:
        # transformers also has models of text alone, which are read as our own text encoders are.
        has_images = model_format != "transformers" or transformers.has_both_towers(place)
        if model_format in load and has_images:
            model = load[model_format](place)
        else:
            encoder = load_text_encoder(name)

            def encode(texts: list[str]) -> torch.Tensor:
                # The model that is around the encoder adds the prompts.
                return torch.from_numpy(encoder.encode(texts, side=None))

            model = ExternalModel(name, "tower", encoder, encode)
            model.cut, model.prompts = encoder.cut, encoder.prompts
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{name}: {model_format} cannot load it ({one_line(error)})") from None
    if not model_format.startswith("onnx"):  # `text_encoder_of` reads the weights beside the graphs
        model.facts["path"] = name
    return _prompted(model, prompts)


def load_text_encoder(
    path: str, untrained: bool = False, prompts: Mapping[Side, str] = OWN_PROMPTS
) -> TextEncoder:
    """The text encoder in a folder, or that of a model on the hub.

    Args:
        path: a run or one of its checkpoints, a fine-tuning or its tower, a folder with a LoRA adapter of
            peft, or a model of sentence-transformers or transformers (folder or name).
        untrained: the run's text encoder before its first step.
        prompts: see `load_model`.

    Raises:
        UserError: nothing there that can be loaded, or a run without a usable checkpoint.
    """
    # An export for several libraries is read as sentence-transformers: open_clip and ONNX keep the trunk to
    # themselves.
    folder = local_path(path)
    model_format = detect_format(str(folder) if is_remote(path) else path, _TEXT_FILES)
    if model_format == "run":
        run = load_encoder(folder, untrained)
        run.facts["path"] = path if is_remote(path) else str(folder)
        encoder = text_side(run, text_encoder.is_contrastive(folder))
        return _checked(_prompted(encoder, prompts))
    if untrained:
        raise UserError(f"{path}: not a run folder; only a run knows its model before training")
    place = _without_prefix(path, model_format)
    if model_format == "sentence-transformers":
        encoder = sentence_transformers.read_text_encoder(place)
        # transformers hangs the adapter that it finds beside a trunk into it, unmerged.
        if getattr(encoder.trunk, "_hf_peft_config_loaded", False):
            encoder.trunk = _load_adapted(place).trunk
    elif model_format == "transformers":
        encoder = TextEncoder(load_trunk(place), load_tokenizer(place))
    elif model_format == "tower":
        saved = saved_text_encoder(folder)
        encoder = _load_adapted(path) if saved is None else text_encoder.read_saved(saved)
    else:
        raise UserError(
            f"{path}: a text encoder of {model_format} cannot be read on its own; give the run"
        )
    # Over the trunk and the projection, as loaded: a hub name says nothing about the revision.
    encoder.facts = {"path": path, "sha256": encoders.weights_sha256(encoder), "step": 0}
    return _checked(_prompted(encoder, prompts))


def _prompted(model: Prompted, given: Mapping[Side, str]) -> Prompted:
    model.prompts = model.prompts.changed(given)
    model.facts |= model.prompts.facts
    return model


@torch.no_grad()
def _checked(encoder: TextEncoder) -> TextEncoder:
    # Weights that are not finite end here, not after hours of fine-tuning.
    tokens = encoder.tokenize(["a"])
    feature_ND = encoder.feature(encoder.states(tokens), tokens.mask_NL)
    encoders.finite(feature_ND.float().cpu().numpy(), encoder.facts)
    return encoder


def text_encoder_of(model: DualModel) -> TextEncoder:
    """The text encoder of a model that is loaded already; raises as `load_text_encoder` does."""
    prompts: dict[Side, str] = {"query": model.prompts.query, "passage": model.prompts.passage}
    if isinstance(model, Encoder):
        encoder = _checked(_prompted(text_side(model), prompts))
    else:
        encoder = load_text_encoder(str(model.facts["path"]), prompts=prompts)
    encoder.precision = model.precision
    return encoder


def _without_prefix(name: str, model_format: Format) -> str:
    # open_clip's prefixes also say which of its ways to load is meant; they stay.
    return name if model_format == "open_clip" else name.removeprefix(f"{model_format}:")


def _load_adapted(name: str) -> TextEncoder:
    # Pooling and projection are the base model's.
    if not Path(name).is_dir():
        raise UserError(f"{name}: holds a LoRA adapter; download it and give its folder")
    base = adapters.base_of(Path(name))
    try:
        encoder = load_text_encoder(base)
    except UserError as error:
        config = Path(name) / adapters.CONFIG
        raise UserError(
            f"{name}: an adapter, which needs its base model ({error}); set `base_model_name_or_path` in "
            f"{config} to where that is now"
        ) from None
    encoder.trunk = adapters.merge_adapter(encoder.trunk, Path(name))
    return encoder
