"""What robust training does to the texts, before training or batch by batch.

training examples -> rs_da: rewritten copies        -> shuffled -> batches                  -> collate
training examples                                   -> shuffled -> batches -> code_switch   -> collate
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from mmalign.core.errors import UserError
from mmalign.text.robust import code_switch, rs_da
from mmalign.text.robust.code_switch import CodeSwitchConfig
from mmalign.text.robust.rs_da import RsDaConfig
from mmalign.text.tasks.example import Answer, Example

AugmentConfig = Annotated[RsDaConfig | CodeSwitchConfig, Field(discriminator="kind")]

Rewrite = Callable[[Sequence[Example], np.random.Generator], list[Example]]
"""Examples -> as many examples with other texts."""


def build_augmentation(
    config: AugmentConfig | None, train: Sequence[Example], seed: int
) -> tuple[list[Example], Rewrite]:
    """The examples to train on, and what to do to each batch of them.

    Args:
        seed: of what is drawn before training.

    Raises:
        UserError: files that cannot be used, or examples whose targets the augmentation would break.
    """
    match config:
        case None:
            return list(train), _as_they_are
        case RsDaConfig():
            _check_positions(config, train)
            return rs_da.augment(train, config, seed), _as_they_are
        case CodeSwitchConfig():
            return list(train), rewriter(config, train)


def rewriter(config: AugmentConfig, examples: Sequence[Example]) -> Rewrite:
    """What draws other texts for a batch, one draw for each.

    Args:
        examples: of the same task and language as the batches.

    Raises:
        UserError: as `build_augmentation`.
    """
    _check_positions(config, examples)
    if isinstance(config, RsDaConfig):
        neighbours = rs_da.read_neighbours(Path(config.neighbours))
        return lambda batch, random: [rs_da.rewrite(one, neighbours, random) for one in batch]
    tables = code_switch.tables(config, examples[0].lang)
    words = _has_tags(examples)
    return lambda batch, random: [
        code_switch.switch(one, tables, config, random, words) for one in batch
    ]


def _as_they_are(batch: Sequence[Example], random: np.random.Generator) -> list[Example]:
    return list(batch)


def _check_positions(config: AugmentConfig, examples: Sequence[Example]) -> None:
    """New words move characters, and with RS-DA a word may no more be what its tag says."""
    if any(isinstance(part, Answer) for part in _parts(examples)):
        raise UserError(
            f"augment.kind: {config.kind} moves the answers of span_qa; use a method that adds noise"
        )
    if config.kind == "rs_da" and _has_tags(examples):
        raise UserError(
            "augment.kind: rs_da is not made for tagging; use code_switch or no augmentation"
        )


def _parts(examples: Sequence[Example]) -> list[object]:
    return [part for one in examples if isinstance(one.target, tuple) for part in one.target]


def _has_tags(examples: Sequence[Example]) -> bool:
    """Whether the targets are a tag a word; retrieval's (query, candidate) with their ids are not."""
    return all(
        isinstance(one.target, tuple) and len(one.target) == len(one.texts) for one in examples
    )
