"""Where a run starts: the whole order, once.

1. its own newest committed checkpoint: all state, same configuration;
2. `resume_from`: another run's newest checkpoint, all state (optimizer, position in the data);
3. `init_from`: the weights of another run or of an exported model; with `init_optimizer` also AdamW's
   moments, of a run. Data, schedule and image size are this run's own: a new stage;
4. from scratch, with the weights that `model` describes.

    build_model -> initialize_weights (3, before there is an engine) -> engine -> restore_state (1, 2 or 4)

Rank 0 alone chooses and reads; the others get the values from it, because they may see older files.

What `init_from` can name, and what it fills:

    run, checkpoint                                     -> model.safetensors        -> everything
    open_clip: folder, hub, tag, trainer's file         -> open_clip's names -> ours -> everything
    Router, VisionTextDualEncoder                       -> open_clip's names -> ours -> both towers
    sentence-transformers, fine-tuned tower, transformers model                     -> the text tower

"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import MANIFEST, sha256_of
from mmalign.core.config import read_yaml, validate
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.storage.remote import is_remote
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, plain_weights
from mmalign.models.encoder import checkpoint_of, differing_names, run_of
from mmalign.models.external.open_clip import from_open_clip, read_open_clip
from mmalign.models.external.sentence_transformers import read_router
from mmalign.models.external.transformers import has_both_towers, read_dual_encoder
from mmalign.models.image_tower import fit_positions
from mmalign.models.load import detect_format, load_text_encoder
from mmalign.models.pooling import pooling_of_open_clip
from mmalign.models.stored_run import MOMENTS, local_path
from mmalign.models.text_tower import find_file
from mmalign.models.vocabulary import adapted_rows, check_padding, same_ids
from mmalign.training.checkpoint import TrainState, choose, load, load_newest
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
    checkpoint: Path | None = None  # of a run, which may have a newer one by now


def initialize_weights(
    config: RunConfig, model: DualEncoder, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Step 3 of the order: copy the weights that `init_from` names into the model, if it names any.

    To be called on all ranks, which then hold rank 0's weights, also those of pretrained towers.

    Returns:
        The lineage, as in `TrainState.parent`; None: there is no `init_from`.

    Raises:
        UserError: nothing there that can be trained further, or weights of another model; the model is then
            unchanged.
    """
    parent = distributed.on_main(lambda: _initialize(config, model, tokenizer))
    distributed.broadcast_(model.state_dict().values())
    return parent


def _initialize(
    config: RunConfig, model: DualEncoder, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    # On rank 0.
    name = config.init_from
    if name is None:
        return None
    place = local_path(name, config.init_optimizer)
    found = _read(str(place) if is_remote(name) else name, model)
    facts: dict[str, Any] = {}
    if found.tokenizer and (config.tokenizer.keep or config.tokenizer.grow):
        found, facts["vocabulary"] = _with_vocabulary(found, found.tokenizer, model, tokenizer)
    found = _at_image_size(found, model)
    # All checks before the first copy: all weights are copied, or none.
    _check_inputs(found, name, model, tokenizer)
    own = model.state_dict()
    _check_names(found, name, own)
    model.load_state_dict({**own, **found.state})
    say(f"init_from: {name}: {_FILLED[found.fills]}")
    manifest = (found.checkpoint or place) / MANIFEST
    sha256 = sha256_of(manifest) if manifest.is_file() else None
    if config.init_optimizer:
        facts["optimizer"] = True
    return {**_lineage("init_from", name, sha256), **facts}


def _lineage(how: str, path: str, manifest_sha256: str | None) -> dict[str, Any]:
    # `path` as the configuration gives it; the sha256 is that of the MANIFEST.json which lists every file's
    # (None: there is none).
    return {"how": how, "path": path, "manifest_sha256": manifest_sha256}


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
    folder, file = checkpoint_of(path, MOMENTS)[0], run_of(path) / "config.yaml"
    tokenizer = _tokenizer_at(str(run_of(path) / "tokenizer"))
    theirs = validate(ModelConfig, read_yaml(file).get("model"), f"{file}, section `model`")
    state = plain_weights(load_file(folder / MODEL_FILE), theirs)
    return InitialWeights(state, EVERYTHING, tokenizer, checkpoint=folder)


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
    mean = model.image_tower.architecture.mean
    if found.mean and max(abs(a - b) for a, b in zip(found.mean, mean, strict=True)) > 1e-4:
        raise UserError(
            f"init_from: {name} normalises images by the mean {found.mean}, this run's image tower by "
            f"{mean}; take its tower with `model.image.kind: open_clip`, which brings its own"
        )
    theirs = found.tokenizer
    if theirs and not same_ids(theirs, tokenizer):
        its = f"{{kind: pretrained, name: {theirs.inner.name_or_path}}}"
        raise UserError(
            f"init_from: {name} has another vocabulary; set `tokenizer: {its}`, with `keep` or `grow` to "
            "change it"
        )


def _with_vocabulary(
    found: InitialWeights, old: Tokenizer, model: DualEncoder, tokenizer: Tokenizer
) -> tuple[InitialWeights, dict[str, int]]:
    # The weights with the rows of the run's own tokenizer, and counts as of `adapt_vocabulary`.
    trunk = model.text_tower.trunk
    check_padding(trunk, old.padding_id, tokenizer)
    table = trunk.get_input_embeddings().weight
    # T5 has two names for it.
    named = trunk.named_parameters(remove_duplicate=False)
    names = [f"text_tower.trunk.{name}" for name, one in named if one is table]
    rows_VF, facts = adapted_rows(found.state[names[0]], old, tokenizer)
    state = {**found.state, **dict.fromkeys(names, rows_VF)}
    return replace(found, state=state, tokenizer=tokenizer), facts


def _tokenizer_at(place: str | None) -> Tokenizer | None:
    has_one = place is not None and find_file(place, "tokenizer_config.json")
    return load_tokenizer(place) if place is not None and has_one else None


def _at_image_size(found: InitialWeights, model: DualEncoder) -> InitialWeights:
    # The weights, with the position embeddings of the image tower for this run's image size.
    prefix, tower = "image_tower.trunk.", model.image_tower
    inside = {n.removeprefix(prefix): t for n, t in found.state.items() if n.startswith(prefix)}
    fitted = {prefix + name: tensor for name, tensor in fit_positions(inside, tower).items()}
    return replace(found, state={**found.state, **fitted})


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
    config: RunConfig,
    out: Path,
    engine: Engine,
    order: GlobalOrder,
    resumes: bool,
    parent: dict[str, Any] | None,
) -> TrainState:
    """Steps 1, 2 and 4 of the order: where the run goes on; to be called on all ranks.

    Args:
        resumes: whether the run has a checkpoint of its own.
        parent: what `initialize_weights` returned.

    Raises:
        UserError: there are checkpoints and none can be used, or `resume_from` orders its samples otherwise.
    """
    # Checkpoints of which none can be used are an error: a run never starts from scratch by accident.
    if resumes:
        return load_newest(out / "checkpoints", engine, order)
    if config.init_optimizer:
        _restore_optimizer(config, engine)
    if config.resume_from is None:
        return TrainState(0, 0, 0, StreamState(config.seed, 0), parent=parent)
    name = config.resume_from
    chosen = choose(name)
    path = run_of(chosen.folder) / "config.yaml"
    theirs = _order_fields(distributed.on_main(lambda: read_yaml(path)))
    ours = _order_fields(config.model_dump(mode="json"))
    if field := next((field for field in ours if theirs[field] != ours[field]), None):
        raise UserError(
            f"resume_from: {path} has another `{field}` ({theirs[field]}), so other samples come next; give "
            "the same value, or take only its weights with init_from"
        )
    parent = _lineage("resume_from", name, chosen.sha256)
    # Its best checkpoint lies in the other run's folder: the best one of this run is still to be found.
    return replace(load(chosen, engine, order), parent=parent, best=None, best_of=None)


def _restore_optimizer(config: RunConfig, engine: Engine) -> None:
    # Weights and moments of the checkpoint that `init_from` names, at this run's first step.
    name = config.init_from or ""
    try:
        folder = distributed.on_main(lambda: checkpoint_of(local_path(name, moments=True))[0])
        engine.restore(folder, step=0)
    except UserError as error:
        raise UserError(
            f"init_optimizer: {name}: no optimizer state that fits this run ({error}); or remove it"
        ) from None


def _order_fields(run: dict[str, Any]) -> dict[str, Any]:
    # The fields that decide the order of samples; hashes of the data are checked apart.
    data = run.get("data", {})
    drawn = ("languages", "language_temperature", "language_floor", "language_cap")
    return {
        **{name: run.get(name) for name in ("seed", "batch_size")},
        **{f"data.{name}": data.get(name) for name in drawn},
        "data.groups": data.get("groups", 1),
        **{
            f"data.train.{name}": [
                one.get(name, default) if isinstance(one, dict) else default
                for one in data.get("train", ())
            ]
            for name, default in (("weight", 1.0), ("rate", None))
        },
        # False in a run that was started before there was the field.
        "data.shuffle_images": data.get("shuffle_images", False),
    }
