"""The two losses against plain loops, values and gradients, in float64."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.text.lexical.losses import (
    HingeConfig,
    InfoNceConfig,
    LossConfig,
)

MARGIN, TEMPERATURE = 0.4, 0.1
LOSSES: dict[str, LossConfig] = {
    "hinge": HingeConfig(kind="hinge", margin=MARGIN),
    "infonce": InfoNceConfig(kind="infonce", temperature=TEMPERATURE),
}


def batch(rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows that want gradients, and right answers beside the own ones."""
    random = torch.Generator().manual_seed(seed)
    sides = [torch.randn(rows, 5, generator=random, dtype=torch.float64) for _ in range(2)]
    anchor, positive = (torch.nn.functional.normalize(one, dim=1) for one in sides)
    answers = torch.eye(rows, dtype=torch.bool)
    answers[0, 3] = answers[3, 0] = answers[4, 1] = True
    return anchor.requires_grad_(), positive.requires_grad_(), answers


def slow_hinge(anchor: Tensor, positive: Tensor, answers: Tensor) -> Tensor:
    total = torch.zeros((), dtype=anchor.dtype)
    for i in range(len(anchor)):
        wrong = [j for j in range(len(anchor)) if j != i and not answers[i, j]]
        hardest = max((anchor[i] @ positive[j] for j in wrong), key=Tensor.item)
        cost = MARGIN + hardest - anchor[i] @ positive[i]
        if cost > 0:
            total = total + cost
    return total / len(anchor)


def slow_infonce(anchor: Tensor, positive: Tensor, answers: Tensor) -> Tensor:
    total = torch.zeros((), dtype=anchor.dtype)
    for asks, given, right in ((anchor, positive, answers), (positive, anchor, answers.T)):
        for i in range(len(asks)):
            kept = [j for j in range(len(asks)) if j == i or not right[i, j]]
            weights = [torch.exp(asks[i] @ given[j] / TEMPERATURE) for j in kept]
            own = torch.exp(asks[i] @ given[i] / TEMPERATURE)
            total = total - torch.log(own / torch.stack(weights).sum())
    return total / (2 * len(anchor))


@pytest.mark.parametrize("kind", ["hinge", "infonce"])
@pytest.mark.parametrize("seed", range(2))
def test_values_and_gradients_are_those_of_a_plain_loop(kind: str, seed: int) -> None:
    anchor, positive, answers = batch(seed=seed)
    fast = LOSSES[kind].loss(anchor, positive, answers)
    slow = (slow_hinge if kind == "hinge" else slow_infonce)(anchor, positive, answers)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    for one, other in zip(
        torch.autograd.grad(fast, (anchor, positive)),
        torch.autograd.grad(slow, (anchor, positive)),
        strict=True,
    ):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["hinge", "infonce"])
def test_other_right_answers_push_nothing_away(kind: str) -> None:
    """Where every word of the batch is right for every other, loss and gradients are zero."""
    anchor, positive, answers = batch()
    loss = LOSSES[kind].loss(anchor, positive, torch.ones_like(answers))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (anchor, positive)):
        assert gradient.isfinite().all() and gradient.abs().max() == 0


def test_equal_words_have_the_margin_as_loss() -> None:
    """The published training on states that a start token dominates: the loss remains at its margin."""
    anchor = torch.ones(4, 3, dtype=torch.float64) / math.sqrt(3)
    for kind, expected in (("hinge", MARGIN), ("infonce", math.log(4))):
        loss = LOSSES[kind].loss(anchor, anchor, torch.eye(4, dtype=torch.bool))
        assert float(loss) == pytest.approx(expected)
