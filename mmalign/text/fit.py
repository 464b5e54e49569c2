"""Train a tower, a head and a robust method on the training examples of one language.

    tower, task, FitConfig, seed -> model with a new head -> fit_loop.Training -> Fitted
                                 -> KeptFit: the same fit, trained before or stopped on its way

The same configuration, tower, data and seed give the same numbers on the same machine.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.fit_config import FitConfig, precision_of
from mmalign.text.fit_loop import Fitted, Training, depths_of
from mmalign.text.heads import features
from mmalign.text.heads.base import TaskModel, check_finite
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.heads.features import ON_FEATURES, Pairs
from mmalign.text.heads.ranking import RetrievalModel
from mmalign.text.heads.spans import SpanModel
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.kept_fits import KeptFit, fit_key
from mmalign.text.lora import add_lora, merge_lora
from mmalign.text.tasks.task import Task
from mmalign.text.transfer import merge_of_dev


def fit(
    tower: TextEncoder,
    task: Task,
    config: FitConfig,
    seed: int,
    label: str | None = None,
    fits: Path | None = None,
) -> Fitted:
    """Train a model of the task; `tower` itself does not change. A collective.

    Args:
        label: beside the progress bar; none: the task's name.
        fits: a folder where the trained weights are kept. What is there already is not trained again, and
            a training that was stopped goes on. Unused with `oracle`, which looks at the tests.

    Raises:
        UserError: training diverges, method and task do not go together, or ranks differ in what they read.
    """
    _check_causality(task, config)
    # A loss that is not finite would ask for a lower `lr`; a few texts tell whether the tower is at fault.
    check_finite(tower, tower.encode([text for one in task.train[:8] for text in one.texts]))
    torch.manual_seed(seed)
    history: dict[str, Any] = {"steps": 0, "kept_step": 0, "train_loss": []}
    if not task.train:  # retrieval
        tower = copy.copy(tower)
        _apply_settings(tower, config)
        return Fitted(build_model(tower, task, config.pairs, config.hidden).eval(), history)
    kept = _kept_fit(tower, task, config, seed, fits)
    finished = kept.finished() if kept else None
    started = kept.progress() if kept and finished is None else None
    found = "finished" if finished else started and started["done"]
    distributed.must_agree(found, f"{fits}: what is kept of a training")
    if started:  # perhaps on other hardware, where `auto` chooses another one
        config = config.model_copy(update={"precision": started["history"]["precision"]})
    model = _new_model(tower, task, config)
    model.prepare(task.train)
    training = Training(model, task, config, seed, history)
    if finished:
        weights, training.fitted.history = finished
    else:
        if started:
            training.load_state(started)
        weights = training.run(label or task.name, kept)
    # Only what was trained was kept, so most names are missing; the rest never changed.
    model.load_state_dict(weights, strict=False)
    model.eval()
    if config.trainable == "lora":
        merge_lora(model.tower)
    return training.fitted


def _kept_fit(
    tower: TextEncoder, task: Task, config: FitConfig, seed: int, fits: Path | None
) -> KeptFit | None:
    several = distributed.world_size() > 1
    is_kept = fits is not None and not config.oracle
    if not (several or is_kept):
        return None
    settings = config.model_dump(mode="json", include=set(FitConfig.model_fields))
    # Of a coarser dev set `merge` decides which weights are kept; of all others nothing depends on it.
    if merge := merge_of_dev(task, task.dev.get(task.source, [])):
        settings["merge"] = sorted(merge.items())
    key = fit_key(tower, task, settings, seed)
    distributed.must_agree(key, f"task `{task.name}`: tower, rows or settings")
    if several and task.kind == "retrieval":
        raise UserError(
            f"task `{task.name}`: retrieval compares all candidates of a batch, so it is trained in one "
            "process; leave torchrun out"
        )
    return KeptFit(fits, key) if fits is not None and is_kept else None


def copy_of(tower: TextEncoder) -> TextEncoder:
    """A tower that can be trained while the given one stays the same."""
    # The tokenizer does not change: both share it (a memo entry says "copied already").
    return copy.deepcopy(tower, {id(tower.tokenizer): tower.tokenizer})


def _apply_settings(tower: TextEncoder, config: FitConfig) -> None:
    # A fixed tower encodes in float32, as `precision_of` says.
    is_fp32 = config.precision == "fp32" or config.trainable == "head"
    tower.precision = "fp32" if is_fp32 else "auto"
    if config.max_length is not None:
        tower.cut_at(min(config.max_length, tower.max_length))


def _new_model(tower: TextEncoder, task: Task, config: FitConfig) -> TaskModel:
    # A fixed tower shares its weights with the one that was given, and has settings of its own.
    tower = copy.copy(tower) if config.trainable == "head" else copy_of(tower)
    _apply_settings(tower, config)
    if config.trainable != "head":
        tower.trains_in_bf16 = precision_of(config) == "bf16"
    tower.requires_grad_(config.trainable == "all")
    if config.trainable == "lora":
        add_lora(tower, config.lora)
    if config.frozen_layers is not None:
        depths = depths_of(tower, "frozen_layers")
        for name, parameter in tower.trunk.named_parameters():
            if depths[name] >= max(depths.values()) - config.frozen_layers:
                parameter.requires_grad_(False)
    model = build_model(tower, task, config.pairs, config.hidden, config.causality)
    if config.class_weights is not None:
        if not isinstance(model, features.ClassificationModel):
            raise UserError(
                f"task `{task.name}`: `class_weights` are for classification, not {task.kind}"
            )
        model.balance(task.train)
    model.source = task.source
    return model


def build_model(
    tower: TextEncoder,
    task: Task,
    pairs: Pairs,
    hidden: int | None,
    causality: CausalityConfig | None = None,
) -> TaskModel:
    """A model of the task's kind with an untrained head.

    Raises:
        UserError: `hidden` where the head has no such layer.
    """
    if hidden is not None and task.kind not in ON_FEATURES:
        kinds = ", ".join(ON_FEATURES)
        raise UserError(f"task `{task.name}`: `hidden` is for {kinds}, not {task.kind}; drop it")
    match task.kind:
        case "classification":
            # The protocol of a task of single texts must not depend on `pairs`.
            of_pairs = pairs if len(task.train[0].texts) == 2 else None
            return features.ClassificationModel(tower, task.labels, of_pairs, hidden)
        case "similarity":
            return features.SimilarityModel(tower, pairs, hidden)
        case "multiple_choice":
            return features.ChoiceModel(tower, pairs, hidden)
        case "tagging":
            return TaggingModel(tower, task.labels)
        case "span_qa":
            return SpanModel(tower)
        case "retrieval":
            return RetrievalModel(tower, task.candidates, task.tests if task.centred else None)
        case "event_causality":
            return CausalityModel(tower, causality or CausalityConfig())


def _check_causality(task: Task, config: FitConfig) -> None:
    wrong = None
    if task.kind != "event_causality":
        if config.causality is not None:
            wrong = f"`causality` is for event_causality, not {task.kind}; drop it"
    elif config.augment is not None:
        wrong = "`augment` moves the events of event_causality; use `causality.contrast`, which keeps them"
    elif config.causality and config.causality.contrast and config.method.kind != "plain":
        wrong = (
            f"`method.kind` {config.method.kind} does not go with `causality.contrast`; take one"
        )
    if wrong is not None:
        raise UserError(f"task `{task.name}`: {wrong}")
