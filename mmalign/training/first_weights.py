"""What a run starts with: the weights that `init_from` names, of a run or of an exported model.

    run, checkpoint                                -> model.safetensors                      -+
    open_clip: folder, hub, tag, trainer's file    -> open_clip's names -> ours              -+-> FirstWeights
    Router, VisionTextDualEncoder                  -> open_clip's names -> ours              -+
    sentence-transformers, fine-tuned tower, trunk -> the text tower; the rest as it starts  -+
    FirstWeights -> pooling, pixels, vocabulary, names and shapes checked -> the model, whole or not at all

Optimizer and place in the data start anew. Nothing is unpickled but tensors, no code of a repository runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mmalign.core.commit import newest_folder, verify
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.encoder import has_file, run_of
from mmalign.models.external.dual_weights import is_dual, read_dual_encoder, read_router
from mmalign.models.external.open_clip import read_open_clip
from mmalign.models.external.open_clip_weights import from_open_clip
from mmalign.models.load import detect_format as kind_of
from mmalign.models.load import load_text_encoder
from mmalign.training.run_config import RunConfig

TEXT_TOWER = ("text_tower.",)
TEXT_SIDE = ("text_tower.", "text_projection.")
TOWERS = (*TEXT_SIDE, "image_tower.", "image_projection.")
WHOLE = ("",)
_POOLINGS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}


@dataclass(frozen=True)
class FirstWeights:
    """Weights under our names, and what they were trained with.

    Attributes:
        fills: how the names of the parts begin that they fill; other parts stay as they are.
        tokenizer: what its texts were cut by; None: not known.
        pooling: how its texts were pooled; None: not known.
        mean: how its pictures were normalised; None: not known.
    """

    state: dict[str, Tensor]
    fills: tuple[str, ...]
    tokenizer: Tokenizer | None = None
    pooling: str | None = None
    mean: tuple[float, ...] | None = None


def load_first_weights(config: RunConfig, model: DualEncoder, tokenizer: Tokenizer) -> None:
    """Step 3 of the order in `loop`: the weights of `init_from`, before the engine takes the model.

    Raises:
        UserError: nothing there that can be trained further, or weights of another model; the model is then
            as it was.
    """
    name = config.init_from
    if name is None:
        return
    found = _read(name, model)
    _check_inputs(found, name, model, tokenizer)
    own = model.state_dict()
    _check_names(found, name, own)
    model.load_state_dict({**own, **found.state})
    say(f"init_from: {name}: {_what(found)}")


def _what(found: FirstWeights) -> str:
    if found.fills == WHOLE:
        return "both towers, projections and temperature"
    if found.fills == TOWERS:
        return "both towers and projections; the temperature starts as `model.temperature` says"
    text = "text tower and its projection" if found.fills == TEXT_SIDE else "text tower alone"
    return f"{text}; all else starts as `model` says"


def _read(name: str, model: DualEncoder) -> FirstWeights:
    kind = "open_clip" if Path(name).is_file() else kind_of(name)
    if kind == "run":
        return _from_run(Path(name))
    if kind == "open_clip":
        return _from_open_clip(name, model)
    if kind.startswith("onnx"):
        raise UserError(
            f"init_from: {name} holds ONNX graphs, which have no weights to train; give the run, or its "
            "export to sentence-transformers or open_clip"
        )
    place = name.removeprefix("sentence-transformers:").removeprefix("transformers:")
    if kind == "sentence-transformers" and has_file(place, "router_config.json"):
        state, pooling, tokenizer = read_router(place)
        return FirstWeights(from_open_clip(state, model), TOWERS, tokenizer, pooling)
    if kind == "transformers" and is_dual(place):
        state, pooling = read_dual_encoder(place)
        return FirstWeights(from_open_clip(state, model), WHOLE, _tokenizer_at(place), pooling)
    return _from_tower(place, model)


def _from_run(path: Path) -> FirstWeights:
    run = run_of(path)
    if run == path:
        folder, _ = newest_folder(path / "checkpoints")
    else:
        folder = path
        verify(folder)
    state = load_file(folder / "model.safetensors")
    return FirstWeights(state, WHOLE, _tokenizer_at(str(run / "tokenizer")))


def _from_open_clip(name: str, model: DualEncoder) -> FirstWeights:
    found = read_open_clip(name)
    if any(tensor.endswith("token_embedding.weight") for tensor in found.state):
        raise UserError(
            f"init_from: the text tower of {name} is open_clip's own and none of transformers; take its "
            "image tower alone, with `model.image.pretrained` and without init_from"
        )
    mean = found.preprocess.get("mean")
    return FirstWeights(
        from_open_clip(found.state, model),
        WHOLE,
        _tokenizer_at(found.folder),
        _POOLINGS.get(found.model.get("text_cfg", {}).get("hf_pooler_type", "")),
        None if mean is None else tuple(mean),
    )


def _from_tower(name: str, model: DualEncoder) -> FirstWeights:
    """A text tower, with its projection if it has one."""
    tower = load_text_encoder(name)
    own = model.text_tower.trunk.state_dict()
    # BERT's kin are loaded with a pooler that neither they nor we use.
    trunk = {
        f"text_tower.trunk.{part}": tensor
        for part, tensor in tower.trunk.state_dict().items()
        if part in own or not part.startswith("pooler.")
    }
    if tower.projection is None:
        return FirstWeights(trunk, TEXT_TOWER, tower.tokenizer)
    projection = tower.projection.state_dict().items()
    state = {**trunk, **{f"text_projection.{part}": tensor for part, tensor in projection}}
    return FirstWeights(state, TEXT_SIDE, tower.tokenizer, tower.pooling)


def _check_inputs(found: FirstWeights, name: str, model: DualEncoder, tokenizer: Tokenizer) -> None:
    """Stop where the weights would see other tokens, other states or other pixels than they know."""
    ours = model.text_tower.pooling
    if found.pooling not in (None, ours):
        raise UserError(
            f"init_from: {name} pools texts by `{found.pooling}`, this run by `{ours}`; set "
            f"`model.text.pooling: {found.pooling}`"
        )
    mean = model.image_tower.mean
    if found.mean and max(abs(a - b) for a, b in zip(found.mean, mean, strict=True)) > 1e-4:
        raise UserError(
            f"init_from: {name} normalises pictures by the mean {found.mean}, this run's image tower by "
            f"{mean}; take its tower with `model.image.kind: open_clip`, which brings its own"
        )
    theirs = found.tokenizer
    if theirs is not None and _vocabulary(theirs) != _vocabulary(tokenizer):
        raise UserError(
            f"init_from: {name} has another vocabulary than this run; set `tokenizer: {{kind: pretrained, "
            f"name: {theirs.inner.name_or_path}}}`"
        )


def _tokenizer_at(place: str | None) -> Tokenizer | None:
    """The tokenizer in a folder or on the hub, if there is one."""
    if place is None or not has_file(place, "tokenizer_config.json"):
        return None
    return load_tokenizer(place)


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], int]:
    return tokenizer.inner.get_vocab(), tokenizer.padding_id


def _check_names(found: FirstWeights, name: str, own: dict[str, Any]) -> None:
    """Stop unless the weights fill their parts of the model exactly."""
    wanted = {part for part in own if part.startswith(found.fills)}
    differing = sorted(
        part
        for part in wanted | found.state.keys()
        if part not in wanted
        or part not in found.state
        or own[part].shape != found.state[part].shape
    )
    if differing:
        first = differing[0]
        raise UserError(
            f"init_from: {name} is a checkpoint of another model: `{first}` is "
            f"{_shape(found.state, first)} there and {_shape(own, first)} here (and "
            f"{len(differing) - 1} more differ); use the `model` section that it was trained with"
        )


def _shape(state: dict[str, Any], name: str) -> str:
    if name not in state:
        return "absent"
    return " x ".join(str(size) for size in state[name].shape) or "one number"
