"""The loss against hand-made truths; over ranks it is tested in test_parity.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.batch import Embeddings
from mmalign.training.loss import contrastive_loss, row_losses


def embeddings(images: int, texts: int, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)

    def rows(n: int) -> Tensor:
        drawn = torch.randn(n, 8, generator=generator, dtype=torch.float64)
        return F.normalize(drawn, dim=-1).requires_grad_()

    return Embeddings(rows(images), rows(texts), torch.tensor([5.0], dtype=torch.float64))


def test_with_one_caption_per_picture_it_is_clips_loss() -> None:
    found = embeddings(6, 6)
    ids = torch.arange(6)
    logits = 5.0 * found.image_BD @ found.text_ND.T
    expected = (F.cross_entropy(logits, ids) + F.cross_entropy(logits.T, ids)) / 2
    ours = contrastive_loss(found, ids, ids)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-12)
    wanted = torch.autograd.grad(expected, (found.image_BD, found.text_ND))
    got = torch.autograd.grad(ours, (found.image_BD, found.text_ND))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_hand_made_case_with_two_captions_and_an_equal_picture() -> None:
    # Images 0 and 1 show the same picture; captions 0 and 1 describe it, caption 2 describes image 2.
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.3, 0.1, 0.2], [0.0, 0.4, 3.0]], dtype=torch.float64)
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])

    def pair(score: float, *negatives: float) -> float:
        return -math.log(math.exp(score) / (math.exp(score) + sum(map(math.exp, negatives))))

    expected = [
        (pair(1.0, 0.5) + pair(2.0, 0.5)) / 2,
        (pair(0.3, 0.2) + pair(0.1, 0.2)) / 2,
        pair(3.0, 0.0, 0.4),
    ]
    assert row_losses(logits, positive).tolist() == pytest.approx(expected, abs=1e-12)


def test_positives_are_never_each_others_negatives() -> None:
    found = embeddings(3, 5)
    picture_B, picture_N = torch.tensor([7, 7, 9]), torch.tensor([7, 7, 9, 7, 9])
    logits = (5.0 * found.image_BD @ found.text_ND.T).detach().requires_grad_()
    row_losses(logits, picture_B[:, None] == picture_N).sum().backward()
    assert logits.grad is not None
    positive = picture_B[:, None] == picture_N
    assert (logits.grad[positive] < 0).all()
    assert (logits.grad[~positive] > 0).all()


def test_a_batch_without_negatives_has_no_loss_and_no_gradient() -> None:
    found = embeddings(2, 3)
    loss = contrastive_loss(found, torch.tensor([4, 4]), torch.tensor([4, 4, 4]))
    loss.backward()
    assert loss.item() == 0
    assert found.image_BD.grad is not None
    assert found.image_BD.grad.abs().max() == 0


def test_gradients_pass_gradcheck_and_extreme_logits_stay_finite() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]).bool()
    assert torch.autograd.gradcheck(lambda x: row_losses(x, positive), (logits,))
    extreme = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    row_losses(extreme, ~torch.eye(2).bool()).sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()
