"""What a run needs before its first step: its folder, its precision, its tokenizer and its batches.

run configuration, folder -> open_run -> the configuration as it runs, written to config.yaml
                          -> load_or_train_tokenizer -> make_batches -> BatchLoader
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import replace_folder, temporary_folder, write_atomic
from mmalign.core.config import read_yaml, validate, write_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.precision import choose_precision
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.loader import BatchLoader, captions_of
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.stream.token_noise import TokenMasker
from mmalign.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from mmalign.models.dual_encoder import DualEncoder
from mmalign.training import checkpoint
from mmalign.training.objective import MaskedLanguageModelConfig
from mmalign.training.run_config import RunConfig, first_difference


def open_run(config: RunConfig, out: Path) -> RunConfig:
    """Make the run folder with the resolved configuration, or check that it belongs to this one.

    Returns:
        The configuration with its precision chosen: that of the run's checkpoints where there are any, so
        that a resume on other hardware computes in the same one.

    Raises:
        UserError: the folder holds the checkpoints of another run.
    """
    path = out / "config.yaml"
    stored: dict[str, Any] | None = None
    if distributed.is_main():
        out.mkdir(parents=True, exist_ok=True)
        if path.is_file() and checkpoint.has_checkpoints(out / "checkpoints"):
            stored = read_yaml(path)
            # Defaults in place of fields that an older version lacks; the comparison reports unknown ones.
            with suppress(UserError):
                stored = validate(RunConfig, stored, str(path)).model_dump(mode="json")
    # Rank 0 alone reads the file: it may be on a disk that other hosts see late.
    stored = distributed.broadcast(stored)
    precision = config.engine.precision
    if precision == "auto" and stored is not None:
        precision = stored.get("engine", {}).get("precision", precision)
    engine = config.engine.model_copy(update={"precision": choose_precision(precision)})
    config = config.model_copy(update={"engine": engine})
    tree = config.model_dump(mode="json")
    problem = None if stored is None else first_difference(stored, tree)
    if problem is not None:
        raise UserError(f"{path}: holds another run, its `{problem}` differs; give another --out")
    if distributed.is_main():
        write_atomic(path, write_yaml(tree))
    return config


def load_or_train_tokenizer(config: TokenizerConfig, order: GlobalOrder, out: Path) -> Tokenizer:
    """The run's tokenizer, from its folder if it is there already."""
    folder = out / "tokenizer"
    if distributed.is_main() and not (folder / "tokenizer_config.json").is_file():
        if config.kind == "pretrained":
            assert config.name is not None
            tokenizer = load_tokenizer(config.name)
        else:
            say("tokenizer: training on the captions")
            tokenizer = train_tokenizer(captions_of(order), config.vocabulary)
        work = temporary_folder(folder)
        tokenizer.save(work)
        # Complete or absent: a kill in between must not block the next start.
        replace_folder(work, folder)
    distributed.barrier()
    return load_tokenizer(folder)


def make_batches(
    config: RunConfig, order: GlobalOrder, tokenizer: Tokenizer, model: DualEncoder
) -> BatchLoader:
    preprocess: Preprocess | None = None
    masker: TokenMasker | None = None
    if isinstance(config.objective, MaskedLanguageModelConfig):
        masker = TokenMasker(tokenizer, config.objective.share)
    else:
        preprocess = Preprocess(model.image_tower.size, config.data.augmentation)
    return BatchLoader(
        order,
        config.data,
        tokenizer,
        config.model.text.max_length,
        preprocess,
        config.batch_size,
        distributed.rank(),
        distributed.world_size(),
        masker,
    )
