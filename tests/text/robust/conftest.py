"""Tiny models with heads that are not zero, and what a backward pass leaves in them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import ClassificationModel, Pairs
from mmalign.text.robust.noise import Norm
from mmalign.text.tasks.task import Example

LABELS = ("no", "perhaps", "yes")
SENTENCES = (
    ("a red ball", "a dog sleeps"),
    ("the cat sleeps on a green chair", "a cat"),
    ("a dog and a red chair", "the dog sleeps on a chair 0123"),
    ("green", "ein roter Ball"),
    ("mpira mwekundu na mbwa", "a ball"),
)


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example(str(i), "en", texts, LABELS[i % len(LABELS)]) for i, texts in enumerate(SENTENCES)
    ]


@pytest.fixture
def model_of(tower: TextEncoder, examples: list[Example]) -> Callable[[Pairs], ClassificationModel]:
    """A classifier of pairs without dropout; its head is random, for a zero head passes no gradient."""

    def build(pairs: Pairs) -> ClassificationModel:
        model = ClassificationModel(tower, LABELS, pairs)
        model.prepare(examples)
        model.head.output.weight.data.copy_(
            torch.randn(model.head.output.weight.shape, generator=torch.Generator().manual_seed(3))
        )
        return model.eval()

    return build


@pytest.fixture
def norm_of() -> Callable[[Tensor, Norm], Tensor]:
    """(noise, norm) -> (N,), the largest norm within each sequence, counted in float64."""

    def size(noise_NLF: Tensor, norm: Norm) -> Tensor:
        noise_NLF = noise_NLF.double()
        if norm == "linf":
            return noise_NLF.abs().flatten(1).amax(1)
        if norm == "l2":
            return noise_NLF.norm(dim=2).amax(1)
        return noise_NLF.flatten(1).norm(dim=1)

    return size


@pytest.fixture
def gradients() -> Callable[[nn.Module, Callable[[], float]], tuple[float, list[Tensor]]]:
    """(model, a backward pass) -> its loss and the gradient of every parameter, zeros where it has none."""

    def take(model: nn.Module, step: Callable[[], float]) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        loss = step()
        return loss, [
            torch.zeros_like(one) if one.grad is None else one.grad.clone()
            for one in model.parameters()
        ]

    return take


@pytest.fixture
def losses_under() -> Callable[[TaskModel, TaskBatch, Tensor], Tensor]:
    """(BERT model, batch, noise on its word embedding) -> (B,) losses, by the trunk's own `inputs_embeds`."""

    def losses(model: TaskModel, batch: TaskBatch, delta_NLF: Tensor) -> Tensor:
        trunk, tokens = model.tower.trunk, batch.tokens
        types = {} if tokens.type_NL is None else {"token_type_ids": tokens.type_NL}
        embedded_NLF = trunk.get_input_embeddings()(tokens.token_NL) + delta_NLF
        output = trunk(inputs_embeds=embedded_NLF, attention_mask=tokens.mask_NL, **types)
        return model.losses(model.logits(output.last_hidden_state, batch), batch)

    return losses
