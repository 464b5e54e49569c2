"""A tower with a head on it, as training and measuring see it, whatever the task asks.

    examples -> collate -> TaskBatch -> tower -> state_NLF -> logits -> losses_B        (training)
                                                                     -> predictions     (tests)

The states stand between tower and head because robust training puts its noise there.

Shapes: B examples, N sequences (an example has one or several), L tokens, F width of a state, K outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.text.scores import Prediction
from mmalign.text.tasks.example import Example

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TaskBatch:
    """Examples as tower and head take them.

    Attributes:
        example_N: int64, which of the B examples a sequence belongs to.
        target: what the losses compare with; its shape is the head's own affair.
    """

    examples: Sequence[Example]
    tokens: Tokens
    example_N: Tensor
    target: Tensor


NO_TOKENS = Tokens(torch.empty(0, 0), torch.empty(0, 0), None, None)
"""Of a batch whose features are known already."""

Evaluated = tuple[list[int], Tensor, TaskBatch]
"""Numbers of some examples, their logits, and the batch that they made."""


class TaskModel(nn.Module, ABC):
    """A text tower and a head for one kind of task.

    Attributes:
        tower: trained or not, as the fine-tuning says.
        head: always trained.
        evaluation_batch: examples at once outside of training; fewer where one makes many long sequences.
    """

    evaluation_batch = EVALUATION_BATCH

    def __init__(self, tower: TextEncoder, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head.to(tower.device)

    def prepare(self, train: Sequence[Example]) -> None:
        """Take from the training examples what is fixed before the first step; nothing by default."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """Examples as tokens and targets."""

    @abstractmethod
    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """What the head says of the states of the tokens."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the loss of each example."""

    @abstractmethod
    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        """One prediction an example."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What must be known beside the weights to build the head again."""

    def forward(self, batch: TaskBatch) -> Tensor:
        """The logits of a batch."""
        return self.logits(self.tower.states(batch.tokens), batch)

    @torch.no_grad()
    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction an example, in their order; without dropout."""
        return self.predict_with_loss(examples)[0]

    @torch.no_grad()
    def predict_with_loss(self, examples: Sequence[Example]) -> tuple[list[Prediction], float]:
        """One prediction an example, and the mean loss; of no examples it is 0."""
        found: list[Prediction] = [""] * len(examples)
        total = 0.0
        for numbers, logits, batch in self.evaluate(examples):
            total += self.losses(logits, batch).double().sum().item()
            for number, prediction in zip(numbers, self.decode(logits, batch), strict=True):
                found[number] = prediction
        return found, total / max(1, len(examples))

    @torch.no_grad()
    def probabilities(self, examples: Sequence[Example]) -> Tensor:
        """(n, K) on the host: the softmax of logits that have one row an example."""
        parts: dict[int, Tensor] = {}
        for numbers, logits, _ in self.evaluate(examples):
            parts |= dict(zip(numbers, logits.float().softmax(-1).cpu(), strict=True))
        return torch.stack([parts[number] for number in range(len(examples))])

    def evaluate(self, examples: Sequence[Example]) -> Iterator[Evaluated]:
        """The examples in batches, texts of like length together; without dropout."""
        mode = self.training
        self.eval()
        order = sorted(range(len(examples)), key=lambda i: sum(map(len, examples[i].texts)))
        for start in range(0, len(order), self.evaluation_batch):
            numbers = order[start : start + self.evaluation_batch]
            batch = self.collate([examples[i] for i in numbers])
            yield numbers, self(batch), batch
        self.train(mode)

    def save(self, folder: Path) -> None:
        """Write tower, head and what the head is, into an existing folder."""
        self.tower.save(folder)
        head = {name: t.detach().cpu().clone() for name, t in self.head.state_dict().items()}
        save_file(head, folder / "head.safetensors")
        write_json(folder / "head.json", self.description())


def check_alignable(tower: TextEncoder) -> None:
    """A UserError if the tokenizer cannot tell which word or characters a token comes from."""
    if not tower.tokenizer.inner.is_fast:
        raise UserError(
            f"{tower.facts.get('path', 'the model')}: its tokenizer does not tell words and characters of a "
            "token; take a model with a fast tokenizer"
        )
