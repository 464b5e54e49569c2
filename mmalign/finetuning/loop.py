"""Fine-tuning on the labels of one language, and zero-shot accuracy in every other one.

    task folder -> TransferTask -+
    run folder  -> Encoder ------+-> fit (head, or head and tower), score (clean, typos) -> results
                                 +-> the same with items held out          (`folds`)
                                 +-> the same on the untrained tower       (`baselines`)

A small loop of plain torch in one process: tasks have hundreds or thousands of rows, and the engine
is for pretraining. Typing errors are in the tests only, never in training. The same configuration,
run and data give the same numbers.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmalign import console
from mmalign.batch import TaskRow
from mmalign.commit import committed_folder, write_atomic
from mmalign.config import Section, write_yaml
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder, load_encoder
from mmalign.evaluation.perturbations import with_typos
from mmalign.evaluation.results import Results, environment
from mmalign.evaluation.text_tasks import (
    Outcome,
    Outcomes,
    TransferTask,
    add_accuracies,
    deal_ids,
    describe,
    hits,
    read_transfer,
)
from mmalign.finetuning.heads import ClassificationHead, TextClassifier

_MAX_GRADIENT_NORM = 1.0
_EVALUATION_BATCH = 256

Logits = Callable[[Sequence[int]], Tensor]
"""Numbers of rows -> (N, K) logits of these rows."""


class TaskConfig(Section):
    name: str = Field(pattern=r"^[\w-]+$")
    """The task's name in metrics: `text/<name>/...`."""
    folder: str
    """Folder with `<split>.<lang>.tsv` or `.jsonl` files; relative to where the command runs."""
    language: str = "en"
    """Language of the labels to train on."""
    languages: tuple[str, ...] | None = None
    """Test only in these; by default in every language that the folder holds."""


class TyposConfig(Section):
    rate: float = Field(default=0.1, gt=0, le=1)
    """Share of the letters of a test text that are edited, at least one."""
    seed: int = Field(default=0, ge=0)
    """Chooses the edits; not the training seed, so that all seeds meet the same noisy texts."""


class FinetuneConfig(Section):
    """One fine-tuning: the task, what is trained and how, and how it is tested."""

    seed: int = Field(default=0, ge=0)
    """Order of the rows, dropout and folds."""
    task: TaskConfig
    trainable: Literal["head", "all"] = "head"
    """head: on fixed embeddings; all: the text tower and its projection as well."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of the head's hidden layer; none: a linear head."""
    epochs: int = Field(ge=1)
    """The epoch kept is the best on the training language's dev file, without one the last."""
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate of tower and projection; unused with `trainable: head`."""
    head_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of the head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's; matrices only, not biases and norms."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it then falls linearly to zero."""
    typos: TyposConfig = TyposConfig()
    folds: int | None = Field(default=None, ge=2)
    """Also train once a fold without the fold's items (ids) and test on these: `<task>_unseen`."""
    baselines: tuple[Literal["untrained"], ...] = ()
    """untrained: everything again on the same tower as it was before it saw an image."""


def finetune(config: FinetuneConfig, run: Path, out: Path) -> Results:
    """Fine-tune the model of a run and write `config.yaml`, `tower/` and `results.json` to `out`.

    Args:
        run: a run folder with a committed checkpoint.
        out: made if needed; what an earlier fine-tuning left there is replaced, results last.

    Raises:
        UserError: a task or a run that cannot be used, or training that diverges.
    """
    task = read_transfer(
        Path(config.task.folder), config.task.name, config.task.language, config.task.languages
    )
    typos = partial(with_typos, rate=config.typos.rate, seed=config.typos.seed)
    task = task.with_variant("typos", typos)
    folds = deal_ids(task, config.folds, config.seed) if config.folds else []

    results, classifier = measure(load_encoder(run), task, folds, config)
    for name in config.baselines:
        console.say(f"baseline: the {name} tower")
        untrained = load_encoder(run, untrained=True)
        results.baselines[name], _ = measure(untrained, task, folds, config)

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").unlink(
        missing_ok=True
    )  # never the results of one beside another's tower
    write_atomic(out / "config.yaml", write_yaml(config.model_dump(mode="json")))
    with committed_folder(out / "tower", {"task": task.name, "model": results.model}) as folder:
        classifier.write(folder)
    results.write(out / "results.json")
    return results


def measure(
    encoder: Encoder, task: TransferTask, folds: Sequence[set[str]], config: FinetuneConfig
) -> tuple[Results, TextClassifier]:
    """Fit on the training language and test everywhere; the classifier is that of all items."""
    classifier, history = fit(encoder, task, config)
    results = Results(
        suite=f"text/{task.name}",
        model={**encoder.facts, "trainable": config.trainable, **_kept(history)},
        environment=environment(),
    )
    add_accuracies(results, task.name, task.source, score(classifier, task))
    results.protocol[f"text/{task.name}"] = _protocol(task, config, history)
    if folds:
        unseen = f"{task.name}_unseen"
        add_accuracies(results, unseen, task.source, score_unseen(encoder, task, folds, config))
        results.protocol[f"text/{unseen}"] = (
            f"As text/{task.name}, but trained {len(folds)} times, each time without a part of the "
            "items (ids), and tested on these: transfer to new items in new languages."
        )
    return results, classifier


def fit(
    encoder: Encoder, task: TransferTask, config: FinetuneConfig, label: str | None = None
) -> tuple[TextClassifier, dict[str, Any]]:
    """Train a classifier on the task's training rows; `encoder` itself stays as it is.

    Args:
        label: what the progress bar says, if not the task's name.

    Returns:
        The classifier, and what happened: `kept_epoch` (from 1), `train_loss` and, with dev rows,
        `dev_accuracy`, a value an epoch.
    """
    torch.manual_seed(config.seed)
    order = np.random.default_rng(config.seed)
    classifier = _new_classifier(encoder, task, config)
    trained = _trained_modules(classifier, config)
    train_logits, train_class_N = _prepare(classifier, task, task.train, config)
    dev_logits, dev_class_N = _prepare(classifier, task, task.dev, config)
    steps = config.epochs * -(-len(task.train) // config.batch_size)
    optimizer, schedule = _build_optimizer(trained, steps, config)

    history: dict[str, Any] = {"train_loss": [], "kept_epoch": config.epochs}
    best, kept = (-1.0, 0.0), {}
    epochs = range(1, config.epochs + 1)
    for epoch in console.track(epochs, f"{label or task.name}, epochs", config.epochs):
        trained.train()
        losses = []
        for rows in _chunks(order.permutation(len(task.train)).tolist(), config.batch_size):
            loss = F.cross_entropy(train_logits(rows), train_class_N[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        history["train_loss"].append(_finite_mean(losses, epoch))

        trained.eval()
        if task.dev:
            accuracy, loss_on_dev = _evaluate(dev_logits, dev_class_N)
            history.setdefault("dev_accuracy", []).append(accuracy)
            # Small dev sets tie often: of equal epochs the one that is surer of the right labels.
            if (accuracy, -loss_on_dev) > best:
                best, history["kept_epoch"] = (accuracy, -loss_on_dev), epoch
                kept = {name: one.clone() for name, one in trained.state_dict().items()}
    if kept:
        trained.load_state_dict(kept)
    return classifier, history


def score(classifier: TextClassifier, task: TransferTask) -> Outcomes:
    """The classifier's outcome on every variant and language of the task's tests."""
    return {
        variant: {
            lang: Outcome(
                rows, hits(classifier.predict([row.text for row in rows]), task.classes(rows))
            )
            for lang, rows in tests.items()
        }
        for variant, tests in task.tests.items()
    }


def score_unseen(
    encoder: Encoder, task: TransferTask, folds: Sequence[set[str]], config: FinetuneConfig
) -> Outcomes:
    """The outcome on each fold's items of a classifier trained without them, put together."""
    parts = []
    for number, ids in enumerate(folds, start=1):
        without = task.hold_out(ids)
        label = f"{task.name}, fold {number} of {len(folds)}"
        classifier, _ = fit(encoder, without, config, label)
        parts.append(score(classifier, without))
    return {
        variant: {
            lang: Outcome(
                rows=[row for part in parts for row in part[variant][lang].rows],
                hits=np.concatenate([part[variant][lang].hits for part in parts]),
            )
            for lang in tests
        }
        for variant, tests in task.tests.items()
    }


def _new_classifier(encoder: Encoder, task: TransferTask, config: FinetuneConfig) -> TextClassifier:
    """A fresh head on the encoder, or on a copy of it where the tower will change."""
    if config.trainable == "all":
        encoder = copy.copy(encoder)
        # The image tower takes no part: both share it (a memo entry says "copied already").
        image_tower = encoder.model.image_tower
        encoder.model = copy.deepcopy(encoder.model, {id(image_tower): image_tower})
    head = ClassificationHead(encoder.config.embedding, len(task.labels), config.hidden).to(
        encoder.device
    )
    classifier = TextClassifier(encoder, head, task.labels)
    head.fit_scale(classifier.embed([row.text for row in task.train]))
    return classifier


def _trained_modules(classifier: TextClassifier, config: FinetuneConfig) -> nn.ModuleDict:
    modules = nn.ModuleDict({"head": classifier.head})
    if config.trainable == "all":
        model = classifier.encoder.model
        modules.update({"tower": model.text_tower, "projection": model.text_projection})
        modules.requires_grad_(True)  # a tower that pretraining left frozen is trained here
    return modules


def _prepare(
    classifier: TextClassifier, task: TransferTask, rows: Sequence[TaskRow], config: FinetuneConfig
) -> tuple[Logits, Tensor]:
    """How to get the logits of the rows by number, and their classes."""
    texts = [row.text for row in rows]
    class_N = torch.from_numpy(task.classes(rows)).to(classifier.encoder.device)
    if config.trainable == "head":
        text_ND = classifier.embed(texts)  # once: the tower does not change
        return lambda numbers: classifier.head(text_ND[numbers]), class_N
    return lambda numbers: classifier.logits([texts[i] for i in numbers]), class_N


def _build_optimizer(
    trained: nn.ModuleDict, steps: int, config: FinetuneConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with the head's own learning rate; warm-up, then a straight line to zero."""
    groups = []
    for name, module in trained.items():
        lr = config.head_lr if name == "head" else config.lr
        for is_matrix in (True, False):
            parameters = [p for p in module.parameters() if (p.ndim >= 2) == is_matrix]
            decay = config.weight_decay if is_matrix else 0.0
            groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    warm = round(config.warmup * steps)

    def factor(step: int) -> float:
        return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def _evaluate(logits_of: Logits, class_N: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    parts = [logits_of(numbers) for numbers in _chunks(range(len(class_N)), _EVALUATION_BATCH)]
    logits_NK = torch.cat(parts)
    right = (logits_NK.argmax(1) == class_N).double().mean()
    return right.item(), F.cross_entropy(logits_NK, class_N).item()


def _chunks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def _finite_mean(losses: Sequence[float], epoch: int) -> float:
    mean = float(np.mean(losses))
    if not np.isfinite(mean):
        raise UserError(f"the loss is {mean} in epoch {epoch}; lower `lr` or `head_lr`")
    return mean


def _kept(history: dict[str, Any]) -> dict[str, Any]:
    """The history's values of the epoch that was kept."""
    epoch = history["kept_epoch"]
    curves = {name: curve[epoch - 1] for name, curve in history.items() if name != "kept_epoch"}
    return {"kept_epoch": epoch, **curves}


def _protocol(task: TransferTask, config: FinetuneConfig, history: dict[str, Any]) -> str:
    head = f"a head with {config.hidden} hidden units" if config.hidden else "a linear head"
    part = {
        "head": f"Training {head} on fixed embeddings",
        "all": f"Training the text tower and {head}",
    }
    choice = f"best of {config.epochs} on `{task.source}` dev" if task.dev else "the last"
    return (
        f"{part[config.trainable]}, epoch {history['kept_epoch']} ({choice}). {describe(task)} "
        f"Typos, in tests only: {config.typos.rate:g} of a text's letters (at least one) swapped, "
        f"deleted, doubled or replaced, seed {config.typos.seed}."
    )
