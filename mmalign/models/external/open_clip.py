"""Models and weights in open_clip's formats, read wherever they are.

    FOLDER, local-dir:FOLDER, open_clip:FOLDER        -+-> load_open_clip -> ExternalModel
    hf-hub:OWNER/NAME, OWNER/NAME                      |
    open_clip:ARCHITECTURE/TAG, .../FILE, epoch_3.pt  -+-> read_open_clip -> its weights, its configuration

Nothing is unpickled but tensors and plain values.
"""

import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.errors import UserError, one_line
from mmalign.models.encoder import find_file
from mmalign.models.external.model import ExternalModel

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PREFIXES = ("local-dir:", "hf-hub:", "open_clip:")


def load_open_clip(name: str) -> ExternalModel:
    """A model by open_clip's own name for it, by `open_clip:ARCHITECTURE/WEIGHTS`, or in a folder."""
    device = str(distributed.device())
    folder = Path(name.removeprefix("local-dir:").removeprefix("open_clip:"))
    if folder.is_dir():
        loaded = load_open_clip_folder(folder, device)
    elif name.startswith("open_clip:"):
        architecture, _, weights = name.removeprefix("open_clip:").partition("/")
        if not weights:
            raise UserError(f"{name}: no weights; write open_clip:ARCHITECTURE/TAG")
        loaded = _create(architecture, device, pretrained=weights)
    else:
        loaded = _create(name if name.startswith(_PREFIXES) else f"hf-hub:{name}", device)
    model, preprocess, tokenize = loaded
    return ExternalModel(
        name,
        "open_clip",
        model,
        lambda texts: model.encode_text(tokenize(texts).to(device)),
        lambda images: model.encode_image(torch.stack([preprocess(i) for i in images]).to(device)),
    )


def load_open_clip_folder(folder: Path, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of an exported folder, also after it was moved.

    Only open_clip's own functions are used; the model card describes the same way.
    """
    import open_clip
    from open_clip.hf_configs import arch_dict  # it builds text towers of these model types only

    name = f"local-dir:{folder}"
    config: Any = open_clip.get_model_config(name)
    # open_clip (3.3.0) finds the architecture of a text tower of transformers, and of a timm tower with
    # options, by a name. In an export that is the folder or repository for which it was written.
    moved: dict[str, Any] = {}
    # Beside a model of others, config.json may describe another one.
    path = folder / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "hf_model_name" in config["text_cfg"] and facts.get("model_type") in arch_dict:
        moved["text_cfg"] = {**config["text_cfg"], "hf_model_name": str(folder)}
    if ":" in config["vision_cfg"].get("timm_model_name", ""):
        moved["vision_cfg"] = {**config["vision_cfg"], "timm_model_name": name}
    return _create(name, device, **moved)


def _create(name: str, device: str, **options: Any) -> tuple[Any, Any, Any]:
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(
        name, precision="fp32", device=device, **options
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@dataclass(frozen=True)
class OpenClipWeights:
    """A checkpoint of open_clip.

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
    place = re.sub(f"^({'|'.join(_PREFIXES)})", "", name)
    if name.startswith("open_clip:") and not Path(place).is_dir():
        return _by_architecture(name, *place.partition("/")[::2])
    config = json.loads(_file_of(place, (CONFIG,)).read_text(encoding="utf-8"))
    state = _read_tensors(_file_of(place, WEIGHTS))
    return OpenClipWeights(state, config["model_cfg"], config.get("preprocess_cfg", {}), place)


def _by_architecture(name: str, architecture: str, tag: str) -> OpenClipWeights:
    """`open_clip:ARCHITECTURE/TAG`, where the tag may also be a file."""
    import open_clip

    config: Any = open_clip.get_model_config(architecture)
    if config is None:
        raise UserError(f"{name}: open_clip has no model `{architecture}`")
    known: Any = open_clip.get_pretrained_cfg(architecture, tag) or {}
    path = Path(tag)
    if known:
        try:
            path = Path(open_clip.download_pretrained(known))
        except OSError as error:
            raise UserError(f"{name}: cannot be fetched ({one_line(error)})") from None
    elif not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise UserError(f"{name}: `{tag}` is no file and no tag of `{architecture}` ({tags})")
    # Released weights may have been trained with another normalisation than the architecture's.
    preprocess = {k: known[k] for k in ("mean", "std") if known.get(k)}
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    return OpenClipWeights(_read_tensors(path), config, preprocess, tokenizer)


def _file_of(place: str, names: tuple[str, ...]) -> Path:
    """The first of the files that the folder or the hub's repository has."""
    found = next(filter(None, (find_file(place, name) for name in names)), None)
    if found is None:
        where = (
            "in this folder" if Path(place).is_dir() else "in a repository of the hub that answers"
        )
        raise UserError(f"{place}: no {' or '.join(names)} {where}; it is no model of open_clip")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, or what open_clip's trainer saves (`state_dict`)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(
            path, map_location="cpu", weights_only=True
        )  # runs no code of the file
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: no checkpoint of tensors alone, and nothing else is read ({one_line(error)})"
        ) from None
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path}: holds no `state_dict` of tensors, so it is no checkpoint of open_clip"
        )
    # On several ranks the trainer saves DistributedDataParallel's names, which begin with `module.`.
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
