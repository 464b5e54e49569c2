"""Train a tower, a head and a robust method on the training examples of one language.

A small loop of plain torch in one process: tasks have thousands of rows, and the engine is for pretraining.
The same configuration, tower, data and seed give the same numbers on the same machine.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmalign.core import console
from mmalign.core.batching import batched
from mmalign.core.config import Section
from mmalign.core.errors import Diverged, UserError
from mmalign.core.precision import Precision, choose_precision
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import layer_depths
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.heads import features
from mmalign.text.heads.base import TaskBatch, TaskModel, check_finite
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.heads.features import ON_FEATURES, Pairs
from mmalign.text.heads.ranking import RetrievalModel
from mmalign.text.heads.spans import SpanModel
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.lora import LoraConfig, add_lora, merge_lora
from mmalign.text.robust.method import AugmentConfig, MethodConfig, PlainConfig, build_augmentation
from mmalign.text.scores import PRIMARY
from mmalign.text.tasks.task import Task
from mmalign.text.transfer import Outcome, outcome_of

_FACTS = ("steps", "kept_step", "precision")
_GROUPED_BATCHES = 50  # sorted by length together: few tokens of padding, and batches still differ
_MAX_GRADIENT_NORM = 1.0  # as in the fine-tuning of BERT and XTREME


class FitConfig(Section):
    """What is trained, and how."""

    trainable: Literal["head", "lora", "all"] = "head"
    """head: on a fixed tower; lora: low-rank adapters in the trunk as well; all: the entire tower as well."""
    lora: LoraConfig = LoraConfig()
    """Only with `trainable: lora`."""
    frozen_layers: int | None = Field(default=None, ge=0)
    """Keep the word embeddings and so many of the first blocks as they are; none: not even the embeddings."""
    precision: Precision = "auto"
    """Of the encoder. auto: in training bf16 where the hardware multiplies it, in measuring bf16 on such GPUs
    alone, else fp32; bf16: its matrix products in bfloat16 (autocast). Weights, head and loss are float32 in
    any case, and so is a fixed encoder (`trainable: head`)."""
    pairs: Pairs = "joint"
    """How the head sees two texts: read as one sequence, or each alone in the tower's space."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of the head's hidden layer; none: a linear head."""
    epochs: int = Field(ge=1)
    repeats: int = Field(default=1, ge=1)
    """Times that an epoch goes through the training rows: as many steps as RS-DA with so many copies."""
    batch_size: int = Field(default=32, ge=1)
    group_by_length: bool = True
    """Batches of examples of like length, for little padding. In every epoch the examples are shuffled and
    sorted within groups of 50 batches, and the batches are shuffled."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate of the tower, or of its adapters; unused with `trainable: head`."""
    head_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of the head."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of `lr` from each block to the one below (arXiv 1905.05583); embeddings are below the first."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's; matrices only, not biases and norms."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it then falls linearly to zero."""
    checks: int = Field(default=1, ge=1)
    """Checks on dev per epoch; the weights kept are those of the best one, without dev the last."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many checks in a row that are not better; none: never."""
    oracle: bool = False
    """Also report, for each language, the outcome at the best check of its own dev examples."""
    augment: AugmentConfig | None = None
    """What is done to the training texts; none: nothing."""
    method: MethodConfig = PlainConfig(kind="plain")
    """How a batch's gradient is made."""
    causality: CausalityConfig | None = None
    """Graph and contrast of event_causality; none: its defaults, and with any other kind of task."""


@dataclass
class Fitted:
    """A trained model and its training history.

    Attributes:
        history: `steps`, `kept_step`, `precision` of the encoder in training, `train_loss` (mean since the
            check before) and, with dev examples, `dev` (the primary metric), one value per check.
        oracle: by language: the outcome on its tests at its own best check; with `oracle` only.
    """

    model: TaskModel
    history: dict[str, Any]
    oracle: dict[str, Outcome] = field(default_factory=dict)

    def kept(self) -> dict[str, Any]:
        # Nothing trains in retrieval without training examples, so it has no precision.
        facts = {name: self.history[name] for name in self.history if name in _FACTS}
        if "dev" in self.history:
            facts["dev"] = max(self.history["dev"])
        if self.history["train_loss"]:
            facts["train_loss"] = self.history["train_loss"][-1]
        return facts


def precision_of(config: FitConfig) -> Literal["fp32", "bf16"]:
    """What the encoder computes in while it trains. A fixed one is only read, which float32 is for."""
    return "fp32" if config.trainable == "head" else choose_precision(config.precision)


def fit(
    tower: TextEncoder, task: Task, config: FitConfig, seed: int, label: str | None = None
) -> Fitted:
    """Train a model of the task; `tower` itself does not change. The progress bar shows `label`.

    Raises:
        UserError: training diverges, or method and task do not go together.
    """
    _check_causality(task, config)
    # A loss that is not finite would ask for a lower `lr`; a few texts tell whether the tower is at fault.
    check_finite(tower, tower.encode([text for one in task.train[:8] for text in one.texts]))
    torch.manual_seed(seed)
    history: dict[str, Any] = {"steps": 0, "kept_step": 0, "train_loss": []}
    if not task.train:  # retrieval
        return Fitted(build_model(tower, task, config.pairs, config.hidden).eval(), history)
    train, augment = build_augmentation(config.augment, task.train * config.repeats, seed)
    model = _new_model(tower, task, config)
    model.prepare(task.train)
    steps_an_epoch = -(-len(train) // config.batch_size)
    steps = config.epochs * steps_an_epoch
    history |= {"steps": steps, "kept_step": steps, "precision": precision_of(config)}
    every = max(1, steps_an_epoch // config.checks)
    optimizer, schedule = _build_optimizer(model, steps, config)
    fitted = Fitted(model, history)
    checks = _Checks(fitted, task, config.oracle)
    # Three sources of random numbers (torch's global one draws dropout), so that none moves another.
    noise = torch.Generator(model.tower.device).manual_seed(seed)
    texts = np.random.default_rng((seed, 1))
    lengths = [sum(map(len, one.texts)) for one in train] if config.group_by_length else None
    stream = shuffled_batches(len(train), config.batch_size, config.epochs, seed, lengths)
    trained = [one for one in model.parameters() if one.requires_grad]
    losses: list[float] = []
    for step, rows in enumerate(console.track(stream, label or task.name, steps), start=1):
        model.train()  # again in every step: a check leaves the model in evaluation mode
        model.tower.train(config.trainable != "head")  # a fixed tower has no dropout either
        batch = model.collate(augment([train[row] for row in rows], texts))
        losses.append(_add_gradients(model, config, batch, texts, noise))
        nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
        optimizer.step()
        # The fused kernel does not count its changes of the weights, by which features are cached.
        torch.autograd.graph.increment_version(trained)
        schedule.step()
        optimizer.zero_grad()
        if step == steps or step % every == 0:
            mean = float(np.mean(losses))
            if not np.isfinite(mean):
                raise Diverged(f"the loss is {mean} before step {step}; lower `lr` or `head_lr`")
            checks.check(step, mean)
            losses.clear()
            if config.patience is not None and checks.worse >= config.patience:
                history["steps"] = step
                break
    # Only what was trained was kept, so most names are missing; the rest never changed.
    model.load_state_dict(checks.kept, strict=False)  # nothing without dev: the last step is kept
    model.eval()
    if config.trainable == "lora":
        merge_lora(model.tower)
    return fitted


def _add_gradients(
    model: TaskModel,
    config: FitConfig,
    batch: TaskBatch,
    texts: np.random.Generator,
    noise: torch.Generator,
) -> float:
    # Those of the batch's mean loss, which is returned.
    if isinstance(model, CausalityModel) and model.config.contrast is not None:
        loss = model.loss_with_view(batch, texts)
        loss.backward()
        return loss.item()
    return config.method.backward(model, batch, noise)


class _Checks:
    """Measures dev now and then, and remembers the best weights and each language's best outcome."""

    def __init__(self, fitted: Fitted, task: Task, oracle: bool) -> None:
        self._fitted = fitted
        self._task = task
        others = [lang for lang in task.targets if oracle and lang != task.source]
        languages = [task.source, *(lang for lang in others if task.tests[lang])]
        self._languages = [lang for lang in languages if task.dev.get(lang)]
        self._best: dict[str, tuple[float, float]] = {}
        # The trained weights at the best check of the source language's dev examples, and checks since then.
        self.kept: dict[str, Tensor] = {}
        self.worse = 0

    def check(self, step: int, train_loss: float) -> None:
        model, task, history = self._fitted.model, self._task, self._fitted.history
        history["train_loss"].append(train_loss)
        for lang in self._languages:
            predictions, loss = model.predict_with_loss(task.dev[lang])
            outcome = outcome_of(task, task.dev[lang], predictions)
            value = float(np.mean(outcome.values[PRIMARY[task.kind]]))
            if lang == task.source:
                history.setdefault("dev", []).append(value)
                self.worse += 1
            # Small dev sets tie often: of equal checks the one with the lower loss is better.
            if not (value, -loss) > self._best.get(lang, (-np.inf, -np.inf)):
                continue
            self._best[lang] = (value, -loss)
            if lang != task.source:
                tests = task.tests[lang]
                self._fitted.oracle[lang] = outcome_of(task, tests, model.predict(tests))
                continue
            history["kept_step"], self.worse = step, 0
            self.kept = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }


def copy_of(tower: TextEncoder) -> TextEncoder:
    """A tower that can be trained while the given one stays the same."""
    # The tokenizer does not change: both share it (a memo entry says "copied already").
    return copy.deepcopy(tower, {id(tower.tokenizer): tower.tokenizer})


def shuffled_batches(
    rows: int, batch_size: int, epochs: int, seed: int, lengths: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, in another order in every epoch; of like `lengths`, if given."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(rows).tolist()
        if lengths is None:
            yield from batched(order, batch_size)
            continue
        groups = batched(order, _GROUPED_BATCHES * batch_size)
        batches = [
            batch
            for one in groups
            for batch in batched(sorted(one, key=lengths.__getitem__), batch_size)
        ]
        # Shuffled, or the learning rate and the length would rise and fall together.
        yield from (batches[i] for i in random.permutation(len(batches)))


def _new_model(tower: TextEncoder, task: Task, config: FitConfig) -> TaskModel:
    tower.precision = "fp32" if config.precision == "fp32" else "auto"
    if config.trainable != "head":
        tower = copy_of(tower)
        tower.trains_in_bf16 = precision_of(config) == "bf16"
    tower.requires_grad_(config.trainable == "all")
    if config.trainable == "lora":
        add_lora(tower, config.lora)
    if config.frozen_layers is not None:
        depths = _depths(tower, "frozen_layers")
        for name, parameter in tower.trunk.named_parameters():
            if depths[name] >= max(depths.values()) - config.frozen_layers:
                parameter.requires_grad_(False)
    return build_model(tower, task, config.pairs, config.hidden, config.causality)


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
            return RetrievalModel(tower, task.candidates)
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


def _depths(tower: TextEncoder, field: str) -> dict[str, int]:
    depths = layer_depths(tower.trunk)
    if depths is None:
        raise UserError(
            f"{field}: the layers of a {tower.trunk.config.model_type} are not known; leave it out"
        )
    return depths


def _build_optimizer(
    model: TaskModel, steps: int, config: FitConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    tower = model.tower
    depths = _depths(tower, "layer_decay") if config.layer_decay < 1 else {}
    scales = {f"trunk.{name}": config.layer_decay ** (depth - 1) for name, depth in depths.items()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module, lr, scale in ((model.head, config.head_lr, {}), (tower, config.lr, scales)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decay = config.weight_decay if parameter.ndim >= 2 else 0.0
                groups.setdefault((lr * scale.get(name, 1.0), decay), []).append(parameter)
    # One kernel per group: on CPUs several times as fast as the default, equal up to rounding.
    settings = [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    optimizer = torch.optim.AdamW(settings, fused=True)
    warm = round(config.warmup * steps)

    def factor(step: int) -> float:
        # Neither end is zero: the first and the last step train as well.
        return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
