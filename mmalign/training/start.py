"""How a run starts: its folder, its tokenizer, its batches, and where it goes on.

run configuration, folder -> open_run -> tokenizer -> batch maker
                          -> resume: own checkpoint, or resume_from, or nothing -> TrainState

Between the two stands `first_weights.py`: what the model starts with.
"""

from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import replace_folder, temporary_folder, write_atomic
from mmalign.core.config import read_yaml, validate, write_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.loader import BatchLoader, captions_of
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.stream.token_noise import TokenMasker
from mmalign.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from mmalign.models.dual_encoder import DualEncoder
from mmalign.training import checkpoint
from mmalign.training.checkpoint import TrainState
from mmalign.training.engine import Engine
from mmalign.training.objective import MaskedLanguageModelConfig
from mmalign.training.run_config import RunConfig, first_difference


def open_run(config: RunConfig, out: Path) -> None:
    """Make the run folder with the resolved configuration, or check that it belongs to this one.

    Raises:
        UserError: the folder holds the checkpoints of another run.
    """
    tree = config.model_dump(mode="json")
    path = out / "config.yaml"
    problem = None
    if distributed.is_main():
        out.mkdir(parents=True, exist_ok=True)
        if path.is_file() and checkpoint.has_checkpoints(out / "checkpoints"):
            problem = first_difference(_with_defaults(read_yaml(path), path), tree)
        if problem is None:
            write_atomic(path, write_yaml(tree))
    problem = distributed.broadcast(problem)
    if problem is not None:
        raise UserError(
            f"{path}: holds another run, its `{problem}` differs; name another folder with --out, or give "
            "the same configuration to go on"
        )


def _with_defaults(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """A configuration of an older version, with the fields that it lacks; they meant their defaults."""
    try:
        return validate(RunConfig, tree, str(path)).model_dump(mode="json")
    except UserError:  # it says what no run of this version can say, and will be found to differ
        return tree


def load_or_train_tokenizer(config: TokenizerConfig, plan: GlobalOrder, out: Path) -> Tokenizer:
    """The run's tokenizer, from its folder if it is there already."""
    folder = out / "tokenizer"
    if distributed.is_main() and not (folder / "tokenizer_config.json").is_file():
        if config.kind == "pretrained":
            assert config.name is not None
            tokenizer = load_tokenizer(config.name)
        else:
            say("tokenizer: training on the captions")
            tokenizer = train_tokenizer(captions_of(plan), config.vocabulary)
        work = temporary_folder(folder)
        tokenizer.save(work)
        replace_folder(
            work, folder
        )  # whole or absent: a kill in between must not block the next start
    distributed.barrier()
    return load_tokenizer(folder)


def make_batches(
    config: RunConfig, plan: GlobalOrder, tokenizer: Tokenizer, model: DualEncoder
) -> BatchLoader:
    """What turns the plan into this rank's batches."""
    preprocess: Preprocess | None = None
    masker: TokenMasker | None = None
    if isinstance(config.objective, MaskedLanguageModelConfig):
        masker = TokenMasker(tokenizer, config.objective.share)
    else:
        preprocess = Preprocess(model.image_tower.size, config.data.augmentation)
    return BatchLoader(
        plan,
        config.data,
        tokenizer,
        config.model.text.max_length,
        preprocess,
        config.batch_size,
        distributed.rank(),
        distributed.world_size(),
        masker,
    )


def resume(config: RunConfig, out: Path, engine: Engine, plan: GlobalOrder) -> TrainState:
    """Steps 1, 2 and 4 of the order in `loop`."""
    own = out / "checkpoints"
    if checkpoint.has_checkpoints(own):
        return checkpoint.load_newest(own, engine, plan)
    if config.resume_from is None:
        return TrainState(step=0, pairs_seen=0, stream=StreamState(config.seed, 0))
    other = Path(config.resume_from)
    _check_same_stream(config, other)
    return checkpoint.load_newest(other / "checkpoints", engine, plan)


def _check_same_stream(config: RunConfig, other: Path) -> None:
    path = other / "config.yaml"
    theirs, ours = _order(read_yaml(path)), _order(config.model_dump(mode="json"))
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"resume_from: {path} has another `{name}` ({theirs[name]}), so its place in the data "
                "means other samples here; give the same, or take its weights only with init_from"
            )


def _order(run: dict[str, Any]) -> dict[str, Any]:
    """What a run file says of the order of its samples, by field; the plan knows the rest."""
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
