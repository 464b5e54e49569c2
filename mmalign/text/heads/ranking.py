"""A head that trains a tower to find the text that answers a query.

    (query, right candidate) x B -> one shared tower -> unit-length features -> (B, B) scaled cosines
                                 -> softmax over the batch's candidates

The dual encoder of LAReQA (arXiv 2004.05484) and of XTREME-R's LAReQA and Mewsli-X (arXiv 2104.07412). A
batch is for training only: dev and tests search all candidates of their language, see `rank`.

Shapes: B examples, 2B sequences (all queries, then all candidates).
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.evaluation.nearest import TIE, search
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import LOWEST, TaskBatch, TaskModel, check_finite
from mmalign.text.scores import DEPTH, Prediction
from mmalign.text.tasks.task import Example

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
        candidates: by language.
        centre_on: by language, the queries whose mean feature is subtracted from every query's; the
            candidates' own mean is subtracted from theirs. None: features are compared as they are.
    """

    def __init__(
        self,
        tower: TextEncoder,
        candidates: Mapping[str, Sequence[Example]] | None = None,
        centre_on: Mapping[str, Sequence[Example]] | None = None,
    ) -> None:
        super().__init__(tower, LogitScale())
        self.candidates = candidates or {}
        self.centre_on = centre_on
        # The last pool that was encoded: of which texts, by which weights, its features.
        self._pool: tuple[list[str], list[tuple[int, int]], np.ndarray] | None = None

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """The target is (B, B) bool: whether an example's candidate is the same as the other's."""
        queries, candidates = zip(*(one.texts for one in examples), strict=True)
        prompts = self.tower.prompts
        tokens = self.tower.tokenize(
            [*prompts.add(queries, "query"), *prompts.add(candidates, "passage")]
        )
        # Equal texts, or a right id in common: such candidates are not each other's negatives.
        right = [set(cast("tuple[str, ...]", one.target)) for one in examples]
        keys = list(zip(candidates, right, strict=True))
        same = [[a == c or not b.isdisjoint(d) for c, d in keys] for a, b in keys]
        return self.batch(examples, tokens, [*range(len(examples))] * 2, same)

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """(B, B), one row per query; copies of the right candidate never count against it."""
        feature_ND = self.tower.feature(state_NLF, batch.tokens.mask_NL)
        query_BD, candidate_BD = F.normalize(feature_ND, dim=-1).chunk(2)
        logits_BB: Tensor = self.head(query_BD @ candidate_BD.T)
        return logits_BB.masked_fill(batch.target.clone().fill_diagonal_(False), LOWEST)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the loss of each query."""
        # Row i's own candidate is candidate i: the diagonal is right.
        right_B = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, right_B, reduction="none")

    def predict_with_loss(self, examples: Sequence[Example]) -> tuple[list[Prediction], float]:
        """The ids of the nearest candidates of each query, all of one language; the loss is always 0."""
        if not examples:
            return [], 0.0
        lang = examples[0].lang
        candidates, candidate_MD = self.candidates[lang], self._candidate_features(lang)
        if self.centre_on is None:
            return [*rank(self.tower, examples, candidates, candidate_MD)], 0.0
        centre_QD = self.tower.encode([one.texts[0] for one in self.centre_on[lang]])
        means = _unit(centre_QD).mean(0), _unit(candidate_MD).mean(0)
        return [*rank(self.tower, examples, candidates, candidate_MD, means)], 0.0

    def _candidate_features(self, lang: str) -> np.ndarray:
        texts = [one.texts[0] for one in self.candidates[lang]]
        # torch counts how often a tensor was changed in place: features are valid until a count differs.
        weights = [(id(one), one._version) for one in self.tower.parameters()]
        if self._pool is None or self._pool[:2] != (texts, weights):
            self._pool = texts, weights, self.tower.encode(texts, side="passage")
        return self._pool[2]

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        raise NotImplementedError("a batch does not hold all candidates: use `predict`")


def rank(
    tower: TextEncoder,
    queries: Sequence[Example],
    candidates: Sequence[Example],
    candidate_MD: np.ndarray | None = None,
    means: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[tuple[str, ...]]:
    """The ids of the 20 nearest candidates of each query by cosine, the nearest first.

    Args:
        queries: `target` holds the ids of the correct candidates, which decides ties only.
        candidate_MD: features of the candidates, where they are known already.
        means: (D,) each, what to subtract from the queries and from the candidates at unit length.
    """
    if candidate_MD is None:
        candidate_MD = tower.encode([one.texts[0] for one in candidates], side="passage")
    query_QD = tower.encode([one.texts[0] for one in queries])
    # FAISS finds nothing for vectors that are NaN, which would be an accuracy of 0.
    check_finite(tower, query_QD, candidate_MD)
    if means is not None:
        query_QD, candidate_MD = _unit(query_QD) - means[0], _unit(candidate_MD) - means[1]
    correct = [frozenset(map(str, cast("tuple[str, ...]", one.target))) for one in queries]
    return rank_features(query_QD, candidate_MD, correct, [one.id for one in candidates])


def rank_features(
    query_QD: np.ndarray,
    candidate_MD: np.ndarray,
    correct_ids: Sequence[frozenset[str]],
    candidate_ids: Sequence[str],
    depth: int = DEPTH,
) -> list[tuple[str, ...]]:
    """As `rank`, of features: float32, of any length but zero."""
    if not candidate_ids:
        return [()] * len(correct_ids)
    # Deep enough that `depth` wrong candidates are found even if all correct ones are before them.
    most_correct = max(map(len, correct_ids), default=0)
    scores, indices = search(_unit(query_QD), _unit(candidate_MD), depth + most_correct)
    ranked = []
    for score_K, index_K, correct in zip(scores, indices, correct_ids, strict=True):
        is_found = index_K >= 0
        names = [candidate_ids[i] for i in index_K[is_found]]
        # A correct candidate is ranked behind all wrong ones of its score.
        behind = TIE * np.array([name in correct for name in names], np.float64)
        order = np.argsort(behind - score_K[is_found], kind="stable")
        ranked.append(tuple(names[i] for i in order[:depth]))
    return ranked


def _unit(feature_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return (feature_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)
