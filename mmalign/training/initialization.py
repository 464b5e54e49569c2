"""Where a run starts: the whole order, once.

1. its own newest committed checkpoint: all state, same configuration;
2. `resume_from`: another run's newest checkpoint, all state (optimizer, position in the data);
3. `init_from`: the weights of another run or of an exported model only;
4. from scratch, with the weights that `model` describes.

    model -> initialize_weights (3, before the engine takes the model) -> engine -> restore_state (1, 2 or 4)

What `init_from` can name, and what it fills:

    run, checkpoint                                     -> model.safetensors        -> everything
    open_clip: folder, hub, tag, trainer's file         -> open_clip's names -> ours -> everything
    Router, VisionTextDualEncoder                       -> open_clip's names -> ours -> both towers
    sentence-transformers, fine-tuned tower, transformers model                     -> the text tower

"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mmalign.core.batch import StreamState
from mmalign.core.commit import MANIFEST, newest_folder, sha256_of
from mmalign.core.config import read_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.encoder import checkpoint_of, differing_names, find_file, run_of
from mmalign.models.external.open_clip import from_open_clip, read_open_clip
from mmalign.models.external.sentence_transformers import read_router
from mmalign.models.external.transformers import has_both_towers, read_dual_encoder
from mmalign.models.load import detect_format, load_text_encoder
from mmalign.models.pooling import pooling_of_open_clip
from mmalign.training.checkpoint import TrainState, has_checkpoints, load_newest
from mmalign.training.engine import MODEL_FILE, Engine
from mmalign.training.run_config import RunConfig

TEXT_TOWER = ("text_tower.",)
TEXT_SIDE = ("text_tower.", "text_projection.")
TOWERS = (*TEXT_SIDE, "image_tower.", "image_projection.")
EVERYTHING = ("",)
_FILLED = {
    TEXT_TOWER: "text tower alone; the rest starts as `model` says",
    TEXT_SIDE: "text tower and its projection; the rest starts as `model` says",
    TOWERS: "both towers and projections; the temperature starts as `model.temperature` says",
    EVERYTHING: "both towers, projections and temperature",
}


@dataclass(frozen=True)
class InitialWeights:
    """Weights under our names, and the inputs that they were trained with; None: not known."""

    state: dict[str, Tensor]
    fills: tuple[str, ...]  # prefixes of the parameters that they fill; others keep their values
    tokenizer: Tokenizer | None = None
    pooling: str | None = None
    mean: tuple[float, ...] | None = None  # by which pixels were normalised


def initialize_weights(config: RunConfig, model: DualEncoder, tokenizer: Tokenizer) -> None:
    """Step 3 of the order: copy the weights that `init_from` names into the model, if it names any.

    Raises:
        UserError: nothing there that can be trained further, or weights of another model; the model is then
            unchanged.
    """
    name = config.init_from
    if name is None:
        return
    found = _read(name, model)
    # All checks before the first copy: all weights are copied, or none.
    _check_inputs(found, name, model, tokenizer)
    own = model.state_dict()
    _check_names(found, name, own)
    model.load_state_dict({**own, **found.state})
    say(f"init_from: {name}: {_FILLED[found.fills]}")


def _read(name: str, model: DualEncoder) -> InitialWeights:
    kind = "open_clip" if Path(name).is_file() else detect_format(name)
    if kind == "run":
        return _from_run(Path(name))
    if kind == "open_clip":
        return _from_open_clip(name, model)
    if kind.startswith("onnx"):
        raise UserError(
            f"init_from: {name}: ONNX graphs, which have no weights to train; give the run"
        )
    place = name.removeprefix("sentence-transformers:").removeprefix("transformers:")
    if kind == "sentence-transformers" and find_file(place, "router_config.json"):
        state, pooling, tokenizer = read_router(place)
        return InitialWeights(from_open_clip(state, model), TOWERS, tokenizer, pooling)
    if kind == "transformers" and has_both_towers(place):
        state, pooling = read_dual_encoder(place)
        state = from_open_clip(state, model)
        return InitialWeights(state, EVERYTHING, _tokenizer_at(place), pooling)
    return _from_tower(place, model)


def _from_run(path: Path) -> InitialWeights:
    state = load_file(checkpoint_of(path)[0] / MODEL_FILE)
    return InitialWeights(state, EVERYTHING, _tokenizer_at(str(run_of(path) / "tokenizer")))


def _from_open_clip(name: str, model: DualEncoder) -> InitialWeights:
    found = read_open_clip(name)
    if any(tensor.endswith("token_embedding.weight") for tensor in found.state):
        raise UserError(
            f"init_from: the text tower of {name} is none of transformers; take its image tower alone, with "
            "`model.image.pretrained`"
        )
    mean = found.preprocess.get("mean")
    return InitialWeights(
        from_open_clip(found.state, model),
        EVERYTHING,
        _tokenizer_at(found.folder),
        pooling_of_open_clip(found.model.get("text_cfg", {}).get("hf_pooler_type", "")),
        None if mean is None else tuple(mean),
    )


def _from_tower(name: str, model: DualEncoder) -> InitialWeights:
    tower = load_text_encoder(name)
    own = model.text_tower.trunk.state_dict()
    # Variants of BERT are loaded with a pooler that mmalign does not use.
    trunk = {
        f"text_tower.trunk.{part}": tensor
        for part, tensor in tower.trunk.state_dict().items()
        if part in own or not part.startswith("pooler.")
    }
    if tower.projection is None:
        return InitialWeights(trunk, TEXT_TOWER, tower.tokenizer)
    projection = tower.projection.state_dict().items()
    state = {**trunk, **{f"text_projection.{part}": tensor for part, tensor in projection}}
    return InitialWeights(state, TEXT_SIDE, tower.tokenizer, tower.pooling)


def _check_inputs(
    found: InitialWeights, name: str, model: DualEncoder, tokenizer: Tokenizer
) -> None:
    # The weights must see the tokens, states and pixels that they were trained on.
    ours = model.text_tower.pooling
    if found.pooling not in (None, ours):
        raise UserError(
            f"init_from: {name} pools texts in another way; set `model.text.pooling: {found.pooling}`"
        )
    mean = model.image_tower.mean
    if found.mean and max(abs(a - b) for a, b in zip(found.mean, mean, strict=True)) > 1e-4:
        raise UserError(
            f"init_from: {name} normalises images by the mean {found.mean}, this run's image tower by "
            f"{mean}; take its tower with `model.image.kind: open_clip`, which brings its own"
        )
    theirs = found.tokenizer
    if theirs and _ids(theirs) != _ids(tokenizer):
        its = f"{{kind: pretrained, name: {theirs.inner.name_or_path}}}"
        raise UserError(f"init_from: {name} has another vocabulary; set `tokenizer: {its}`")


def _ids(tokenizer: Tokenizer) -> tuple[dict[str, int], int]:
    return tokenizer.inner.get_vocab(), tokenizer.padding_id


def _tokenizer_at(place: str | None) -> Tokenizer | None:
    has_one = place is not None and find_file(place, "tokenizer_config.json")
    return load_tokenizer(place) if place is not None and has_one else None


def _check_names(found: InitialWeights, name: str, own: dict[str, Any]) -> None:
    # The weights must fill their parts of the model exactly.
    wanted = {part: tensor for part, tensor in own.items() if part.startswith(found.fills)}
    if differing := differing_names(found.state, wanted):
        first = differing[0]
        sizes = f"{_shape(found.state, first)} there and {_shape(own, first)} here"
        raise UserError(
            f"init_from: {name} is another model: `{first}` is {sizes} (and {len(differing) - 1} more "
            "differ); use the `model` section that it was trained with"
        )


def _shape(state: dict[str, Any], name: str) -> str:
    if name not in state:
        return "absent"
    return " x ".join(map(str, state[name].shape)) or "one number"


def restore_state(
    config: RunConfig, out: Path, engine: Engine, order: GlobalOrder
) -> tuple[TrainState, bool]:
    """Steps 1, 2 and 4 of the order; to be called on all ranks.

    Returns:
        Where the run goes on, and whether it starts now (it had no checkpoint of its own).

    Raises:
        UserError: there are checkpoints and none can be used, or `resume_from` orders its samples otherwise.
    """
    own = out / "checkpoints"
    # Checkpoints of which none can be used are an error: a run never starts from scratch by accident.
    if has_checkpoints(own):
        return load_newest(own, engine, order), False
    if config.resume_from is None:
        return TrainState(step=0, pairs_seen=0, stream=StreamState(config.seed, 0)), True
    other = Path(config.resume_from)
    path = other / "config.yaml"
    theirs, ours = _order_fields(read_yaml(path)), _order_fields(config.model_dump(mode="json"))
    if name := next((name for name in ours if theirs[name] != ours[name]), None):
        raise UserError(
            f"resume_from: {path} has another `{name}` ({theirs[name]}), so other samples come next; give "
            "the same value, or take only its weights with init_from"
        )
    return load_newest(other / "checkpoints", engine, order), True


def _order_fields(run: dict[str, Any]) -> dict[str, Any]:
    # The fields that decide the order of samples; hashes of the data are checked apart.
    data = run.get("data", {})
    drawn = ("languages", "language_temperature", "language_floor", "language_cap")
    return {
        **{name: run.get(name) for name in ("seed", "batch_size")},
        **{f"data.{name}": data.get(name) for name in drawn},
        "data.train.weight": [
            one.get("weight", 1.0) if isinstance(one, dict) else 1.0
            for one in data.get("train", ())
        ],
    }


def parent_of(config: RunConfig, step: int) -> dict[str, Any] | None:
    """The lineage of a run that starts at `step`: which files it goes on from; None: from scratch.

    `how` (resume_from or init_from), `path` as the configuration gives it, and `manifest_sha256`, of the
    MANIFEST.json that lists every file's hash (None: there is none).
    """
    path = config.resume_from or config.init_from
    if path is None:
        return None
    how, folder = ("resume_from" if config.resume_from else "init_from"), Path(path)
    if config.resume_from:
        folder = folder / "checkpoints" / f"step-{step:09d}"
    elif (folder / "checkpoints").is_dir():
        folder = newest_folder(folder / "checkpoints")[0]
    manifest = folder / MANIFEST
    sha256 = sha256_of(manifest) if manifest.is_file() else None
    return {"how": how, "path": path, "manifest_sha256": sha256}
