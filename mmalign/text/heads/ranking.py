"""A head that trains a tower to find the text that answers a query.

    (query, right candidate) x B -> one shared tower -> unit-length features -> (B, B) scaled cosines
                                 -> softmax over the batch's candidates

The dual encoder of LAReQA (arXiv 2004.05484) and of XTREME-R's LAReQA and Mewsli-X (arXiv 2104.07412): the
other examples' candidates are a query's negatives, and the factor before the softmax is learnt. Candidates
that are the same (equal text, or a right id in common) are not each other's negatives.

A batch is for training only: dev and tests search all candidates of their language, see
`mmalign.text.ranking`.

Shapes: B examples, 2B sequences (all queries, then all candidates).
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import LOWEST, TaskBatch, TaskModel
from mmalign.text.ranking import rank
from mmalign.text.scores import Prediction
from mmalign.text.tasks.example import Example

_SCALE_AT_START = 100.0  # LAReQA's
_LARGEST_SCALE = 1000.0


class LogitScale(nn.Module):
    """The factor before the softmax, learnt as its logarithm, between 1 and 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(_SCALE_AT_START)]))

    def forward(self, cosine: Tensor) -> Tensor:
        # Learnt without bounds the factor grows for as long as the batch is separable.
        return cosine * self.log_scale.clamp(0, math.log(_LARGEST_SCALE)).exp()


class RetrievalModel(TaskModel):
    """Queries and their right candidates, trained by softmax over the candidates of a batch.

    Training examples have the texts (query, text of a right candidate); those of dev and tests have the
    query alone.

    Attributes:
        candidates: by language, what its queries are searched in.
    """

    def __init__(
        self, tower: TextEncoder, candidates: Mapping[str, Sequence[Example]] | None = None
    ) -> None:
        super().__init__(tower, LogitScale())
        self.candidates = candidates or {}

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """The target is (B, B) bool: whether an example's candidate is the same as the other's."""
        queries, candidates = zip(*(one.texts for one in examples), strict=True)
        tokens = self.tower.tokenize([*queries, *candidates])
        same = [[_same_candidate(one, other) for other in examples] for one in examples]
        return self.batch(examples, tokens, [*range(len(examples))] * 2, same)

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """(B, B), one row per query; copies of the right candidate never count against it."""
        feature_ND = self.tower.feature(state_NLF, batch.tokens.mask_NL)
        query_BD, candidate_BD = F.normalize(feature_ND, dim=-1).chunk(2)
        logits_BB: Tensor = self.head(query_BD @ candidate_BD.T)
        return logits_BB.masked_fill(batch.target.clone().fill_diagonal_(False), LOWEST)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the loss of each query; that of a query without negatives is 0."""
        # Row i's own candidate is candidate i: the diagonal is right.
        right_B = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, right_B, reduction="none")

    def predict_with_loss(self, examples: Sequence[Example]) -> tuple[list[Prediction], float]:
        """The ids of the nearest candidates of each query, all of one language; the loss is always 0."""
        if not examples:
            return [], 0.0
        return list(rank(self.tower, examples, self.candidates[examples[0].lang])), 0.0

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        raise NotImplementedError("a batch does not hold all candidates: use `predict`")


def _same_candidate(one: Example, other: Example) -> bool:
    assert isinstance(one.target, tuple) and isinstance(other.target, tuple)
    return one.texts[1] == other.texts[1] or not set(one.target).isdisjoint(other.target)
