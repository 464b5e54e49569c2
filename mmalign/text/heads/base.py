"""A tower with a head on it, as training and measuring see it, whatever the task asks.

    examples -> collate -> TaskBatch -> tower -> state_NLF -> logits -> losses_B        (training)
                                                                     -> predictions     (tests)

Shapes: B examples, N sequences (an example has one or several), L tokens, F width of a state, K outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batching import length_sorted_batches
from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder, Tokens
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example

T = TypeVar("T")

# Large but finite, for logits that must never win: with minus infinity, differences and gradients
# would not be numbers.
LOWEST = torch.finfo(torch.float32).min / 4


@dataclass(frozen=True)
class TaskBatch:
    """Examples in the form that tower and head take.

    Attributes:
        example_N: int64, which of the B examples a sequence belongs to.
        target: what the losses compare with; each head defines its shape.
    """

    examples: Sequence[Example]
    tokens: Tokens
    example_N: Tensor
    target: Tensor


# Numbers of some examples, their logits, and their batch.
Evaluated = tuple[list[int], Tensor, TaskBatch]


class TaskModel(nn.Module, ABC):
    """A text tower, trained or not, and a head for one kind of task."""

    # Examples per batch outside of training; fewer where an example has many long sequences.
    evaluation_batch = 256
    # The language of the task, in which a method may rewrite texts; None: not known, so in any.
    source: str | None = None

    def __init__(self, tower: TextEncoder, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head.to(tower.device)

    def prepare(self, train: Sequence[Example]) -> None:
        """Take from the training examples what is fixed before the first step; nothing by default."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """Examples as tokens and targets."""

    def batch(self, examples: Sequence[Example], tokens: Tokens, *parts: Any) -> TaskBatch:
        """A batch on the tower's device; `parts` are `example_N` and `target`, tensors or lists."""
        tensors = (torch.as_tensor(one).to(self.tower.device) for one in parts)
        return TaskBatch(examples, tokens, *tensors)

    @abstractmethod
    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """The head's outputs for the states of the tokens; robust training adds its noise to these."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the loss of each example."""

    @abstractmethod
    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        """One prediction per example."""

    def description(self) -> dict[str, Any]:
        """What is needed beside the weights and the class's name to build the head again."""
        return {}

    def forward(self, batch: TaskBatch) -> Tensor:
        return self.logits(self.tower.states(batch.tokens), batch)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction per example, in their order; without dropout. A collective."""
        return self.predict_with_loss(examples)[0]

    @torch.no_grad()
    def predict_with_loss(self, examples: Sequence[Example]) -> tuple[list[Prediction], float]:
        """One prediction per example, and the mean loss, which is 0 without examples. A collective."""
        mine = _of_this_rank(examples)
        found: list[Prediction] = [""] * len(mine)
        total = 0.0
        for numbers, logits, batch in self.evaluate(mine):
            # In float64, so that the sum hardly depends on how the examples fall into batches.
            total += self.losses(logits, batch).double().sum().item()
            for number, prediction in zip(numbers, self.decode(logits, batch), strict=True):
                found[number] = prediction
        every, totals = _of_all_ranks(found, total, len(examples))
        return every, sum(totals) / max(1, len(examples))

    @torch.no_grad()
    def probabilities(self, examples: Sequence[Example]) -> Tensor:
        """(n, K) on the host: the softmax of logits that have one row per example. A collective."""
        parts: dict[int, Tensor] = {}
        mine = _of_this_rank(examples)
        for numbers, logits, _ in self.evaluate(mine):
            parts |= dict(zip(numbers, logits.float().softmax(-1).cpu(), strict=True))
        every, _ = _of_all_ranks([parts[i] for i in range(len(mine))], 0.0, len(examples))
        return torch.stack(every)

    def batches(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], TaskBatch]]:
        """The examples in batches of like length, so that little is padded; numbers and batch."""
        # Characters stand for tokens: counting those would tokenize everything twice.
        lengths = (sum(map(len, one.texts)) for one in examples)
        for numbers in length_sorted_batches(lengths, self.evaluation_batch):
            yield numbers, self.collate([examples[i] for i in numbers])

    def evaluate(self, examples: Sequence[Example]) -> Iterator[Evaluated]:
        """The logits of the examples, batch by batch; without dropout."""
        mode = self.training
        self.eval()
        for numbers, batch in self.batches(examples):
            yield numbers, self(batch), batch
        self.train(mode)

    def save(self, folder: Path) -> None:
        """Write the tower, the head's weights and its description into an existing folder."""
        self.tower.save(folder)
        # `clone`: safetensors refuses tensors that share memory.
        head = {name: t.detach().cpu().clone() for name, t in self.head.state_dict().items()}
        save_file(head, folder / "head.safetensors")
        write_json(folder / "head.json", {"kind": type(self).__name__, **self.description()})


def _of_this_rank(examples: Sequence[Example]) -> Sequence[Example]:
    ranks = distributed.world_size()
    return examples if ranks == 1 else examples[distributed.rank() :: ranks]


def _of_all_ranks(mine: list[T], total: float, count: int) -> tuple[list[T], list[float]]:
    """What all ranks have of the examples, in their order, and the totals of the ranks."""
    ranks = distributed.world_size()
    if ranks == 1:
        return mine, [total]
    every: list[Any] = [None] * count
    parts = distributed.gather_objects((mine, total, count))
    for rank, (of_rank, _, of_count) in enumerate(parts):
        assert of_count == count, "the ranks predict other examples"
        every[rank::ranks] = of_rank
    return every, [one for _, one, _ in parts]


def check_alignable(tower: TextEncoder) -> None:
    """A UserError if the tokenizer does not report which word or characters a token comes from."""
    if not tower.tokenizer.inner.is_fast:
        name = tower.facts.get("path", "the model")
        raise UserError(
            f"{name}: its tokenizer does not locate tokens; take one with a fast tokenizer"
        )


def check_finite(tower: TextEncoder, *features: np.ndarray) -> None:
    """A UserError if a vector of the tower is NaN or infinite: every number behind it would be wrong."""
    if not all(np.isfinite(one).all() for one in features):
        name = tower.facts.get("path", "the model")
        raise UserError(
            f"{name}: its vectors are not finite, so its weights are damaged; get it again, or take an "
            "earlier checkpoint"
        )


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """An output layer that starts at zero."""
    # So no random start favours a run.
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mean_per_owner(
    value: Tensor, owner_N: Tensor, owners: int, size_N: Tensor | None = None
) -> Tensor:
    """(B, ...), the sum of the values of each owner's parts over the number of parts; 0 without parts.

    Args:
        owner_N: int64, to which of the B owners an entry of `value` (N, ...) belongs.
        size_N: how many parts each entry sums; by default one.
    """
    size_N = torch.ones_like(owner_N, dtype=value.dtype) if size_N is None else size_N
    zero = value.new_zeros((owners, *value.shape[1:]))
    size_B = value.new_zeros(owners).index_add(0, owner_N, size_N).clamp(min=1)
    return zero.index_add(0, owner_N, value) / size_B.reshape(-1, *[1] * (value.ndim - 1))
