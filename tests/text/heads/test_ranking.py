"""A query is trained towards its candidate and away from the others', but never from a copy of it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TEXTS, tiny_model, tiny_tokenizer

from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.ranking import RetrievalModel, rank, rank_features
from mmalign.text.tasks.task import Example


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


def draw(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def right(*ids: str) -> frozenset[str]:
    return frozenset(ids)


def test_it_is_the_order_of_cosines_whatever_the_lengths() -> None:
    queries, pool = draw(7, 0), draw(50, 1)
    pool *= np.random.default_rng(2).uniform(0.1, 10, (50, 1)).astype(np.float32)
    cosine = queries @ pool.T / np.linalg.norm(pool, axis=1)
    expected = [tuple(f"c{i}" for i in np.argsort(-row)[:20]) for row in cosine]
    assert rank_features(queries, pool, [right("c3")] * 7, names(50)) == expected
    firsts = rank_features(queries, pool, [right("c3")] * 7, names(50), depth=2)
    assert firsts == [one[:2] for one in expected]


def test_one_point_for_everything_finds_nothing() -> None:
    pool = np.ones((30, 8), np.float32)
    for place in (0, 7, 29):
        wanted = right(f"c{place}", "c8")
        (found,) = rank_features(pool[:1], pool, [wanted], names(30))
        assert len(found) == 20 and wanted.isdisjoint(found)


def test_a_correct_candidate_is_ranked_behind_wrong_ones_of_its_score() -> None:
    pool = draw(4, 0)
    pool[2] = 3 * pool[0]  # the same direction
    for place, order in (("c0", ("c2", "c0")), ("c2", ("c0", "c2"))):
        (found,) = rank_features(pool[:1], pool, [right(place)], names(4))
        assert found[:2] == order
    (both,) = rank_features(pool[:1], pool, [right("c0", "c2")], names(4))
    assert set(both[:2]) == {"c0", "c2"}


def test_more_correct_candidates_than_ranks() -> None:
    pool = draw(40, 0)
    pool[:30] = pool[0]
    (found,) = rank_features(pool[:1], pool, [right(*names(30))], names(40), depth=5)
    assert len(found) == 5 and set(found) <= set(names(30))


def test_features_that_are_no_numbers_find_nothing() -> None:
    pool = draw(5, 0)
    assert rank_features(pool[:1] * np.nan, pool, [right("c0")], names(5)) == [()]
    pool[0] = np.nan
    (found,) = rank_features(pool[1:2], pool, [right("c0")], names(5))
    assert "c0" not in found


def test_an_empty_pool_and_no_queries() -> None:
    empty = np.zeros((0, 8), np.float32)
    assert rank_features(draw(2, 0), empty, [right("a")] * 2, []) == [(), ()]
    assert rank_features(empty, draw(2, 0), [], names(2)) == []


@pytest.mark.parametrize("copies", [1, 2])
def test_texts_find_themselves_through_a_tower(copies: int) -> None:
    tower = TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=32)
    pool = [
        Example(f"{i}-{copy}", "en", (text,), ())
        for i, text in enumerate(TEXTS)
        for copy in range(copies)
    ]
    queries = [Example(str(i), "en", (text,), (f"{i}-0",)) for i, text in enumerate(TEXTS)]
    found = rank(tower, queries, pool)
    # A copy under another id is a wrong candidate of the same score: it is ranked first.
    assert [one[copies - 1] for one in found] == [f"{i}-0" for i in range(len(TEXTS))]
    if copies == 2:
        assert [one[0] for one in found] == [f"{i}-1" for i in range(len(TEXTS))]


def test_centred_features_are_those_less_the_mean_of_their_language() -> None:
    tower = TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=32)
    queries = [Example(str(i), "en", (text,), (str(i),)) for i, text in enumerate(TEXTS)]
    pool = [Example(str(i), "en", (text[::-1],), ()) for i, text in enumerate(TEXTS)]
    model = RetrievalModel(tower, {"en": pool}, {"en": queries})
    one, other = (
        F.normalize(torch.from_numpy(tower.encode([e.texts[0] for e in rows])), dim=1)
        for rows in (queries, pool)
    )
    cosine = F.cosine_similarity((one - one.mean(0))[:, None], (other - other.mean(0))[None], dim=2)
    by_hand = [[str(int(i)) for i in row] for row in cosine.argsort(dim=1, descending=True)]
    # The mean is that of all queries, also when one is asked alone.
    assert [list(found) for found in model.predict(queries)] == by_hand
    assert list(model.predict(queries[:1])[0]) == by_hand[0]
    plain = RetrievalModel(tower, {"en": pool}).predict(queries)
    assert [list(found) for found in plain] != by_hand
    # Candidates are encoded again when the weights change.
    with torch.no_grad():
        next(tower.parameters()).normal_()
    fresh = RetrievalModel(tower, {"en": pool}, {"en": queries})
    assert model.predict(queries) == fresh.predict(queries)


def test_vectors_that_are_no_numbers_rank_nothing() -> None:
    tower = TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=32)
    next(tower.parameters()).data.fill_(np.nan)
    with pytest.raises(UserError, match="its vectors are not finite"):
        rank(tower, [pair("a", "b", "1")], [Example("1", "en", ("b",), ("1",))])
