"""Recall on matrices whose answer is known by hand, and on random ones by brute force."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.index import chance_at, hits_at, search
from mmalign.evaluation.results import Results
from mmalign.evaluation.retrieval import measure_retrieval


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def embedded(
    image_PD: np.ndarray, text_MD: np.ndarray, picture_M: list[int], languages: list[str]
) -> EmbeddedSet:
    return EmbeddedSet(
        name="s",
        image_PD=image_PD,
        text_MD=text_MD,
        sample_P=list(range(len(image_PD))),
        picture_M=np.array(picture_M, np.int64),
        language_M=np.array(languages),
        texts=[f"text {i}" for i in range(len(text_MD))],
    )


def measured(one: EmbeddedSet, ks: tuple[int, ...] = (1, 2)) -> Results:
    results = Results(suite="x", model={})
    measure_retrieval(one, ks, results)
    return results


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


# Three pictures on the axes. Captions score (picture 0, 1, 2):
#   en 0 -> (3, 2, 1) right first      en 1 -> (2, 3, 1) wrong by one
#   en 2 -> (1, 2, 3) right first      sw 0 -> (1, 3, 2) wrong by two     sw 1 -> (2, 1, 3) by two
IMAGES = rows((1, 0, 0), (0, 1, 0), (0, 0, 1))
TEXTS = rows((3, 2, 1), (2, 3, 1), (1, 2, 3), (1, 3, 2), (2, 1, 3))
PICTURES = [0, 0, 2, 0, 1]
LANGUAGES = ["en", "en", "en", "sw", "sw"]


def test_recalls_by_hand_with_several_captions_per_picture() -> None:
    results = measured(embedded(IMAGES, TEXTS, PICTURES, LANGUAGES))
    metrics = {name.removeprefix("retrieval/s/"): value for name, value in results.metrics.items()}
    assert metrics == pytest.approx(
        {
            # en: captions 0 and 2 find their picture at once, caption 1 as the second.
            "en/text_to_image/recall@1": 2 / 3,
            "en/text_to_image/recall@2": 1.0,
            "sw/text_to_image/recall@1": 0.0,
            "sw/text_to_image/recall@2": 0.0,
            # en: picture 0 scores its captions 3 and 2, the other 1; picture 2 its own 3.
            "en/image_to_text/recall@1": 1.0,
            "en/image_to_text/recall@2": 1.0,
            # sw: picture 0 scores its caption 1, the other 2; picture 1 its own 1, the other 3.
            "sw/image_to_text/recall@1": 0.0,
            "sw/image_to_text/recall@2": 1.0,
            "mean/text_to_image/recall@1": 1 / 3,
            "mean/text_to_image/recall@2": 1 / 2,
            "mean/image_to_text/recall@1": 1 / 2,
            "mean/image_to_text/recall@2": 1.0,
            "all/text_to_image/recall@1": 2 / 5,
            "all/text_to_image/recall@2": 3 / 5,
        }
    )


def test_counts_and_chance_of_the_same_matrix() -> None:
    results = measured(embedded(IMAGES, TEXTS, PICTURES, LANGUAGES))
    assert results.counts["retrieval/s/en/text_to_image/recall@1"] == 3  # captions
    assert results.counts["retrieval/s/en/image_to_text/recall@1"] == 2  # pictures with captions
    assert results.counts["retrieval/s/mean/text_to_image/recall@1"] == 5
    assert results.counts["retrieval/s/mean/image_to_text/recall@1"] == 4
    assert results.counts["retrieval/s/all/text_to_image/recall@1"] == 5
    assert results.chance["retrieval/s/en/text_to_image/recall@2"] == pytest.approx(2 / 3)
    # Picture 0 owns two of three captions, picture 2 one.
    assert results.chance["retrieval/s/en/image_to_text/recall@1"] == pytest.approx(0.5)
    assert results.metrics.keys() == results.counts.keys() == results.chance.keys()
    assert "all 3 distinct pictures" in results.protocol["retrieval/s"]
    low, high = results.ci95["retrieval/s/en/text_to_image/recall@1"]
    assert low <= 2 / 3 <= high


def test_a_picture_without_captions_is_in_the_pool_but_asks_nothing() -> None:
    # Picture 3 lies nearest to every caption.
    images = np.concatenate([IMAGES, rows((9, 9, 9))])
    results = measured(embedded(images, TEXTS, PICTURES, LANGUAGES), ks=(1, 2, 3))
    assert results.metrics["retrieval/s/all/text_to_image/recall@1"] == 0.0
    assert results.metrics["retrieval/s/all/text_to_image/recall@2"] == pytest.approx(2 / 5)
    assert results.metrics["retrieval/s/all/text_to_image/recall@3"] == pytest.approx(3 / 5)
    assert results.metrics["retrieval/s/en/image_to_text/recall@1"] == 1.0
    assert results.counts["retrieval/s/en/image_to_text/recall@1"] == 2
    assert results.chance["retrieval/s/all/text_to_image/recall@1"] == 0.25


def test_ties_count_against_the_model_wherever_the_right_item_stands() -> None:
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


@pytest.mark.parametrize("seed", range(6))
def test_hits_equal_the_definition_on_random_data_with_many_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers: products are exact and often equal.
    query = rng.integers(-2, 3, size=(60, 3)).astype(np.float32)
    pool = rng.integers(-2, 3, size=(45, 3)).astype(np.float32)
    query_label, pool_label = rng.integers(0, 14, 60), rng.integers(0, 12, 45)
    hits = hits_at(query, pool, query_label, pool_label, (1, 3, 10, 44, 100))
    for k, hit in hits.items():
        assert hit.tolist() == brute_hits(query, pool, query_label, pool_label, k)
    assert 0 < hits[3].mean() < hits[10].mean() < 1


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


def test_random_embeddings_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(200, 16)), rng.normal(size=(600, 16))
    one = embedded(
        images.astype(np.float32),
        texts.astype(np.float32),
        [i % 200 for i in range(600)],
        ["en"] * 600,
    )
    results = measured(one, ks=(10,))
    for name, value in results.metrics.items():
        assert value == pytest.approx(results.chance[name], abs=0.06)
    assert results.chance["retrieval/s/en/image_to_text/recall@10"] == pytest.approx(
        1 - comb(597, 10) / comb(600, 10)
    )
