"""The loop of a fit: batches, steps, checks on dev, and the state that a stopped fit goes on from.

A small loop of plain torch: tasks have thousands of rows, and the engine is for pretraining. Several ranks
(torchrun) share the rows of every batch:

    batch -> rows r, r + ranks, ... -> gradients of their loss -> summed over ranks -> one step on all

The gradient is that of one process up to rounding, but for what is drawn at random: each rank has its own
dropout and noise. A mean over words or pairs of a batch (consistency of tagging, contrast) is one over the
rows of a rank, as with `micro_batch` over those of a part.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmalign.core import console, distributed
from mmalign.core.batching import batched
from mmalign.core.errors import Diverged, UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import layer_depths
from mmalign.text.fit_config import FitConfig, precision_of
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.kept_fits import KeptFit
from mmalign.text.robust.consistency import ConsistencyConfig
from mmalign.text.robust.method import build_augmentation
from mmalign.text.scores import PRIMARY
from mmalign.text.tasks.task import Example, Task
from mmalign.text.transfer import Outcome, merge_of_dev, outcome_of

_FACTS = ("steps", "kept_step", "precision")
_GROUPED_BATCHES = 50  # sorted by length together: few tokens of padding, and batches still differ
SAVE_SECONDS = 300.0  # between two saves of a fit that is kept
_MAX_GRADIENT_NORM = 1.0  # as in the fine-tuning of BERT and XTREME


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


class Training:
    """The loop of `fit`, and its state between two steps."""

    def __init__(
        self, model: TaskModel, task: Task, config: FitConfig, seed: int, history: dict[str, Any]
    ) -> None:
        self.model = model
        self.fitted = Fitted(model, history)
        self._config = config
        self._train, self._augment = build_augmentation(
            config.augment, task.train * config.repeats, seed, task.source
        )
        if isinstance(config.method, ConsistencyConfig):
            config.method.check(task.train)
        # Repeats and the copies of RS-DA are passes of their own, or a batch would hold a row twice.
        self._passes = len(self._train) // len(task.train)
        steps_an_epoch = self._passes * -(-len(task.train) // config.batch_size)
        self._steps = config.epochs * steps_an_epoch
        self._every = max(1, steps_an_epoch // config.checks)
        precision = precision_of(config)
        history |= {"steps": self._steps, "kept_step": self._steps, "precision": precision}
        self._optimizer, self._schedule = _build_optimizer(self.model, self._steps, config)
        self._checks = _Checks(self.fitted, task, config.oracle)
        # Three sources of random numbers (torch's global one draws dropout), so that none moves another.
        self._noise = torch.Generator(self.model.tower.device).manual_seed(seed)
        self._texts = np.random.default_rng((seed, 1))  # the same on all ranks
        self._seed = seed
        self._done = 0  # steps
        if distributed.rank():
            self._seed_rank()
        self._losses: list[float] = []  # since the last check

    def run(self, label: str, kept: KeptFit | None) -> dict[str, Tensor]:
        """Train to the end; the weights to keep, by their names: of the best check, or of the last step."""
        train, config = self._train, self._config
        lengths = [sum(map(len, one.texts)) for one in train] if config.group_by_length else None
        epochs, rows_a_pass = config.epochs, len(train) // self._passes
        stream = shuffled_batches(
            rows_a_pass, config.batch_size, epochs, self._seed, lengths, self._passes
        )
        rest = islice(stream, self._done, None)
        saved = time.monotonic()
        for rows in console.track(rest, label, self._steps - self._done):
            self._step([train[row] for row in rows])
            if self._done == self._steps or self._done % self._every == 0:
                self._check()
                if config.patience is not None and self._checks.worse >= config.patience:
                    self.fitted.history["steps"] = self._done
                    break
            # Rank 0 decides: clocks differ.
            if kept and distributed.on_main(partial(_is_due, saved)):
                state = self.state()
                distributed.on_main(partial(kept.save_progress, state))
                saved = time.monotonic()
        weights = self._checks.kept or _trained(self.model)
        if kept:
            distributed.on_main(partial(kept.finish, weights, self.fitted.history))
        return weights

    def _step(self, examples: list[Example]) -> None:
        model, config = self.model, self._config
        model.train()  # again in every step: a check leaves the model in evaluation mode
        model.tower.train(config.trainable != "head")  # a fixed tower has no dropout either
        trained = [one for one in model.parameters() if one.requires_grad]
        rows = self._augment(examples, self._texts)
        mine = rows[distributed.rank() :: distributed.world_size()]
        done, mean = 0, 0.0
        for part in batched(mine, config.micro_batch or len(rows)):
            # A method adds the gradients of a part's mean loss: those of the parts before are scaled up
            # first and all of them down afterwards, which leaves the mean over all rows.
            _scale_gradients(trained, done / len(part))
            loss = _add_gradients(model, config, model.collate(part), self._texts, self._noise)
            _scale_gradients(trained, len(part) / (done + len(part)))
            mean = (mean * done + loss * len(part)) / (done + len(part))
            done += len(part)
        self._losses.append(_sum_over_ranks(trained, mean, len(mine) / len(rows)))
        nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
        self._optimizer.step()
        # The fused kernel does not count its changes of the weights, by which features are cached.
        torch.autograd.graph.increment_version(trained)
        self._schedule.step()
        self._optimizer.zero_grad()
        self._done += 1

    def _check(self) -> None:
        mean = float(np.mean(self._losses))
        if not np.isfinite(mean):
            step = self._done
            raise Diverged(f"the loss is {mean} before step {step}; lower `lr` or `head_lr`")
        self._checks.check(self._done, mean)
        self._losses.clear()

    def state(self) -> dict[str, Any]:
        """All that changes from step to step, for `load_state`. A collective."""
        device = self.model.tower.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        own = [torch.get_rng_state(), self._noise.get_state(), cuda]
        return {
            "model": _trained(self.model),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": distributed.gather_objects(own),
            "texts": json.dumps(self._texts.bit_generator.state),
            "done": self._done,
            "losses": self._losses,
            "history": self.fitted.history,
            "checks": self._checks.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._texts.bit_generator.state = json.loads(state["texts"])
        self._done, self._losses = state["done"], state["losses"]
        self.fitted.history.update(state["history"])
        self._checks.load_state(state["checks"])
        if distributed.rank() >= len(state["random"]):  # there are more ranks than before
            self._seed_rank()
            return
        own, noise, cuda = state["random"][distributed.rank()]
        torch.set_rng_state(own)
        self._noise.set_state(noise)
        if cuda is not None and self.model.tower.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.model.tower.device)

    def _seed_rank(self) -> None:
        # Dropout and noise of a rank behind the first, from here on. Rank 0 draws what one process draws.
        words = np.random.SeedSequence((self._seed, distributed.rank(), self._done))
        seed = int(words.generate_state(1)[0])
        torch.manual_seed(seed)
        self._noise.manual_seed(seed)


def _is_due(saved: float) -> bool:
    return time.monotonic() - saved > SAVE_SECONDS


def _trained(model: TaskModel) -> dict[str, Tensor]:
    """Copies of the weights that training changes."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    gradients = [one.grad for one in parameters if one.grad is not None]
    if gradients and factor != 1:
        torch._foreach_mul_(gradients, factor)


def _sum_over_ranks(parameters: Sequence[nn.Parameter], loss: float, share: float) -> float:
    """Make gradients and loss of a rank's rows those of the batch, of which they are `share`."""
    if distributed.world_size() == 1:
        return loss
    _scale_gradients(parameters, share)
    # A rank without rows has no gradients; what has none on any rank stays without, as in one process.
    has_own = [float(one.grad is not None) for one in parameters]
    facts = torch.tensor([loss * share, *has_own], dtype=torch.float64)
    total, *has_gradient = distributed.sum_over_ranks(facts).tolist()
    waits = []
    for one, has in zip(parameters, has_gradient, strict=True):
        if has:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
            waits.append(distributed.start_sum_(one.grad))
    for wait in waits:
        wait()
    return float(total)


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
            dev = task.dev[lang]
            predictions, loss = model.predict_with_loss(dev)
            compared = replace(task, merge=merge_of_dev(task, dev))
            outcome = outcome_of(compared, dev, predictions)
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
            self.kept = _trained(model)

    def state(self) -> tuple[dict[str, tuple[float, float]], dict[str, Tensor], int]:
        return self._best, self.kept, self.worse

    def load_state(
        self, state: tuple[dict[str, tuple[float, float]], dict[str, Tensor], int]
    ) -> None:
        self._best, self.kept, self.worse = state


def shuffled_batches(
    rows: int,
    batch_size: int,
    epochs: int,
    seed: int,
    lengths: Sequence[int] | None = None,
    passes: int = 1,
) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, in another order in every epoch; of like `lengths`, if given.

    Args:
        passes: of an epoch, one behind the other: the k-th goes through the rows from `k * rows` on.
    """
    random = np.random.default_rng(seed)
    for number in range(epochs * passes):
        order = (random.permutation(rows) + number % passes * rows).tolist()
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


def depths_of(tower: TextEncoder, field: str) -> dict[str, int]:
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
    depths = depths_of(tower, "layer_decay") if config.layer_decay < 1 else {}
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
