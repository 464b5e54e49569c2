"""Train a tower, a head and a robust method on the training examples of one language.

    Tower (a copy where it changes) + head -> steps of the method -> checks on dev -> best weights kept

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
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.build import build_model
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.heads.features import Pairs
from mmalign.text.lora import LoraConfig, add_lora, merge_lora
from mmalign.text.robust.method import AugmentConfig, MethodConfig, PlainConfig, build_augmentation
from mmalign.text.scores import PRIMARY
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.task import Task
from mmalign.text.transfer import Outcome, outcome_of

_MAX_GRADIENT_NORM = 1.0


class FitConfig(Section):
    """What is trained, and how."""

    trainable: Literal["head", "lora", "all"] = "head"
    """head: on a fixed tower; lora: low-rank adapters in the trunk as well; all: the entire tower as well."""
    lora: LoraConfig = LoraConfig()
    """Only with `trainable: lora`."""
    pairs: Pairs = "joint"
    """How the head sees two texts: read as one sequence, or each alone in the tower's space."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of the head's hidden layer; none: a linear head."""
    epochs: int = Field(ge=1)
    repeats: int = Field(default=1, ge=1)
    """Times that an epoch goes through the training rows: as many steps as RS-DA with so many copies."""
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate of the tower, or of its adapters; unused with `trainable: head`."""
    head_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of the head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's; matrices only, not biases and norms."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it then falls linearly to zero."""
    checks: int = Field(default=1, ge=1)
    """Checks on dev per epoch; the weights kept are those of the best one, without dev the last."""
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
        history: `steps`, `kept_step`, `train_loss` (mean since the check before) and, with dev examples,
            `dev` (the primary metric), one value per check.
        oracle: by language: the outcome on its tests at its own best check; with `oracle` only.
    """

    model: TaskModel
    history: dict[str, Any]
    oracle: dict[str, Outcome] = field(default_factory=dict)

    def kept(self) -> dict[str, Any]:
        """The part of the history that describes the weights that were kept."""
        facts = {name: self.history[name] for name in ("steps", "kept_step")}
        if "dev" in self.history:
            facts["dev"] = max(self.history["dev"])
        if self.history["train_loss"]:
            facts["train_loss"] = self.history["train_loss"][-1]
        return facts


def fit(
    tower: TextEncoder, task: Task, config: FitConfig, seed: int, label: str | None = None
) -> Fitted:
    """Train a model of the task; `tower` itself does not change.

    Without training examples (retrieval) the model is the unchanged tower.

    Args:
        label: of the progress bar, if not the task's name.

    Raises:
        UserError: training diverges, or method and task do not go together.
    """
    _check_causality(task, config)
    torch.manual_seed(seed)
    if not task.train:
        model = build_model(tower, task, config.pairs, config.hidden).eval()
        return Fitted(model, {"steps": 0, "kept_step": 0, "train_loss": []})
    train, augment = build_augmentation(config.augment, task.train * config.repeats, seed)
    model = _new_model(tower, task, config)
    model.prepare(task.train)
    steps_an_epoch = -(-len(train) // config.batch_size)
    steps = config.epochs * steps_an_epoch
    every = max(1, steps_an_epoch // config.checks)
    optimizer, schedule = _build_optimizer(model, steps, config)
    checks = _Checks(model, task, config.oracle)
    # Three sources of random numbers (torch's global one draws dropout), so that none moves another.
    noise = torch.Generator(model.tower.device).manual_seed(seed)
    texts = np.random.default_rng((seed, 1))

    def set_training() -> None:
        model.train()
        model.tower.train(config.trainable != "head")  # a fixed tower has no dropout either

    set_training()
    stream = shuffled_batches(len(train), config.batch_size, config.epochs, seed)
    losses: list[float] = []
    for step, rows in enumerate(console.track(stream, label or task.name, steps), start=1):
        batch = model.collate(augment([train[row] for row in rows], texts))
        if isinstance(model, CausalityModel) and model.config.contrast is not None:
            loss = model.loss_with_view(batch, texts)
            loss.backward()
            losses.append(loss.item())
        else:
            losses.append(config.method.backward(model, batch, noise))
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step == steps or step % every == 0:
            mean = float(np.mean(losses))
            if not np.isfinite(mean):
                raise UserError(f"the loss is {mean} before step {step}; lower `lr` or `head_lr`")
            checks.check(step, mean)
            losses.clear()
            set_training()
    fitted = checks.finish(steps)
    if config.trainable == "lora":
        merge_lora(model.tower)
    return fitted


class _Checks:
    """Measures dev now and then and remembers the best weights."""

    def __init__(self, model: TaskModel, task: Task, oracle: bool) -> None:
        self._model = model
        self._task = task
        self._source_dev = task.dev.get(task.source, [])
        self._oracles = [
            lang for lang in task.targets if oracle and task.dev.get(lang) and task.tests[lang]
        ]
        self._best: dict[str, tuple[float, float]] = {}
        self._kept: dict[str, Tensor] = {}
        self._history: dict[str, Any] = {"train_loss": []}
        self._outcomes: dict[str, Outcome] = {}

    def check(self, step: int, train_loss: float) -> None:
        self._history["train_loss"].append(train_loss)
        if self._source_dev:
            value, is_best = self._measure(self._task.source, self._source_dev)
            self._history.setdefault("dev", []).append(value)
            if is_best:
                self._history["kept_step"] = step
                self._kept = {
                    name: parameter.detach().clone()
                    for name, parameter in self._model.named_parameters()
                    if parameter.requires_grad
                }
        for lang in self._oracles:
            if self._measure(lang, self._task.dev[lang])[1]:
                tests = self._task.tests[lang]
                self._outcomes[lang] = outcome_of(self._task, tests, self._model.predict(tests))

    def finish(self, steps: int) -> Fitted:
        """The model with the best weights; without dev, the last ones."""
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, kept in self._kept.items():
                parameters[name].copy_(kept)
        self._model.eval()
        history = {"steps": steps, "kept_step": steps, **self._history}
        return Fitted(self._model, history, self._outcomes)

    def _measure(self, lang: str, examples: Sequence[Example]) -> tuple[float, bool]:
        """The primary metric on the examples, and whether it is the language's best so far."""
        predictions, loss = self._model.predict_with_loss(examples)
        outcome = outcome_of(self._task, examples, predictions)
        value = float(np.mean(outcome.values[PRIMARY[self._task.kind]]))
        # Small dev sets tie often: of equal checks the one with the lower loss is better.
        is_best = (value, -loss) > self._best.get(lang, (-np.inf, -np.inf))
        if is_best:
            self._best[lang] = (value, -loss)
        return value, is_best


def copy_of(tower: TextEncoder) -> TextEncoder:
    """A tower that can be trained while the given one stays the same."""
    # The tokenizer does not change: both share it (a memo entry says "copied already").
    return copy.deepcopy(tower, {id(tower.tokenizer): tower.tokenizer})


def shuffled_batches(rows: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, in another order in every epoch."""
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from batched(order.permutation(rows).tolist(), batch_size)


def _new_model(tower: TextEncoder, task: Task, config: FitConfig) -> TaskModel:
    """A new head on the tower, or on a copy of it where the tower will change."""
    if config.trainable != "head":
        tower = copy_of(tower)
    tower.requires_grad_(config.trainable == "all")
    if config.trainable == "lora":
        add_lora(tower, config.lora)
    return build_model(tower, task, config.pairs, config.hidden, config.causality)


def _check_causality(task: Task, config: FitConfig) -> None:
    """Settings that event causality excludes, or that no other kind of task has, are errors."""
    name = f"task `{task.name}`"
    if task.kind != "event_causality":
        if config.causality is not None:
            raise UserError(f"{name}: `causality` is for event_causality, not {task.kind}; drop it")
        return
    if config.augment is not None:
        raise UserError(
            f"{name}: `augment` moves the events of event_causality; use `causality.contrast`, whose "
            "views keep them"
        )
    has_contrast = config.causality is not None and config.causality.contrast is not None
    if has_contrast and not isinstance(config.method, PlainConfig):
        raise UserError(
            f"{name}: `method.kind` {config.method.kind} does not go with `causality.contrast`; take one"
        )


def _build_optimizer(
    model: TaskModel, steps: int, config: FitConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with the head's own learning rate; it rises, then falls linearly to zero."""
    groups = []
    for module, lr in ((model.head, config.head_lr), (model.tower, config.lr)):
        trained = [one for one in module.parameters() if one.requires_grad]
        for is_matrix in (True, False):
            parameters = [one for one in trained if (one.ndim >= 2) == is_matrix]
            decay = config.weight_decay if is_matrix else 0.0
            groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    warm = round(config.warmup * steps)

    def factor(step: int) -> float:
        return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
