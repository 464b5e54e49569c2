"""Exact search and hits at k: matrices whose answer is known by hand, and random ones by brute force."""

from itertools import combinations
from math import comb
from unittest.mock import patch

import numpy as np
import pytest

from mmalign.evaluation import nearest
from mmalign.evaluation.nearest import chance_at, hits_at, search, search_shards


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def brute_hits(
    query: np.ndarray, pool: np.ndarray, query_label: np.ndarray, pool_label: np.ndarray, k: int
) -> list[float]:
    """By definition: fewer than k wrong items score at least as high as the best right one."""
    hits = []
    for vector, label in zip(query, query_label, strict=True):
        scores = pool @ vector
        right = scores[pool_label == label]
        wrong = scores[pool_label != label]
        hits.append(float(len(right) > 0 and (wrong >= right.max()).sum() < k))
    return hits


def test_ties_count_against_the_model_wherever_the_right_item_is() -> None:
    pool = rows((1, 0), (1, 0), (1, 0), (0, 1))
    for right in range(3):
        hits = hits_at(rows((1, 0)), pool, np.array([right]), np.arange(4), (1, 2, 3))
        assert {k: hit.tolist() for k, hit in hits.items()} == {1: [0.0], 2: [0.0], 3: [1.0]}
    # Right items that tie with each other do not hurt each other.
    labels = np.array([0, 0, 0, 1])
    assert hits_at(rows((1, 0)), pool, np.array([0]), labels, (1,))[1].tolist() == [1.0]


def test_scores_that_differ_by_rounding_are_ties() -> None:
    for difference, hit in ((1e-7, 0.0), (1e-4, 1.0)):
        pool = rows((1, 0), (1 - difference, 0))
        assert pool[0, 0] != pool[1, 0]
        assert hits_at(rows((1, 0)), pool, np.array([0]), np.arange(2), (1,))[1].tolist() == [hit]


@pytest.mark.parametrize(("queries", "pool", "width"), [(5, 12, 16), (1000, 1000, 128)])
def test_collapsed_embeddings_score_zero(queries: int, pool: int, width: int) -> None:
    # The larger case is multiplied in blocks, whose equal rows differ in the last digit.
    vector = np.random.default_rng(0).normal(size=width)
    one = (vector / np.linalg.norm(vector)).astype(np.float32)
    query, items = np.tile(one, (queries, 1)), np.tile(one, (pool, 1))
    hits = hits_at(query, items, np.arange(queries), np.arange(pool), (1, 5, 10))
    assert {k: hit.sum() for k, hit in hits.items()} == {1: 0.0, 5: 0.0, 10: 0.0}


@pytest.mark.parametrize("count", [4, 40])  # faiss has another way for few queries
def test_embeddings_that_are_not_numbers_score_zero(count: int) -> None:
    good = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    bad = np.full_like(good, np.nan)
    labels = np.arange(count)
    for query, pool in ((bad, good), (good, bad), (bad, bad)):
        assert hits_at(query, pool, labels, labels, (1, 2))[2].sum() == 0


def test_an_answer_that_the_pool_lacks_is_no_hit() -> None:
    hits = hits_at(rows((1, 0)), rows((1, 0), (0, 1)), np.array([7]), np.array([0, 1]), (1, 9))
    assert (hits[1].tolist(), hits[9].tolist()) == ([0.0], [0.0])


Ties = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def many_ties(seed: int) -> Ties:
    """Queries, pool and labels of both in small whole numbers: products are exact and often equal."""
    rng = np.random.default_rng(seed)
    query = rng.integers(-2, 3, size=(60, 3)).astype(np.float32)
    pool = rng.integers(-2, 3, size=(45, 3)).astype(np.float32)
    return query, pool, rng.integers(0, 14, 60), rng.integers(0, 12, 45)


@pytest.mark.parametrize("seed", range(3))
def test_hits_equal_the_definition_on_random_data_with_many_ties(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ties = many_ties(seed)
    hits = hits_at(*ties, (1, 3, 10, 44, 100))
    for k, hit in hits.items():
        assert hit.tolist() == brute_hits(*ties, k)
    assert 0 < hits[3].mean() < hits[10].mean() < 1
    # However the queries are cut into chunks.
    monkeypatch.setattr(nearest, "_CHUNK", 7)
    monkeypatch.setattr(nearest, "_ENTRIES", 20)
    assert {k: h.tolist() for k, h in hits_at(*ties, tuple(hits)).items()} == {
        k: hit.tolist() for k, hit in hits.items()
    }


def test_search_is_exact_and_descending() -> None:
    rng = np.random.default_rng(0)
    query, pool = rng.normal(size=(30, 8)), rng.normal(size=(50, 8))
    scores, indices = search(query.astype(np.float32), pool.astype(np.float32), 7)
    exact = query @ pool.T
    assert indices.tolist() == np.argsort(-exact, axis=1)[:, :7].tolist()
    assert scores == pytest.approx(-np.sort(-exact, axis=1)[:, :7], abs=1e-4)
    assert search(query.astype(np.float32), pool.astype(np.float32), 99)[1].shape == (30, 50)


@pytest.mark.parametrize(("pool", "k"), [(5, 1), (5, 2), (6, 4), (4, 4), (3, 10)])
def test_chance_equals_the_share_of_all_draws(pool: int, k: int) -> None:
    for relevant in range(1, pool + 1):
        draws = list(combinations(range(pool), min(k, pool)))
        share = sum(min(draw) < relevant for draw in draws) / len(draws)
        assert chance_at(np.array([relevant]), pool, k) == pytest.approx(share)
        closed = 1 - comb(pool - relevant, min(k, pool)) / comb(pool, min(k, pool))
        assert chance_at(np.array([relevant]), pool, k) == pytest.approx(closed)


def test_chance_is_the_mean_over_queries() -> None:
    assert chance_at(np.array([1, 3]), 10, 1) == pytest.approx((1 / 10 + 3 / 10) / 2)


def test_a_list_that_ends_in_ties_of_right_items_is_searched_deeper() -> None:
    # Six right items and two wrong ones score alike: the first list of two may hold right items only.
    pool, labels = np.tile(rows((1, 0)), (8, 1)), np.array([0, 0, 0, 0, 0, 0, 1, 2])
    for turn in range(8):
        hits = hits_at(rows((1, 0)), pool, np.array([0]), np.roll(labels, turn), (1, 2, 3))
        assert {k: hit.tolist() for k, hit in hits.items()} == {1: [0.0], 2: [0.0], 3: [1.0]}


def test_most_queries_are_searched_once_and_no_deeper_than_needed() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(50, 8)).astype(np.float32)
    pool = np.repeat(rng.normal(size=(40, 8)).astype(np.float32), 5, axis=0)  # each item five times
    labels = np.repeat(np.arange(40), 5)
    label = np.argmax(query @ pool.T, axis=1) // 5  # the best items are right: five in a tie
    with patch.object(nearest, "search", wraps=search) as searched:
        assert hits_at(query, pool, label, labels, (1,))[1].tolist() == [1.0] * 50
        assert [call.args[2] for call in searched.call_args_list] == [2, 4, 8]
        searched.reset_mock()
        assert hits_at(query, pool, (label + 1) % 40, labels, (1,))[1].sum() == 0
        assert [call.args[2] for call in searched.call_args_list] == [2]


def test_items_that_are_not_numbers_rank_behind_all_others() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(size=(30, 8)).astype(np.float32)
    pool = np.concatenate([good, np.full((30, 8), np.nan, np.float32)])
    hits = hits_at(good, pool, np.arange(30), np.arange(60), (1, 40))
    assert hits[40].tolist() == [1.0] * 30
    assert hits_at(good, pool, np.arange(30, 60), np.arange(60), (1, 40))[40].sum() == 0


def test_search_reads_a_memory_map(tmp_path: object) -> None:
    rng = np.random.default_rng(0)
    pool = np.memmap(f"{tmp_path}/pool", np.float32, "w+", shape=(50, 8))
    pool[:] = rng.normal(size=(50, 8))
    query = rng.normal(size=(30, 8)).astype(np.float32)
    assert search(query, pool, 3)[1].tolist() == np.argsort(-query @ pool.T)[:, :3].tolist()


def test_without_ranks_the_only_shard_is_the_pool() -> None:
    rng = np.random.default_rng(0)
    query, pool = (rng.normal(size=(n, 8)).astype(np.float32) for n in (30, 50))
    for found, expected in zip(search_shards(query, pool, 7), search(query, pool, 7), strict=True):
        assert found.tolist() == expected.tolist()
