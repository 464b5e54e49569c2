"""How the gradients of a batch are made: the plain way, or one of the robust ones.

model, batch -> backward -> mean loss, gradients in the parameters -> (the loop clips and steps)
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from mmalign.core.config import Section
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.robust import consistency, freelb, pgd, rs_rp


class PlainConfig(Section):
    """The loss as it is."""

    kind: Literal["plain"]


MethodConfig = Annotated[
    PlainConfig
    | rs_rp.RsRpConfig
    | pgd.PgdConfig
    | freelb.FreeLbConfig
    | consistency.ConsistencyConfig,
    Field(discriminator="kind"),
]


def backward(
    model: TaskModel, batch: TaskBatch, config: MethodConfig, generator: torch.Generator
) -> float:
    """Add the gradients of the batch's mean loss to the parameters' `.grad`; nothing else changes.

    Args:
        generator: what noise is drawn from; dropout draws from torch's global one, the same numbers
            whatever the method.

    Returns:
        The mean loss that the gradients belong to, the method's noise and terms included.
    """
    match config:
        case rs_rp.RsRpConfig():
            return rs_rp.backward(model, batch, config, generator)
        case pgd.PgdConfig():
            return pgd.backward(model, batch, config, generator)
        case freelb.FreeLbConfig():
            return freelb.backward(model, batch, config, generator)
        case consistency.ConsistencyConfig():
            return consistency.backward(model, batch, config, generator)
        case PlainConfig():
            return _plain(model, batch)


def _plain(model: TaskModel, batch: TaskBatch) -> float:
    loss = model.losses(model(batch), batch).mean()
    loss.backward()
    return loss.item()
