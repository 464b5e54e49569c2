"""What a run needs before its first step: its folder, its precision, its tokenizer and its batches.

run configuration, folder -> hold -> open_run -> load_or_train_tokenizer -> make_batches -> BatchLoader
                          -> write_config, when all is ready
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import exclusive, replace_folder, temporary_folder, write_atomic
from mmalign.core.config import read_yaml, validate, write_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError, one_line
from mmalign.core.precision import choose_precision
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.loader import BatchLoader, captions_of
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.stream.token_noise import TokenMasker
from mmalign.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from mmalign.data.vocabulary import grow, trim
from mmalign.models.dual_encoder import DualEncoder, ModelConfig
from mmalign.models.encoder import run_of
from mmalign.models.stored_run import local_path
from mmalign.models.text_tower import longest_text
from mmalign.training import checkpoint
from mmalign.training.objective import MaskedLanguageModelConfig
from mmalign.training.run_config import CHANGED_BY_NAME, Change, RunConfig, differences
from mmalign.training.watchdog import Watchdog


def open_run(
    config: RunConfig, out: Path, change: Sequence[str] = ()
) -> tuple[RunConfig, list[Change]]:
    """Check that the run folder, if there is one, belongs to this run; nothing is written.

    Args:
        change: fields of `CHANGED_BY_NAME` that may have another value from here on.

    Returns:
        The configuration with its precision chosen: that of the run's checkpoints where there are any, so
        that a resume on other hardware computes in the same one. And what differs from the run so far.

    Raises:
        UserError: the folder holds the checkpoints of another run.
    """
    path = out / "config.yaml"

    def read() -> dict[str, Any] | None:
        if not (path.is_file() and checkpoint.has_checkpoints(out / "checkpoints")):
            return None
        stored = read_yaml(path)
        # Defaults in place of fields that an older version lacks; the comparison reports unknown ones.
        with suppress(UserError):
            stored = validate(RunConfig, stored, str(path)).model_dump(mode="json")
        return stored

    stored = distributed.on_main(read)
    precision = config.engine.precision
    if precision == "auto" and stored is not None:
        precision = stored.get("engine", {}).get("precision", precision)
    engine = config.engine.model_copy(update={"precision": choose_precision(precision)})
    config = config.model_copy(update={"engine": engine})
    tree = config.model_dump(mode="json")
    changes = [] if stored is None else differences(stored, tree)
    for field, before, after in changes:
        by_name = field.startswith(CHANGED_BY_NAME)
        if not (by_name and field in change):
            fix = f"go on with the new value by `--change {field}`, or " if by_name else ""
            raise UserError(
                f"{path}: holds another run, its `{field}` differs ({before}, here {after}); {fix}give "
                "another --out"
            )
    return config, changes


def write_config(config: RunConfig, out: Path) -> None:
    """Write config.yaml, on rank 0, once all is ready: a folder that has one is taken for a run."""
    write_atomic(out / "config.yaml", write_yaml(config.model_dump(mode="json")))


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """The run folder for these ranks alone, made if needed; left as it was where nothing was written.

    Raises:
        UserError: another process holds it; on all ranks.
    """
    try:
        with ExitStack() as stack:
            distributed.on_main(lambda: stack.enter_context(exclusive(out)))
            yield
    finally:
        with suppress(OSError):  # not empty, as it should be
            out.rmdir()


def check_sizes(config: ModelConfig, model: DualEncoder) -> None:
    """Refuse texts that the text tower has no positions for, and images of which pixels would be left out."""
    length = config.text.max_length
    fits, _ = longest_text(model.text_tower.trunk, length)
    if fits < length:
        raise UserError(
            f"model.text.max_length: is {length}, but the text tower has positions for {fits} tokens; "
            f"set it to {fits} or less"
        )
    size, side = config.image.image_size, model.image_tower.side
    if rest := size % side:
        raise UserError(
            f"model.image.image_size: is {size}, but the network takes {side} x {side} pixels at a time and "
            f"would leave out {rest} of {size}; set it to {size - rest} or {size - rest + side}"
        )


def load_or_train_tokenizer(
    run: RunConfig, order: GlobalOrder, out: Path, watchdog: Watchdog
) -> Tokenizer:
    """The run's tokenizer: from its folder or that of `resume_from` where it goes on; else as configured."""
    config, folder = run.tokenizer, out / "tokenizer"

    def make() -> None:
        # A start that failed may have left the tokenizer of another configuration.
        goes_on = checkpoint.has_checkpoints(out / "checkpoints")
        if goes_on and (folder / "tokenizer_config.json").is_file():
            return
        if run.resume_from is not None:
            # Never made again: other pieces under the same numbers would go on with the weights of these.
            tokenizer = load_tokenizer(
                run_of(local_path(run.resume_from, moments=True)) / "tokenizer"
            )
        elif config.kind == "pretrained":
            assert config.name is not None
            tokenizer = load_tokenizer(config.name)
            if config.keep:
                say(f"tokenizer: keeping the pieces of {', '.join(config.keep)}")
                tokenizer = trim(tokenizer, _watched(_texts_to_keep(config, order), watchdog))
            if config.grow:
                say("tokenizer: training new pieces on the captions")
                tokenizer = grow(tokenizer, _watched(captions_of(order), watchdog), config.grow)
        else:
            say("tokenizer: training on the captions")
            tokenizer = train_tokenizer(_watched(captions_of(order), watchdog), config.vocabulary)
        work = temporary_folder(folder)
        tokenizer.save(work)
        # Complete or absent: a kill in between must not block the next start.
        replace_folder(work, folder)

    watchdog.pause("the tokenizer of rank 0")  # which has a watchdog of its own
    distributed.on_main(make)
    # Sent to the others, whose hosts may not have the folder (`remote_run.py`).
    return distributed.on_main(lambda: load_tokenizer(folder))


def _texts_to_keep(config: TokenizerConfig, order: GlobalOrder) -> Iterator[str]:
    for name in config.keep:
        if name == "captions":
            yield from captions_of(order)
            continue
        try:
            with Path(name).open(encoding="utf-8") as file:
                yield from (line.rstrip("\n") for line in file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"tokenizer.keep: {name}: cannot be read as text in UTF-8 ({one_line(error)}); give files "
                "with one text per line, or `captions`"
            ) from None


def _watched(captions: Iterable[str], watchdog: Watchdog) -> Iterator[str]:
    for caption in captions:
        watchdog.heartbeat("tokenizer: reading captions")
        yield caption
    watchdog.pause("tokenizer: training")  # in Rust, for as long as the captions need


def make_batches(
    config: RunConfig, order: GlobalOrder, tokenizer: Tokenizer, model: DualEncoder
) -> BatchLoader:
    preprocess: Preprocess | None = None
    masker: TokenMasker | None = None
    if isinstance(config.objective, MaskedLanguageModelConfig):
        masker = TokenMasker(tokenizer, config.objective.share)
    else:
        config.objective.check_languages(order.counts)
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
