"""Weights and models in open_clip's formats, read wherever they stand.

    FOLDER, local-dir:FOLDER, open_clip:FOLDER        -+
    hf-hub:OWNER/NAME, OWNER/NAME                      +-> its weights, its configuration
    open_clip:ARCHITECTURE/TAG, .../FILE, epoch_3.pt  -+
    FOLDER -> open_clip's model, preprocessing and tokenizer, also where the folder was moved

Nothing is unpickled but tensors and plain values.
"""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.core.errors import UserError

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def load_open_clip_folder(folder: Path, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of an exported folder, wherever it was moved to.

    open_clip (3.3.0) finds the architecture of a text tower of transformers, and of a timm tower with
    options, by a name; that of an export is the place or the hub's repository which it was written for. Only
    open_clip's own functions are used; the model's card tells its readers the same.
    """
    import open_clip

    name = f"local-dir:{folder}"
    config: Any = open_clip.get_model_config(name)
    moved: dict[str, Any] = {}
    if "hf_model_name" in config["text_cfg"] and _describes_text_tower(folder):
        moved["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(folder)}
    if ":" in config["vision_cfg"].get("timm_model_name", ""):
        moved["vision_cfg"] = {**config["vision_cfg"], "timm_model_name": name}
    model, preprocess = open_clip.create_model_from_pretrained(
        name, precision="fp32", device=device, **moved
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def _describes_text_tower(folder: Path) -> bool:
    """Whether config.json is that of the text tower; beside others' models it may describe another one."""
    from open_clip.hf_configs import arch_dict

    path = folder / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts.get("model_type") in arch_dict


@dataclass(frozen=True)
class OpenClipWeights:
    """What a checkpoint of open_clip holds.

    Attributes:
        state: tensors under open_clip's names.
        model, preprocess: the sections of its configuration; empty where only weights were given.
        folder: where its tokenizer lies, or its name on the hub; None: not known.
    """

    state: dict[str, Tensor]
    model: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None


def read_open_clip(name: str) -> OpenClipWeights:
    """The weights that a name means, without building a model.

    Args:
        name: any of those in the module's docstring.

    Raises:
        UserError: nothing there, or a file that holds more than tensors.
    """
    if Path(name).is_file():
        return OpenClipWeights(_read_tensors(Path(name)))
    place = name
    for prefix in ("local-dir:", "hf-hub:", "open_clip:"):
        place = place.removeprefix(prefix)
    if name.startswith("open_clip:") and not Path(place).is_dir():
        return _by_architecture(name)
    config = json.loads(_file_of(place, (CONFIG,)).read_text(encoding="utf-8"))
    state = _read_tensors(_file_of(place, WEIGHTS))
    return OpenClipWeights(state, config["model_cfg"], config.get("preprocess_cfg", {}), place)


def _by_architecture(name: str) -> OpenClipWeights:
    """`open_clip:ARCHITECTURE/TAG`, or a file in the tag's place."""
    import open_clip

    architecture, _, tag = name.removeprefix("open_clip:").partition("/")
    config: Any = open_clip.get_model_config(architecture)
    if config is None:
        raise UserError(f"{name}: open_clip has no model `{architecture}`")
    known: Any = open_clip.get_pretrained_cfg(architecture, tag)
    if known:
        try:
            path = Path(open_clip.download_pretrained(known))
        except OSError as error:
            raise UserError(f"{name}: cannot be fetched ({_short(error)})") from None
    elif not (path := Path(tag)).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise UserError(f"{name}: `{tag}` is no file and no tag of `{architecture}` ({tags})")
    preprocess = {k: known[k] for k in ("mean", "std") if known and known.get(k)}
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    return OpenClipWeights(_read_tensors(path), config, preprocess, tokenizer)


def _file_of(place: str, names: tuple[str, ...]) -> Path:
    """The first of the files that the folder or the hub's repository has."""
    if Path(place).is_dir():
        found = [path for name in names if (path := Path(place) / name).is_file()]
    else:
        found = _cached(place, names)
    if not found:
        raise UserError(f"{place}: no {' or '.join(names)} there, so it is no model of open_clip")
    return found[0]


def _cached(place: str, names: tuple[str, ...]) -> list[Path]:
    """The first of the files in a repository on the hub, through its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    for name in names:
        try:
            return [Path(hf_hub_download(place, name))]
        except EntryNotFoundError:
            continue
        except (OSError, HFValidationError) as error:
            raise UserError(f"{place}: no folder, nor on the hub ({_short(error)})") from None
    return []


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, or what open_clip's trainer saves (`state_dict`)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tree: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: no checkpoint of tensors alone, and nothing else is read ({_short(error)})"
        ) from None
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path}: holds no `state_dict` of tensors, so it is no checkpoint of open_clip"
        )
    # The trainer's model on several ranks stands under `module.`.
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:150]
