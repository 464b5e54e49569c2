"""Robust methods: what they do to a batch's gradient, and what they do to the training texts.

To add a method, write one file with a configuration class: a literal `kind`, the settings, and

    backward(model, batch, generator) -> float    add the gradients of the batch's mean loss to the
                                                  parameters' `.grad`, change nothing else, and return the
                                                  loss. Noise is drawn from the generator. Dropout draws from
                                                  torch's global one, the same numbers as plain training

or, for a method that rewrites the texts,

    rewriter(examples, source) -> (example, random) -> example    one draw of other texts per call; examples
                                                                  may be in other languages than the
                                                                  task's, `source` (None: not known)

The YAML field, its checks and the protocol follow from the class.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from mmalign.core.config import Section, kinds_beside
from mmalign.core.errors import UserError
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust.code_switch import CodeSwitchConfig, has_tags, tables_of
from mmalign.text.robust.rs_da import RsDaConfig
from mmalign.text.tasks.task import Answer, Example


class PlainConfig(Section):
    """The unchanged loss."""

    kind: Literal["plain"]

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        loss = model.losses(model(batch), batch).mean()
        loss.backward()
        return loss.item()


class Configured(Protocol):
    kind: Any

    def model_dump(self, *, mode: str = ..., exclude_none: bool = ...) -> dict[str, Any]: ...


class Method(Configured, Protocol):
    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float: ...


class Augment(Configured, Protocol):
    def rewriter(
        self, examples: Sequence[Example], source: str | None
    ) -> Callable[[Example, np.random.Generator], Example]: ...


if TYPE_CHECKING:
    MethodConfig = Method
    AugmentConfig = Augment
else:  # every method of this folder
    MethodConfig = kinds_beside(__name__, "backward")
    AugmentConfig = kinds_beside(__name__, "rewriter")


def build_augmentation(
    config: AugmentConfig | None, train: Sequence[Example], seed: int, source: str
) -> tuple[list[Example], Callable[[Sequence[Example], np.random.Generator], list[Example]]]:
    """The examples to train on, and what to do to each batch of them.

    Args:
        seed: of what is drawn before training.
        source: the language of the task.

    Raises:
        UserError: files that cannot be used, or examples whose targets the augmentation would break.
    """
    if config is None:
        return list(train), lambda batch, random: list(batch)
    targets = (one.target for one in train if isinstance(one.target, tuple))
    if any(isinstance(part, Answer) for target in targets for part in target):
        raise UserError(
            f"augment.kind: {config.kind} moves the answers of span_qa; use a method that adds noise"
        )
    # A neighbour of a word may have another tag than the word.
    if isinstance(config, RsDaConfig) and has_tags(train):
        raise UserError(
            "augment.kind: rs_da is not made for tagging; use code_switch or no augmentation"
        )
    if isinstance(config, CodeSwitchConfig):
        tables_of(config, train)  # an error if no row can change
    rewrite = config.rewriter(train, source)
    if isinstance(config, RsDaConfig):  # published so: drawn once, before training
        drawn = np.random.default_rng(seed)
        copies = [rewrite(one, drawn) for _ in range(config.copies) for one in train]
        return copies, lambda batch, random: list(batch)
    return list(train), lambda batch, random: [rewrite(one, random) for one in batch]
