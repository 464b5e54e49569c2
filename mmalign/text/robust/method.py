"""The list of robust methods: what they do to a batch's gradient, and what they do to the training texts.

To add a method, write one file with a configuration class: a literal `kind`, the settings, and

    backward(model, batch, generator) -> float    add the gradients of the batch's mean loss to the
                                                  parameters' `.grad`, change nothing else, and return the
                                                  loss. Noise is drawn from the generator. Dropout draws from
                                                  torch's global one, the same numbers as plain training

or, for a method that rewrites the texts,

    rewriter(examples) -> (example, random) -> example    one draw of other texts per call

and add the class to the union below. The YAML field, its checks and the protocol follow from the class.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust.code_switch import CodeSwitchConfig, has_tags
from mmalign.text.robust.consistency import ConsistencyConfig
from mmalign.text.robust.freelb import FreeLbConfig
from mmalign.text.robust.pgd import PgdConfig
from mmalign.text.robust.rs_da import RsDaConfig
from mmalign.text.robust.rs_rp import RsRpConfig
from mmalign.text.tasks.task import Answer, Example


class PlainConfig(Section):
    """The unchanged loss."""

    kind: Literal["plain"]

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        loss = model.losses(model(batch), batch).mean()
        loss.backward()
        return loss.item()


MethodConfig = Annotated[
    PlainConfig | RsRpConfig | PgdConfig | FreeLbConfig | ConsistencyConfig,
    Field(discriminator="kind"),
]

AugmentConfig = Annotated[RsDaConfig | CodeSwitchConfig, Field(discriminator="kind")]


def build_augmentation(
    config: AugmentConfig | None, train: Sequence[Example], seed: int
) -> tuple[list[Example], Callable[[Sequence[Example], np.random.Generator], list[Example]]]:
    """The examples to train on, and what to do to each batch of them.

    Args:
        seed: of what is drawn before training.

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
    rewrite = config.rewriter(train)
    if isinstance(config, RsDaConfig):  # published so: drawn once, before training
        drawn = np.random.default_rng(seed)
        copies = [rewrite(one, drawn) for one in train for _ in range(config.copies)]
        return copies, lambda batch, random: list(batch)
    return list(train), lambda batch, random: [rewrite(one, random) for one in batch]
