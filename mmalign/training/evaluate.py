"""Evaluation during training: a suite of images and captions every so many steps, on all ranks.

start: suite's file, sets -> open_suite -> SuiteConfig, or what is wrong with it
every: complete weights on every rank -> Encoder -> suite -> metrics by language -> records, best checkpoint
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydantic

from mmalign.core.config import Section, load_config
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.core.record import METRICS, read_records
from mmalign.core.resources import find_yaml
from mmalign.data.shards.reader import ShardSet
from mmalign.data.tokenizer import Tokenizer
from mmalign.evaluation.embed import check_languages
from mmalign.evaluation.retrieval import DIRECTIONS
from mmalign.evaluation.suite import SuiteConfig, measure
from mmalign.evaluation.truncate import check_dims
from mmalign.models.dual_encoder import ModelConfig
from mmalign.models.encoder import Encoder
from mmalign.results.metric_names import (
    DIMS,
    FIRST_CAPTION,
    MEAN,
    PROBE,
    MetricName,
    is_aggregate,
)
from mmalign.training.checkpoint import TrainState
from mmalign.training.engine import Engine

T = TypeVar("T")
# Of their metrics training keeps the mean alone: a hundred languages have ten thousand pairs.
_MEAN_ALONE = ("alignment", "words")


class EvaluationConfig(Section):
    suite: str
    """Suite to measure while training; its metrics per language and over all languages are recorded."""
    every: int = pydantic.Field(ge=1)
    """Steps between two measurements."""
    best: str | None = None
    """Its highest value makes `checkpoints/best`: `retrieval/test/mean/text_to_image/recall@1`."""


class WatchedEncoder(Encoder):
    """An encoder that reports progress with each batch: a suite may take longer than a hang."""

    heartbeat: Callable[[str], None]

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        self.heartbeat("evaluation: images")
        return super()._encode_images(images)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        self.heartbeat("evaluation: texts")
        return super()._encode_texts(texts)


def evaluate(
    suite: SuiteConfig,
    engine: Engine,
    config: ModelConfig,
    tokenizer: Tokenizer,
    heartbeat: Callable[[str], None],
) -> dict[str, float]:
    """The suite's metrics of the current weights, without those of language pairs; on all ranks."""
    with engine.full_model():
        encoder = WatchedEncoder(engine.model, config, tokenizer, facts={})
        encoder.heartbeat = heartbeat
        results = measure(suite, encoder)
    engine.module.train()  # `Encoder` put it into evaluation mode
    return {
        str(name): results.metrics[str(name)]
        for name in map(MetricName.parse, results.metrics)
        if name.measure not in _MEAN_ALONE or name.language == MEAN
    }


def recorded_evaluation(
    run: Path, step: int, suite: str, best: str | None
) -> dict[str, float] | None:
    """The metrics that `evaluate` found at a step, from the run's records.

    Args:
        suite: its name.
        best: as in `EvaluationConfig`.

    Returns:
        The metrics; None: the suite was not measured at that step, or `best` is not among what was.
    """

    def fits(record: Mapping[str, object]) -> bool:
        # Records of training count captions; where their loss was NaN, they have none.
        is_training = "loss" in record or "captions_seen" in record
        # Older records of evaluations do not name their suite.
        is_of_suite = not is_training and record.get("suite", suite) == suite
        return record["step"] == step and is_of_suite and (best is None or best in record)

    found = list(filter(fits, read_records(run / METRICS)))
    if not found:
        return None
    return {name: value for name, value in found[-1].items() if name not in ("step", "suite")}


def with_best(
    state: TrainState, metrics: Mapping[str, float], suite: str, best: str
) -> TrainState | None:
    """The state of a run whose weights are the best so far; None: they are not.

    A value of another metric or of another suite is not compared: the run found it before it was resumed
    with another `evaluation`.

    Raises:
        UserError: the suite has no metric of that name.
    """
    value, of = _value_of(metrics, best), {"suite": suite, "metric": best}
    # Older checkpoints do not say what the value is of. Most runs never change it.
    is_same = state.best_of in (None, of)
    is_lower = state.best is not None and is_same and value <= state.best
    # NaN is never the best.
    return None if is_lower or np.isnan(value) else replace(state, best=value, best_of=of)


def _value_of(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise _no_metric(name, metrics)
    return metrics[name]


def _no_metric(name: str, known: Collection[str], where: str = "") -> UserError:
    near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.3)) or "none"
    return UserError(
        f"evaluation.best: {where}the suite has no metric `{name}`; similar names: {near}"
    )


def open_suite(
    config: EvaluationConfig | None, width: int, zero_stage: int = 0
) -> SuiteConfig | None:
    """The suite, if there is one, after a check of what it needs; for rank 0 (`distributed.on_main`).

    Manifests are read and folders are looked for, but no image and no caption is read.

    Args:
        width: of the model's vectors.
        zero_stage: of the engine.

    Raises:
        UserError: the file is invalid or asks for what ZeRO 3 cannot measure, a set or a folder in it is not
            there, a set lacks a language, `dims` is over the model's width, or `config.best` can be none of
            the suite's metrics.
    """
    if config is None:
        return None
    file = find_yaml(config.suite, "eval")
    suite = load_config(SuiteConfig, file)
    if zero_stage == 3 and suite.lexical:
        # Ranks measure languages of their own there, and every call gathers weights from all ranks.
        raise UserError(
            f"{file}: `lexical` cannot be measured under `engine.zero_stage` 3; leave it out, and measure "
            "the run with `mmalign eval`"
        )
    for dims in suite.dims:
        _checked(str(file), partial(check_dims, dims, width, "dims"))
    languages: dict[str, set[str]] = {}  # that are measured of each set
    for i, one in enumerate(suite.sets):
        there = _checked(f"{file}: `sets.{i}.shards`", partial(_languages_in, one.shards))
        check = partial(check_languages, one.languages, there, one.name)
        _checked(f"{file}: `sets.{i}.languages`", check)
        languages[one.name] = set(one.languages or there)
    for i, labelled in enumerate(suite.zero_shot):
        if labelled.shards is not None:
            _checked(f"{file}: `zero_shot.{i}.shards`", partial(_languages_in, labelled.shards))
    for field, folder in _folders(suite).items():
        if not Path(folder).is_dir():
            raise UserError(f"{file}: `{field}`: {folder}: no such folder; name one that is there")
    if config.best is not None and not _may_have(suite, config.best, languages):
        raise _no_metric(config.best, _examples(suite), f"{file}: ")
    return suite


def _checked(where: str, check: Callable[[], T]) -> T:
    # What `check` returns; its UserError begins with the file and the field.
    try:
        return check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _languages_in(shards: str) -> set[str]:
    # As the manifest counts them: the indexes of a large set take long to read.
    shard_set = ShardSet(Path(shards))
    shard_set.close()
    return set(map(canonical_language, shard_set.manifest.languages))


def _folders(suite: SuiteConfig) -> dict[str, str]:
    # Field -> folder, of all but shards.
    folders = {f"words.{i}.folder": one.folder for i, one in enumerate(suite.words)}
    folders |= {f"lexical.{i}.folder": one.folder for i, one in enumerate(suite.lexical)}
    for i, labelled in enumerate(suite.zero_shot):
        if labelled.images is not None:
            folders[f"zero_shot.{i}.images"] = labelled.images
    for i, probed in enumerate(suite.probe):
        folders |= {f"probe.{i}.train": probed.train, f"probe.{i}.test": probed.test}
    return folders


def _tails(suite: SuiteConfig) -> dict[str, list[str]]:
    # `<measure>/<subject>` of every metric -> what may follow the language; empty: anything.
    recalls = [f"{direction}/recall@{k}" for direction in DIRECTIONS for k in suite.recall_at]
    tails: dict[str, list[str]] = {}
    for one in suite.sets:
        for measured in one.measures:
            tails[f"{measured}/{one.name}"] = []
        if "retrieval" in one.measures:
            del tails[f"retrieval/{one.name}"]  # by the first captions alone it has another name
            for name in (one.name, *(one.name + DIMS.format(dims) for dims in suite.dims)):
                for protocol in one.protocols:
                    mark = FIRST_CAPTION if protocol == "first-caption" else ""
                    tails[f"retrieval/{name}{mark}"] = recalls
    for labelled in suite.zero_shot:
        accuracies = [f"accuracy@{k}" for k in labelled.accuracy_at]
        tails[f"zero_shot/{labelled.name}"] = accuracies
    tails |= {f"layers/{name}": [] for name in (suite.layers.sets if suite.layers else ())}
    tails |= {f"words/{one.name}": ["translation@1"] for one in suite.words}
    tails |= {f"lexical/{one.name}": [] for one in suite.lexical}
    return tails | {f"{PROBE}/{one.name}": [] for one in suite.probe}


def _may_have(suite: SuiteConfig, best: str, languages: Mapping[str, set[str]]) -> bool:
    # Whether the suite may have a metric of this name: which layers a tower has, and some more, is not
    # known before it is measured.
    try:
        name = MetricName.parse(best)
    except (ValueError, IndexError):  # too few parts
        return False
    tails = _tails(suite).get(name.prefix)
    tail = "/".join([*name.setting, name.metric])
    if tails is None or (tails and tail not in tails):
        return False
    if name.measure in _MEAN_ALONE:
        return name.language == MEAN
    if name.measure not in ("retrieval", "geometry"):
        return True
    return name.language in languages[name.data] or is_aggregate(str(name.language))


def _examples(suite: SuiteConfig) -> list[str]:
    # Names of metrics, of those that are known beforehand.
    return [f"{prefix}/{MEAN}/{tail}" for prefix, of in _tails(suite).items() for tail in of]
