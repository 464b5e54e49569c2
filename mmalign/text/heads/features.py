"""Heads on the feature of a text or of two: labels, scores, choices.

    one text                  -> feature                                    -+
    two texts, joint          -> feature of both read as one sequence       -+-> FeatureHead -> (R, K)
    two texts, separate       -> u, v -> (u, v, |u - v|, u * v)             -+

A feature depends on the texts and the tower alone, so each row of texts is encoded once and kept until a
weight changes: a fixed tower encodes once for all epochs and checks, and any tower once for all tests.

`joint` is the way of BERT (arXiv 1810.04805) and XTREME, `separate` that of InferSent (arXiv 1705.02364) and
Sentence-BERT (arXiv 1908.10084): the head works with whatever aligned the languages in the tower's own space.

R rows: one per example; in multiple choice one per choice.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.text.heads.base import LOWEST, Evaluated, TaskBatch, TaskModel, zero_linear
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example

Pairs = Literal["joint", "separate"]
Row = tuple[int, tuple[str, ...]]  # the number of an example, and one or two of its texts
ON_FEATURES = ("classification", "similarity", "multiple_choice")  # kinds of task

_ROWS_FOR_SCALE = 4096  # training examples that shift and factor of the head are computed from
_CACHED_ROWS = 200_000  # 0.6 GB of features that are 768 wide
_EXAMPLES_AT_ONCE = (
    20_000  # evaluated together: a chunk is sorted by length, and its features are in memory
)
_NO_TOKENS = Tokens(torch.empty(0, 0), torch.empty(0, 0), None, None)  # the features are known


class FeatureHead(nn.Module):
    """A classifier or scorer of features, which it first moves to the origin and scales to size 1.

    Either linear, or with one hidden layer (`hidden` ReLU units).
    """

    # Features of a tower have most of their length in common (measured on an untrained one: the mean of its
    # unit-length embeddings has length 0.99), and the differences between texts are a hundred times smaller
    # than a linear layer needs to learn. Without correction an untrained tower would suffer most, and the
    # trained one would look better than it is.
    centre_D: Tensor  # the mean training feature
    # The centred and scaled training features have a mean square of 1. One factor leaves angles and distances
    # between texts as they were; a factor per entry would not.
    scale_1: Tensor

    def __init__(self, width: int, outputs: int, separate: bool, hidden: int | None = None) -> None:
        super().__init__()
        inputs = 4 * width if separate else width
        self.hidden = nn.Linear(inputs, hidden) if hidden else None
        self.output = zero_linear(hidden or inputs, outputs)
        if self.hidden is not None:
            # He et al. 2015 (arXiv 1502.01852). The biases are as large as the units' sums, so that the
            # units bend at different points.
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.normal_(self.hidden.bias, std=2**0.5)
        self.register_buffer("centre_D", torch.zeros(width))
        self.register_buffer("scale_1", torch.ones(1))

    @torch.no_grad()
    def fit_scale(self, feature_ND: Tensor) -> None:
        self.centre_D.copy_(feature_ND.mean(0))
        spread = (feature_ND - self.centre_D).square().mean().sqrt()
        self.scale_1.copy_(1 / spread.clamp(min=1e-6))  # all features are equal for a single text

    def forward(self, first_RD: Tensor, second_RD: Tensor | None = None) -> Tensor:
        """(R, D), and (R, D) of the second texts where they were read apart -> (R, K)."""
        value = (first_RD - self.centre_D) * self.scale_1
        if second_RD is not None:
            second = (second_RD - self.centre_D) * self.scale_1
            value = torch.cat([value, second, (value - second).abs(), value * second], dim=1)
        if self.hidden is not None:
            value = torch.relu(self.hidden(value))
        outputs_RK: Tensor = self.output(value)
        return outputs_RK


class FeatureModel(TaskModel):
    """What classification, similarity and multiple choice share: features."""

    head: FeatureHead

    def __init__(
        self, tower: TextEncoder, pairs: Pairs | None, hidden: int | None = None, outputs: int = 1
    ) -> None:
        self.separate = pairs == "separate"
        super().__init__(tower, FeatureHead(tower.feature_width, outputs, self.separate, hidden))
        self.pairs = pairs
        self._cached: dict[tuple[str, ...], np.ndarray] = {}
        self._weights: list[tuple[int, int]] = []

    def prepare(self, train: Sequence[Example]) -> None:
        """Shift and factor of the head, from at most 4,096 examples spread over the training set."""
        self.head.fit_scale(self._features(train[:: max(1, len(train) // _ROWS_FOR_SCALE)]))

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        return [(i, one.texts) for i, one in enumerate(examples)]

    @abstractmethod
    def target(self, examples: Sequence[Example]) -> Tensor:
        """What the losses compare with, one entry per example."""

    def sequences(self, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """What the tower reads: one or two texts per sequence."""
        rows = [texts for _, texts in self.rows(examples)]
        # With `separate` all first texts come before all second ones.
        if self.separate:
            rows = [(one,) for side in zip(*rows, strict=True) for one in side]
        # Two joined texts are one sequence, with one prompt.
        firsts = self.tower.prompts.add([row[0] for row in rows], "query")
        return [(first, *row[1:]) for first, row in zip(firsts, rows, strict=True)]

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        example_N = [number for number, _ in self.rows(examples)] * (2 if self.separate else 1)
        tokens = self.tower.tokenize(*zip(*self.sequences(examples), strict=True))
        return self.batch(examples, tokens, example_N, self.target(examples))

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        return self.from_features(self.tower.feature(state_NLF, batch.tokens.mask_NL), batch)

    def from_features(self, feature_ND: Tensor, batch: TaskBatch) -> Tensor:
        features = feature_ND.chunk(2) if self.separate else (feature_ND,)
        outputs_RK: Tensor = self.head(*features)
        return outputs_RK

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        return F.cross_entropy(logits, batch.target, reduction="none")

    def forward(self, batch: TaskBatch) -> Tensor:
        if self.tower.training or any(one.requires_grad for one in self.tower.parameters()):
            return super().forward(batch)
        return self.from_features(self._features(batch.examples), batch)

    def evaluate(self, examples: Sequence[Example]) -> Iterator[Evaluated]:
        mode = self.training
        self.eval()
        for start in range(0, len(examples), _EXAMPLES_AT_ONCE):
            chunk = examples[start : start + _EXAMPLES_AT_ONCE]
            batch = TaskBatch(chunk, _NO_TOKENS, torch.empty(0), self.target(chunk))
            logits = self.from_features(self._features(chunk), batch)
            yield list(range(start, start + len(chunk))), logits, batch
        self.train(mode)

    @torch.no_grad()
    def _features(self, examples: Sequence[Example]) -> Tensor:
        """(N, D) on the tower's device, of the sequences of the examples; without dropout."""
        # torch counts how often a tensor was changed in place: features are valid until a count differs.
        weights = [(id(one), one._version) for one in self.tower.parameters()]
        wanted = self.sequences(examples)
        new = [one for one in dict.fromkeys(wanted) if one not in self._cached]
        if weights != self._weights or len(self._cached) + len(new) > _CACHED_ROWS:
            self._cached, self._weights, new = {}, weights, list(dict.fromkeys(wanted))
        self._cached.update(zip(new, self.tower.encode_rows(new), strict=True))
        known = np.stack([self._cached[one] for one in wanted])
        return torch.from_numpy(known).to(self.tower.device)

    def description(self) -> dict[str, Any]:
        hidden = self.head.hidden.out_features if self.head.hidden is not None else None
        return {"pairs": self.pairs, "hidden": hidden}


class ClassificationModel(FeatureModel):
    """Labels of texts or of pairs of texts; a class is an index into the labels."""

    def __init__(
        self,
        tower: TextEncoder,
        labels: Sequence[str],
        pairs: Pairs | None,
        hidden: int | None = None,
    ) -> None:
        super().__init__(tower, pairs, hidden, len(labels))
        self.labels = tuple(labels)
        self._weight_K: Tensor | None = None

    def balance(self, train: Sequence[Example]) -> None:
        """Weigh every class as if all had the same number of training examples."""
        count = Counter(str(one.target) for one in train)
        # A label without examples, as in a fold, has a weight that nothing uses.
        of_label = [max(1, count[label]) for label in self.labels]
        weights = [len(train) / (len(self.labels) * one) for one in of_label]
        self._weight_K = torch.tensor(weights, device=self.tower.device)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        return F.cross_entropy(logits, batch.target, self._weight_K, reduction="none")

    def target(self, examples: Sequence[Example]) -> Tensor:
        class_of = {label: i for i, label in enumerate(self.labels)}
        # -100, which has no loss, for a label that training lacks.
        classes = [class_of.get(str(one.target), -100) for one in examples]
        return torch.tensor(classes, device=self.tower.device)

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        return [self.labels[number] for number in logits.argmax(1).tolist()]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "labels": self.labels}


class SimilarityModel(FeatureModel):
    """Scores of pairs of texts; the loss is the squared error in deviations of the training scores."""

    mean, deviation = 0.0, 1.0  # until `prepare`

    def prepare(self, train: Sequence[Example]) -> None:
        super().prepare(train)
        scores = torch.tensor([float(one.target) for one in train])  # type: ignore[arg-type]
        self.mean, self.deviation = scores.mean().item(), max(scores.std(correction=0).item(), 1e-6)

    def target(self, examples: Sequence[Example]) -> Tensor:
        """(B,) float32, in standard deviations from the mean of the training scores."""
        scores = [float(one.target) for one in examples]  # type: ignore[arg-type]
        return (torch.tensor(scores, device=self.tower.device) - self.mean) / self.deviation

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        return F.mse_loss(logits[:, 0], batch.target, reduction="none")

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        return (logits[:, 0].double() * self.deviation + self.mean).tolist()

    def description(self) -> dict[str, Any]:
        return {**super().description(), "mean": self.mean, "deviation": self.deviation}


class ChoiceModel(FeatureModel):
    """Which of some texts belongs to a context: each (context, choice) has a score, the highest is taken."""

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        numbered = enumerate(examples)
        return [(i, (one.texts[0], choice)) for i, one in numbered for choice in one.texts[1:]]

    def target(self, examples: Sequence[Example]) -> Tensor:
        return torch.tensor([int(one.target) for one in examples], device=self.tower.device)  # type: ignore[arg-type]

    def from_features(self, feature_ND: Tensor, batch: TaskBatch) -> Tensor:
        """(B, C) with C the most choices of an example; those that it lacks can never be taken."""
        score_R = super().from_features(feature_ND, batch)[:, 0]
        counts = [len(one.texts) - 1 for one in batch.examples]
        score_BC = score_R.new_full((len(counts), max(counts)), LOWEST)
        there_BC = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return score_BC.masked_scatter(there_BC.to(score_R.device), score_R)

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        return list(logits.argmax(1).tolist())
