"""Contrastive losses between words and their translations.

Row i of the anchors belongs to row i of the positives. `answers_BB[i, j]` says that positive j is right for
anchor i as well, because it is a translation or the same word: such a pair is never a negative.

Shapes: B pairs of words, F width of a state.
"""

from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core.config import Section


class HingeConfig(Section):
    kind: Literal["hinge"]
    margin: float = pydantic.Field(default=0.4, gt=0)
    """How much nearer a translation should be than the nearest other word of the batch."""

    def loss(self, anchor_BF: Tensor, positive_BF: Tensor, answers_BB: Tensor) -> Tensor:
        """Mean of max(0, margin + s(i, hardest j) - s(i, i)): the hardest negative, one direction.

        The loss of targeted lexical injection (arXiv 2506.15415) as its code has it, apart from `answers_BB`.
        """
        score_BB = anchor_BF @ positive_BF.T
        right_BB = answers_BB | _own(answers_BB)
        # Minus infinity where an anchor has no negative: the loss below is then 0, not undefined.
        negative_B = score_BB.masked_fill(right_BB, -torch.inf).amax(1)
        return F.relu(self.margin + negative_B - score_BB.diagonal()).mean()


class InfoNceConfig(Section):
    kind: Literal["infonce"]
    temperature: float = pydantic.Field(default=0.5, gt=0)
    """Cosines are divided by it. Where it is small, moving all words to one point lowers the loss faster at
    first than separating them, and training ends there."""

    def loss(self, anchor_BF: Tensor, positive_BF: Tensor, answers_BB: Tensor) -> Tensor:
        """Cross-entropy of each word's own translation among those of the batch, mean of both directions.

        InfoNCE (van den Oord et al. 2018, arXiv 1807.03748); other right answers are left out of the sum.
        """
        others_BB = answers_BB & ~_own(answers_BB)
        score_BB = anchor_BF @ positive_BF.T / self.temperature
        logit_BB = score_BB.masked_fill(others_BB, -torch.inf)
        there, back = (-one.log_softmax(1).diagonal().mean() for one in (logit_BB, logit_BB.T))
        return (there + back) / 2


LossConfig = Annotated[HingeConfig | InfoNceConfig, pydantic.Field(discriminator="kind")]


def _own(answers_BB: Tensor) -> Tensor:
    return torch.eye(len(answers_BB), dtype=torch.bool, device=answers_BB.device)
