"""`mmalign embed`: cached image features of the image tower of a run, which is frozen or done.

run file or folder -> its image tower, as the run has or will have it -> write_features beside the shards
a run that starts, with `data.image_features` -> open_image_features -> features in place of pixels

"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmalign.core import distributed
from mmalign.core.commit import check_writable
from mmalign.core.config import load_config
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.precision import Precision
from mmalign.data.shards.reader import ShardSet
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import is_remote
from mmalign.data.stream.image_features import FOLDER, FeatureSet, open_features
from mmalign.data.tokenizer import load_tokenizer
from mmalign.evaluation.feature_cache import describe_tower, write_features
from mmalign.models.dual_encoder import build_dual_encoder, plain_weights
from mmalign.models.encoder import checkpoint_of, finite
from mmalign.models.image_tower import ImageTower, build_image_tower, rebuild_image_tower
from mmalign.models.run_towers import RunTowers
from mmalign.models.stored_run import CHECKPOINTS, MOMENTS, local_path
from mmalign.training.build_model import known_towers
from mmalign.training.checkpoint import has_checkpoints
from mmalign.training.engine import MODEL_FILE, Engine
from mmalign.training.initialization import initialize_weights
from mmalign.training.objective import MaskedLanguageModelConfig
from mmalign.training.run_config import RunConfig

_TOWER = "image_tower."


def embed(run: Path, overrides: Sequence[str], data: Sequence[Path], workers: int | None) -> None:
    """Write the features of data sets beside their shards; on all ranks.

    Args:
        run: a run file, or the folder of a run.
        data: folders of data sets; none: those that the run trains on.
        workers: processes of each rank that decode; None: as many as the run has.

    Raises:
        UserError: a data set's folder cannot be written, the run's image tower is not frozen or cannot be
            loaded, or see `write_features`.
    """
    folder = run if run.is_dir() else None
    config = load_config(RunConfig, run / "config.yaml" if folder else run, overrides)
    folders = data or [Path(entry.path) for entry in config.data.train]
    for entry in () if data else config.data.train:
        if is_remote(entry.path):
            raise UserError(
                f"data.train: {shown(entry.path)} is at a URL, where nothing can be written; embed a copy "
                "with `--data FOLDER` and upload its features with the shards"
            )
    for one in folders:
        check_writable(one / FOLDER, is_folder=True)
    distributed.start()
    tower = load_frozen_tower(config, folder).to(distributed.device()).eval()
    # One black image shows weights that are not finite before a data set is read.
    black_BCHW = torch.zeros(1, 3, tower.size, tower.size, dtype=torch.uint8)
    with torch.no_grad():
        finite(tower(black_BCHW.to(distributed.device())).cpu().numpy(), {"path": run})
    for one in folders:
        # `auto` unless float32 was asked for: what a run chose for its CPU does not count.
        precision: Precision = "fp32" if config.engine.precision == "fp32" else "auto"
        decoders = config.data.workers if workers is None else workers
        facts = write_features(tower, one, decoders, precision)
        unusable = ", ".join(f"{reason}: {n}" for reason, n in facts["unusable"].items())
        tail = f"; of these cannot be used: {unusable}" if unusable else ""
        say(f"{one}: features of {facts['rows']} images, width {facts['width']}{tail}")


def load_frozen_tower(config: RunConfig, run: Path | None) -> ImageTower:
    """The image tower of a run that trains (in the folder `run`), or that has not started.

    A tower that trains is that of the newest checkpoint, as a teacher has it.

    Raises:
        UserError: a tower that is not frozen and has no checkpoint, or weights that cannot be found.
    """
    torch.manual_seed(config.seed)  # a tower without weights of its own is drawn as in training

    def choose() -> tuple[RunTowers | None, Path | None]:
        # The same order as in initialization.py.
        own = run if run is not None and has_checkpoints(run / CHECKPOINTS) else None
        if own is None and not config.model.image.frozen:
            raise UserError(
                "model.image.frozen: is false, so features change in training; set it to true, or give the "
                "folder of a run that is done"
            )
        if own is None and config.resume_from:
            own = local_path(config.resume_from, moments=True)
        return known_towers(config, run), checkpoint_of(own, MOMENTS)[0] if own else None

    known, chosen = distributed.on_main(choose)
    if chosen is not None:
        return distributed.on_all(partial(_from_checkpoint, config, known, chosen))
    if config.init_from is None:
        return build_image_tower(config.model.image)
    if config.tokenizer.name is None:
        raise UserError(
            "tokenizer: `init_from` needs the tokenizer of that model: `{kind: pretrained, name: FOLDER}`"
        )
    # The complete model: `init_from` is checked against all of it.
    tokenizer = load_tokenizer(config.tokenizer.name)
    ids = (tokenizer.vocabulary, tokenizer.padding_id)
    model = known.build(config.model) if known else build_dual_encoder(config.model, *ids)
    initialize_weights(config, model, tokenizer)
    return model.image_tower


def _from_checkpoint(config: RunConfig, known: RunTowers | None, folder: Path) -> ImageTower:
    image = config.model.image
    tower = build_image_tower(image) if known is None else rebuild_image_tower(known.image)
    tensors = plain_weights(load_file(folder / MODEL_FILE), config.model).items()
    state = {name.removeprefix(_TOWER): t for name, t in tensors if name.startswith(_TOWER)}
    try:
        tower.load_state_dict(state)
    except RuntimeError:
        problem = "holds another image tower than `model.image` describes"
        raise UserError(f"{folder}: {problem}; use its own configuration") from None
    return tower


def open_image_features(
    config: RunConfig, sets: Sequence[ShardSet], engine: Engine
) -> list[FeatureSet] | None:
    """The features that a run reads, one set per data set; None where it reads pixels, or no images at all.

    To be called on all ranks, when `engine` has the weights that the run goes on with.

    Raises:
        UserError: see `open_features`.
    """
    if not config.data.image_features or isinstance(config.objective, MaskedLanguageModelConfig):
        return None
    # Under ZeRO 3 the tower is gathered. Its weights are compared with those that made the features.
    with engine.full_model():
        identity = describe_tower(engine.model.image_tower)
    return distributed.on_all(lambda: [open_features(one, identity) for one in sets])
