"""open_clip's formats: models measured as they are, checkpoints read, and its names for our weights.

    FOLDER, local-dir:FOLDER, open_clip:FOLDER        -+-> load_open_clip -> ExternalModel
    hf-hub:OWNER/NAME, OWNER/NAME                      |
    open_clip:ARCHITECTURE/TAG, .../FILE, epoch_3.pt  -+-> read_open_clip -> its weights, its configuration

    ours                                    open_clip's (3.3.0, a text tower of transformers)
    image_tower.trunk.* (timm)              visual.trunk.*
    image_projection.weight (timm)          visual.head.proj.weight   (in exports to transformers as well)
    image_tower.trunk.* (open_clip)         visual.*, whose last linear map holds our projection as well
    text_tower.trunk.*                      text.transformer.*        (of T5 models the encoder stack)
    text_projection.weight, .0, .2          text.proj.weight, .0, .2
    logit_scale, logit_bias (1,)            logit_scale, logit_bias ()

A network of open_clip ends in a linear map of its own, and ours has one more behind it. On the way out the
two become one; on the way back one becomes two that compute the same.
"""

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.errors import UserError, one_line
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.encoder import ExternalModel, on_host
from mmalign.models.text_tower import find_file, refuse_remote_code

State = dict[str, Tensor]
CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PREFIXES = ("local-dir:", "hf-hub:", "open_clip:")
# Where the networks of open_clip end in a linear map (rows are outputs).
_LAST_LINEAR = ("attnpool.c_proj", "head.proj")
_TEXT, _PROJECTION = "text.transformer.", "text.proj."
_SCORES = ("logit_scale", "logit_bias")  # one number each, of shape () in open_clip and (1,) here
_EXACT = 1e-5  # relative; what rounding leaves of a map whose rank the model can hold


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
        getattr(tokenize, "tokenizer", None),  # of transformers; open_clip's own marks both ends
    )


def load_open_clip_folder(folder: Path, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of an exported folder, also after it was moved."""
    import open_clip
    from open_clip.hf_configs import arch_dict  # it builds text towers of these model types only

    name = f"local-dir:{folder}"
    config: Any = open_clip.get_model_config(name)
    # Only open_clip's own functions are used; the model card describes the same way. open_clip (3.3.0) finds
    # the architecture of a text tower of transformers, and of a timm tower with options, by a name. In an
    # export that is the folder or repository for which it was written.
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

    refuse_remote_code()
    model, preprocess = open_clip.create_model_from_pretrained(
        name, precision="fp32", device=device, **options
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@dataclass(frozen=True)
class OpenClipWeights:
    """A checkpoint: tensors under open_clip's names, and sections of its configuration where known."""

    state: State
    model: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None  # where its tokenizer lies, or its name on the hub


def read_open_clip(name: str) -> OpenClipWeights:
    """The weights that a name means (see above), without building a model.

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
    import open_clip

    config: Any = open_clip.get_model_config(architecture)
    if config is None:
        raise UserError(f"{name}: open_clip has no model `{architecture}`")
    known: Any = open_clip.get_pretrained_cfg(architecture, tag) or {}
    path = Path(tag)  # a tag may also be a file
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
    found = next(filter(None, (find_file(place, name) for name in names)), None)
    if found is None:
        where = "in this folder" if Path(place).is_dir() else "on the hub, or it does not answer"
        raise UserError(f"{place}: no {' or '.join(names)} {where}; it is no model of open_clip")
    return found


def _read_tensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tree: Any = load_file(path)
        else:
            # What open_clip's trainer saves. `weights_only` runs no code of the file.
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: no checkpoint of tensors alone ({reason})") from None
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no `state_dict` of tensors; give a checkpoint of open_clip")
    # On several ranks the trainer saves DistributedDataParallel's names, which begin with `module.`.
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def to_open_clip(model: DualEncoder) -> State:
    """All weights under open_clip's names, on the host, each in memory of its own."""
    scores = {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
    return on_host(
        {
            **_image_out(model),
            **text_weights(model.text_tower.trunk, model.text_projection),
            **{name: one.reshape(()) for name, one in scores.items() if one is not None},
        }
    )


def text_weights(trunk: Any, projection: nn.Module | None) -> State:
    """A text tower of transformers and the projection behind it, under open_clip's names."""
    stack, weights = _stack(trunk).state_dict(), projection.state_dict() if projection else {}
    # The zeros that exports write for an unused pooler have no place in open_clip's model.
    kept = {name: tensor for name, tensor in stack.items() if not name.startswith("pooler.")}
    return {**_prefixed(_TEXT, kept), **_prefixed(_PROJECTION, weights)}


def timm_wrapper_weights(name: str, model: Any, projection: nn.Linear) -> State:
    """An image tower of transformers and the projection behind it, under open_clip's names.

    Raises:
        UserError: the tower of the model `name` is none of timm's.
    """
    if not hasattr(model, "timm_model"):
        kind = f"is a {type(model).__name__} of transformers"
        raise UserError(
            f"init_from: the image tower of {name} {kind}; give the run, or open_clip's"
        )
    return _timm_weights(model.timm_model, projection.weight.detach())


def from_open_clip(state: State, model: DualEncoder) -> State:
    """The weights of open_clip under our names, so that the model computes what open_clip's did.

    Args:
        model: what will take them. Weights that open_clip's model has not (the bias of scores, the part of an
            image tower's width that the folded map does not fill) stay as they are there.

    Returns:
        Our names. Weights without a counterpart keep open_clip's name, and missing ones are left out: the
        caller compares names and shapes.
    """
    parts: dict[str, State] = {"visual.": {}, _TEXT: {}, _PROJECTION: {}, "": {}}
    for name, tensor in state.items():
        prefix = next(one for one in parts if name.startswith(one))
        parts[prefix][name.removeprefix(prefix)] = tensor
    # The width of open_clip's tower is that of the space where nothing stands between.
    projection = parts[_PROJECTION]
    if not projection and not isinstance(model.text_projection, nn.Identity):
        projection = {"weight": torch.eye(model.text_tower.width)}
    named = {
        **_image_in(parts["visual."], model),
        **_text_in(parts[_TEXT], model),
        **_prefixed("text_projection.", projection),
        **({} if model.logit_bias is None else {"logit_bias": model.logit_bias.detach()}),
        **{n: t.reshape(1) if n in _SCORES else t for n, t in parts[""].items()},
    }
    if model.logit_bias is None:
        named.pop("logit_bias", None)  # a constant on all scores, which a softmax does not see
    return named


def _is_of_open_clip(trunk: Any) -> bool:
    return type(trunk).__module__.startswith("open_clip.")


def _stack(trunk: Any) -> Any:
    # As open_clip takes it out of a T5 model, whose encoder class wraps it.
    return trunk.encoder if type(trunk).__name__.endswith("EncoderModel") else trunk


def _timm_weights(network: nn.Module, weight_DF: Tensor) -> State:
    trunk = _prefixed("visual.trunk.", network.state_dict())
    return {**trunk, "visual.head.proj.weight": weight_DF}


def _image_out(model: DualEncoder) -> State:
    weight_DF, trunk = model.image_projection.weight.detach(), model.image_tower.trunk
    if not _is_of_open_clip(trunk):
        return _timm_weights(trunk, weight_DF)
    state = trunk.state_dict()
    if names := _last_map(state):
        # One map for its last one and our projection; in float64, so that nothing is lost between them.
        map_DK = weight_DF.double() @ _map_of(names, state).double()
        return _prefixed("visual.", {**state, **_as_last_map(names, map_DK.to(weight_DF))})
    return _prefixed("visual.", {**state, "head.proj.weight": weight_DF})


def _image_in(state: State, model: DualEncoder) -> State:
    trunk = model.image_tower.trunk
    own = trunk.state_dict()
    # A network of timm is open_clip's `trunk`, with a map of open_clip's behind it.
    names, prefix = (_last_map(own), "") if _is_of_open_clip(trunk) else ((), "trunk.")
    found: State = {}
    if names and all(name in state for name in names):
        maps = unfolded(_map_of(names, state), _map_of(names, own))
        state = {**state, **_as_last_map(names, maps[0])}
        found["image_projection.weight"] = maps[1]
    for name, tensor in state.items():
        if name == "head.proj.weight" and not names:
            found["image_projection.weight"] = tensor
        elif name.startswith(prefix):
            found[f"image_tower.trunk.{name.removeprefix(prefix)}"] = tensor
        else:
            found[f"visual.{name}"] = tensor
    return found


def unfolded(map_DK: Tensor, own_FK: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps whose product is the given one: (F, K) of the network's own shape, and (D, F) behind it.

    Where the network is wide enough, the map becomes its first D outputs; the others keep the values of
    `own_FK`, and the projection gives them no weight until training does. Where it is narrower than the
    space, the map is factored (which is exact if it came from such a network).

    Returns:
        Both; maps that do not fit together come back as they are, with a projection of no width.
    """
    (space, inputs), (width, own_inputs) = map_DK.shape, own_FK.shape
    if inputs != own_inputs:
        return map_DK, torch.zeros(space, 0)
    if width >= space:
        filled_FK = torch.cat([map_DK, own_FK[space:].to(map_DK)])
        return filled_FK, torch.eye(space, width, dtype=map_DK.dtype)
    left_DR, values_R, right_RK = torch.linalg.svd(map_DK.double(), full_matrices=False)
    if values_R[width:].norm() > _EXACT * values_R.norm():
        return map_DK, torch.zeros(space, 0)
    root_F = values_R[:width].sqrt()
    weight_DF, map_FK = left_DR[:, :width] * root_F, root_F[:, None] * right_RK[:width]
    return map_FK.to(map_DK), weight_DF.to(map_DK)


def _last_map(state: State) -> tuple[str, ...]:
    # Of the weight and the bias; empty if the network ends in no linear map.
    if "proj" in state:
        return ("proj",)
    last = next((name for name in _LAST_LINEAR if f"{name}.weight" in state), None)
    return tuple(n for n in (f"{last}.weight", f"{last}.bias") if n in state)


def _map_of(names: tuple[str, ...], state: State) -> Tensor:
    if names == ("proj",):  # its vision transformer keeps the map transposed
        return state["proj"].T
    # A bias is the input that is always 1, in the last column.
    columns = [state[name].reshape(len(state[name]), -1) for name in names]
    return torch.cat(columns, dim=1)


def _as_last_map(names: tuple[str, ...], map_DK: Tensor) -> State:
    if names == ("proj",):
        return {"proj": map_DK.T}
    if len(names) == 1:
        return {names[0]: map_DK}
    return {names[0]: map_DK[:, :-1], names[1]: map_DK[:, -1]}


def _text_in(state: State, model: DualEncoder) -> State:
    trunk = model.text_tower.trunk
    is_wrapped = _stack(trunk) is not trunk
    # Older versions of transformers kept the numbers of positions among the weights.
    state = {name: t for name, t in state.items() if not name.endswith("position_ids")}
    placed = _prefixed("text_tower.trunk." + ("encoder." if is_wrapped else ""), state)
    if is_wrapped and "embed_tokens.weight" in state:
        placed["text_tower.trunk.shared.weight"] = state["embed_tokens.weight"]
    return placed


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
