"""Heads on the feature of a text or of two: labels, scores, choices.

    one text                  -> feature                                    -+
    two texts, joint          -> feature of both read as one sequence       -+-> FeatureHead -> (R, K)
    two texts, separate       -> u, v -> (u, v, |u - v|, u * v)             -+

`joint` is the way of BERT (arXiv 1810.04805) and XTREME: the trunk's attention compares the texts.
`separate` is the way of InferSent (arXiv 1705.02364) and Sentence-BERT (arXiv 1908.10084): each text keeps
its place in the tower's own space, so whatever aligned the languages there is what the head works with.

R rows: one an example, but one a choice in multiple choice.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.text.heads.base import (
    EVALUATION_BATCH,
    NO_TOKENS,
    Evaluated,
    TaskBatch,
    TaskModel,
)
from mmalign.text.scores import Prediction
from mmalign.text.tasks.example import Example

Pairs = Literal["joint", "separate"]

_ROWS_FOR_SCALE = 4096
_REMEMBERED_TEXTS = 200_000


class FeatureHead(nn.Module):
    """A classifier or scorer of features, which it first moves to the origin and scales to size 1.

    Either linear, or with one hidden layer (`hidden` ReLU units), for labels that are no straight cut
    through the space.

    Features of a tower share most of their length (measured on an untrained one: the mean of its unit-length
    embeddings has length 0.99), and what differs between texts is a hundred times smaller than a linear
    layer likes: it would hardly learn, on an untrained tower least of all, and flatter the trained one. One
    shift and one factor, fixed from the training texts before the first step, put that right and leave
    angles and distances between texts as they were, which a factor per entry would not.

    The output layer starts at zero: a linear classifier needs no random start, and so has no lucky one. The
    hidden layer starts as He et al. 2015 (arXiv 1502.01852) have it, with biases of the same size as its
    sums, so that its units bend at different places.

    Attributes:
        centre_D: the mean training feature.
        scale_1: the factor; entries of the centred training features come to a mean square of 1.
    """

    centre_D: Tensor
    scale_1: Tensor

    def __init__(self, width: int, outputs: int, separate: bool, hidden: int | None = None) -> None:
        super().__init__()
        inputs = 4 * width if separate else width
        self.hidden = nn.Linear(inputs, hidden) if hidden else None
        self.output = nn.Linear(hidden or inputs, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if self.hidden is not None:
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.normal_(self.hidden.bias, std=2**0.5)
        self.register_buffer("centre_D", torch.zeros(width))
        self.register_buffer("scale_1", torch.ones(1))

    @torch.no_grad()
    def fit_scale(self, feature_ND: Tensor) -> None:
        """Take shift and factor from the training features."""
        self.centre_D.copy_(feature_ND.mean(0))
        spread = (feature_ND - self.centre_D).square().mean().sqrt()
        self.scale_1.copy_(1 / spread.clamp(min=1e-6))

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
    """What classification, similarity and multiple choice share."""

    head: FeatureHead

    def __init__(
        self, tower: TextEncoder, outputs: int, pairs: Pairs | None, hidden: int | None
    ) -> None:
        self.separate = pairs == "separate"
        super().__init__(tower, FeatureHead(tower.feature_width, outputs, self.separate, hidden))
        self.pairs = pairs
        self._remembered: dict[str, np.ndarray] = {}
        self._weights: list[tuple[int, int]] = []

    @torch.no_grad()
    def prepare(self, train: Sequence[Example]) -> None:
        """Shift and factor of the head, from at most 4,096 examples spread over the training set."""
        step = max(1, len(train) // _ROWS_FOR_SCALE)
        chosen = sorted(train[::step], key=lambda one: sum(map(len, one.texts)))
        mode = self.training
        self.eval()
        features = []
        for start in range(0, len(chosen), EVALUATION_BATCH):
            tokens = self.collate(chosen[start : start + EVALUATION_BATCH]).tokens
            features.append(self.tower.feature(self.tower.states(tokens), tokens.mask_NL))
        self.head.fit_scale(torch.cat(features))
        self.train(mode)

    def tokenize_rows(self, rows: Sequence[tuple[str, ...]]) -> Tokens:
        """Rows of one or two texts; with `separate`, all first texts and then all second ones."""
        if self.pairs is None:
            return self.tower.tokenize([row[0] for row in rows])
        first, second = zip(*rows, strict=True)
        if self.separate:
            return self.tower.tokenize([*first, *second])
        return self.tower.tokenize(first, second)

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        return self.from_features(self.tower.feature(state_NLF, batch.tokens.mask_NL), batch)

    def from_features(self, feature_ND: Tensor, batch: TaskBatch) -> Tensor:
        """(R, K) from the feature of each sequence."""
        outputs_RK: Tensor = (
            self.head(*feature_ND.chunk(2)) if self.separate else self.head(feature_ND)
        )
        return outputs_RK

    @abstractmethod
    def rows(self, examples: Sequence[Example]) -> list[tuple[int, tuple[str, ...]]]:
        """The rows of a batch: number of the example, one or two texts."""

    @abstractmethod
    def target(self, examples: Sequence[Example]) -> Tensor:
        """What the losses compare with."""

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        rows = self.rows(examples)
        example_R = [number for number, _ in rows]
        return TaskBatch(
            examples,
            self.tokenize_rows([texts for _, texts in rows]),
            torch.tensor(example_R * (2 if self.separate else 1), device=self.tower.device),
            self.target(examples),
        )

    def evaluate(self, examples: Sequence[Example]) -> Iterator[Evaluated]:
        """Texts that are read apart are read once, however many examples they occur in."""
        if not self.separate:
            yield from super().evaluate(examples)
            return
        texts = list(dict.fromkeys(text for one in examples for text in one.texts))
        place = {text: i for i, text in enumerate(texts)}
        feature_TD = torch.from_numpy(self._features_of(texts))
        for start in range(0, len(examples), EVALUATION_BATCH):
            chunk = examples[start : start + EVALUATION_BATCH]
            first, second = zip(*(row for _, row in self.rows(chunk)), strict=True)
            feature_ND = feature_TD[[place[text] for text in (*first, *second)]]
            batch = TaskBatch(chunk, NO_TOKENS, torch.empty(0), self.target(chunk))
            logits = self.from_features(feature_ND.to(self.tower.device), batch)
            yield list(range(start, start + len(chunk))), logits, batch

    def _features_of(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D); the same tests are read clean, in pairs of languages and beside their noisy selves.

        Features are remembered for as long as no weight of the tower changes in place.
        """
        weights = [(id(one), one._version) for one in self.tower.parameters()]
        new = [text for text in texts if text not in self._remembered]
        if weights != self._weights or len(self._remembered) + len(new) > _REMEMBERED_TEXTS:
            self._remembered, self._weights, new = {}, weights, list(texts)
        self._remembered.update(zip(new, self.tower.encode(new), strict=True))
        return np.stack([self._remembered[text] for text in texts])

    def description(self) -> dict[str, Any]:
        hidden = self.head.hidden.out_features if self.head.hidden is not None else None
        return {"kind": type(self).__name__, "pairs": self.pairs, "hidden": hidden}


class ClassificationModel(FeatureModel):
    """Labels of texts or of pairs of texts; the loss is cross-entropy.

    Attributes:
        labels: a class is an index into them.
    """

    def __init__(
        self,
        tower: TextEncoder,
        labels: Sequence[str],
        pairs: Pairs | None,
        hidden: int | None = None,
    ) -> None:
        super().__init__(tower, len(labels), pairs, hidden)
        self.labels = tuple(labels)

    def rows(self, examples: Sequence[Example]) -> list[tuple[int, tuple[str, ...]]]:
        return [(i, one.texts) for i, one in enumerate(examples)]

    def target(self, examples: Sequence[Example]) -> Tensor:
        """(B,) int64 classes; -100, which has no loss, for a label that training lacks."""
        place = {label: i for i, label in enumerate(self.labels)}
        classes = [place.get(str(one.target), -100) for one in examples]
        return torch.tensor(classes, device=self.tower.device)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        return F.cross_entropy(logits, batch.target, reduction="none")

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        return [self.labels[number] for number in logits.argmax(1).tolist()]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "labels": self.labels}


class SimilarityModel(FeatureModel):
    """Scores of pairs of texts; the loss is the squared error in deviations of the training scores."""

    def __init__(self, tower: TextEncoder, pairs: Pairs, hidden: int | None = None) -> None:
        super().__init__(tower, 1, pairs, hidden)
        self.mean, self.deviation = 0.0, 1.0

    def prepare(self, train: Sequence[Example]) -> None:
        super().prepare(train)
        scores = torch.tensor([float(one.target) for one in train])  # type: ignore[arg-type]
        self.mean, self.deviation = scores.mean().item(), max(scores.std(correction=0).item(), 1e-6)

    def rows(self, examples: Sequence[Example]) -> list[tuple[int, tuple[str, ...]]]:
        return [(i, one.texts) for i, one in enumerate(examples)]

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
    """Which of some texts goes with a context: each (context, choice) has a score, the highest is taken."""

    def __init__(self, tower: TextEncoder, pairs: Pairs, hidden: int | None = None) -> None:
        super().__init__(tower, 1, pairs, hidden)

    def rows(self, examples: Sequence[Example]) -> list[tuple[int, tuple[str, ...]]]:
        return [
            (i, (one.texts[0], choice))
            for i, one in enumerate(examples)
            for choice in one.texts[1:]
        ]

    def target(self, examples: Sequence[Example]) -> Tensor:
        """(B,) int64, the number of the right choice."""
        return torch.tensor([int(one.target) for one in examples], device=self.tower.device)  # type: ignore[arg-type]

    def from_features(self, feature_ND: Tensor, batch: TaskBatch) -> Tensor:
        """(B, C) with C the most choices of an example; those that it lacks can never be taken."""
        score_R = super().from_features(feature_ND, batch)[:, 0]
        counts = [len(one.texts) - 1 for one in batch.examples]
        score_BC = score_R.new_full((len(counts), max(counts)), torch.finfo(score_R.dtype).min / 4)
        there_BC = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return score_BC.masked_scatter(there_BC.to(score_R.device), score_R)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        return F.cross_entropy(logits, batch.target, reduction="none")

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        return list(logits.argmax(1).tolist())
