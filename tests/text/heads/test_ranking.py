"""A query is trained towards its candidate and away from the others', but never from a copy of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model, tiny_tokenizer

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.ranking import RetrievalModel
from mmalign.text.tasks.example import Example


@pytest.fixture
def model() -> RetrievalModel:
    return RetrievalModel(
        TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=32)
    )


def pair(query: str, candidate: str, *right: str) -> Example:
    return Example(query, "en", (query, candidate), right)


PAIRS = [
    pair("a red ball", "ein roter Ball", "1"),
    pair("a dog", "ein Hund", "2"),
    pair("the cat sleeps", "赤いボール", "3"),
    pair("0123", "мяч", "4"),
]


def cosines(model: RetrievalModel, examples: list[Example]) -> torch.Tensor:
    queries = torch.from_numpy(model.tower.encode([one.texts[0] for one in examples]))
    found = torch.from_numpy(model.tower.encode([one.texts[1] for one in examples]))
    return F.normalize(queries, dim=1) @ F.normalize(found, dim=1).T


def test_the_loss_is_a_softmax_of_cosines_times_100(model: RetrievalModel) -> None:
    batch = model.collate(PAIRS)
    expected = -torch.log_softmax(100 * cosines(model, PAIRS), 1).diagonal()
    torch.testing.assert_close(model.losses(model(batch), batch), expected, atol=1e-3, rtol=1e-4)
    assert batch.example_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_copies_of_the_right_candidate_are_no_negatives(model: RetrievalModel) -> None:
    examples = [
        *PAIRS,
        pair("red", "ein roter Ball", "9"),  # the text of the first
        pair("hound", "dog", "2", "8"),  # an id of the second
    ]
    batch = model.collate(examples)
    scaled = 100 * cosines(model, examples)
    for i, j in ((0, 4), (4, 0), (1, 5), (5, 1)):
        scaled[i, j] = -1e9
    expected = -torch.log_softmax(scaled, 1).diagonal()
    torch.testing.assert_close(model.losses(model(batch), batch), expected, atol=1e-3, rtol=1e-4)


def test_a_query_without_negatives_has_loss_zero_and_finite_gradients(
    model: RetrievalModel,
) -> None:
    for examples in (PAIRS[:1], [PAIRS[0], pair("red", "ein roter Ball", "9")]):
        batch = model.collate(examples)
        losses = model.losses(model(batch), batch)
        assert losses.tolist() == [0] * len(examples)
        losses.sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all(grad.isfinite().all() for grad in grads)


def test_the_scale_is_learnt_within_bounds(model: RetrievalModel) -> None:
    batch = model.collate(PAIRS)
    model.losses(model(batch), batch).mean().backward()
    assert model.head.log_scale.grad is not None and model.head.log_scale.grad.abs() > 0
    with torch.no_grad():
        model.head.log_scale.fill_(50.0)
        assert model.head(torch.ones(1)).item() == pytest.approx(1000, rel=1e-4)
        model.head.log_scale.fill_(-math.inf)
        assert model.head(torch.ones(1)).item() == 1
