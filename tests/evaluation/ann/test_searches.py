"""Recall of lists, against its definition in numpy; ties, repeats and languages by hand."""

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.evaluation.ann.searches import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    Search,
    find_truth,
    make_searches,
    near_share,
    thresholds,
)
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.embedding_cache import CachedSet


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_search(seed: int, copies: int = 1) -> Search:
    """Twenty texts among thirty images, each of which is there `copies` times."""
    rng = np.random.default_rng(seed)
    pool = unit(np.repeat(rng.normal(size=(30, 8)), copies, axis=0))
    return Search(
        direction=TEXT_TO_IMAGE,
        query_QD=unit(rng.normal(size=(20, 8))),
        pool_MD=pool,
        query_label_Q=np.arange(20),
        pool_label_M=np.arange(len(pool)),
        query_language_Q=np.array(["en", "sw"] * 10),
        pool_language_M=np.full(len(pool), ""),
    )


def cached(name: str, pictures: list[int], captions: list[tuple[int, str]], seed: int) -> CachedSet:
    """A set of images with these ids; captions as (number of the image, language)."""
    rng = np.random.default_rng(seed)
    embedded = EmbeddedSet(
        name=name,
        image_PD=unit(rng.normal(size=(len(pictures), 4))),
        text_MD=unit(rng.normal(size=(len(captions), 4))),
        sample_P=list(range(len(pictures))),
        picture_M=np.array([place for place, _ in captions], np.int64),
        language_M=np.array([lang for _, lang in captions]),
        texts=[f"{name} {n}" for n in range(len(captions))],
    )
    return CachedSet(embedded, np.array(pictures, np.int64), None, "d", {})  # type: ignore[arg-type]


def test_the_truth_is_numpys() -> None:
    one, seed = random_search(0), 0
    truth = find_truth(one, (1, 10, 100), checked=7, seed=seed)
    score_QM = one.query_QD.astype(np.float64) @ one.pool_MD.T.astype(np.float64)
    assert truth.lists[10][1].tolist() == np.argsort(-score_QM, axis=1)[:, :10].tolist()
    assert truth.threshold[10] == pytest.approx(np.sort(score_QM, axis=1)[:, -10], abs=1e-6)
    assert truth.threshold[100] == pytest.approx(score_QM.min(1), abs=1e-6)  # 30 are all there are
    assert len(truth.sample) == 7
    assert truth.difference < 1e-6
    for k in (1, 10, 100):
        assert near_share(one, truth.lists[k][1], truth.threshold[k]).tolist() == [1.0] * len(
            one.query_QD
        )


def test_recall_is_the_share_of_the_nearest() -> None:
    one, seed = random_search(1), 1
    truth = find_truth(one, (5,), checked=1, seed=0)
    ids = np.random.default_rng(seed).permuted(np.tile(np.arange(30), (20, 1)), axis=1)[:, :5]
    nearest = [set(row) for row in truth.lists[5][1].tolist()]
    shares = [len(near & set(row)) / 5 for near, row in zip(nearest, ids.tolist(), strict=True)]
    found = near_share(one, ids, truth.threshold[5])
    assert found.tolist() == pytest.approx(shares)
    assert 0 < found.mean() < 1


def test_any_of_several_equal_items_counts() -> None:
    one = random_search(0, copies=4)  # the first is one of four that are all the nearest
    truth = find_truth(one, (1, 2), checked=20, seed=0)
    nearest = truth.lists[1][1]
    for copy in range(4):
        twin = nearest // 4 * 4 + copy
        assert near_share(one, twin, truth.threshold[1]).tolist() == [1.0] * 20
    another = (nearest + 4) % 120
    assert near_share(one, another, truth.threshold[1]).max() == 0


def test_nothing_found_and_found_twice_do_not_count() -> None:
    one = random_search(1)
    truth = find_truth(one, (3,), checked=1, seed=0)
    ids = truth.lists[3][1].copy()
    ids[:, 2] = ids[:, 1]
    ids[0] = -1
    shares = near_share(one, ids, truth.threshold[3])
    assert shares.tolist() == pytest.approx([0] + [2 / 3] * 19)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_vectors_that_cannot_be_measured_are_refused(value: float) -> None:
    one = random_search(0)
    one.pool_MD[3] = value
    with pytest.raises(UserError, match="not numbers or not of unit length"):
        find_truth(one, (1, 5), checked=5, seed=0)


def test_thresholds_of_a_small_pool_are_its_last() -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.1]])
    assert thresholds(scores, (1, 2, 9))[9].tolist() == [0.5, 0.1]


def test_task_hits_of_texts_by_hand() -> None:
    one = random_search(0)
    scores = np.tile(np.array([[0.9, 0.8, 0.7]], np.float32), (20, 1))
    ids = np.tile(np.array([[1, 2, 3]]), (20, 1))
    hits = one.task_hits(scores, ids, "sw", (1, 2, 3))  # queries 1, 3, 5, ... ask for themselves
    assert hits[1].tolist() == [1.0] + [0.0] * 9
    assert hits[2].tolist() == [1.0] + [0.0] * 9
    assert hits[3].tolist() == [1.0, 1.0] + [0.0] * 8
    tied = np.tile(np.array([[0.9, 0.9, 0.9]], np.float32), (20, 1))
    assert one.task_hits(tied, ids, "sw", (1,))[1].sum() == 0  # equal scores count against it


def test_pictures_search_captions_of_all_languages_and_are_judged_in_one() -> None:
    one = Search(
        direction=IMAGE_TO_TEXT,
        query_QD=np.zeros((2, 4), np.float32),
        pool_MD=np.zeros((5, 4), np.float32),
        query_label_Q=np.array([0, 1]),
        pool_label_M=np.array([0, 0, 1, -1, -1]),
        query_language_Q=np.array(["", ""]),
        pool_language_M=np.array(["en", "sw", "en", "sw", "en"]),
    )
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, -1]], np.float32)
    ids = np.array([[3, 1, 4, 0], [4, 3, 2, -1]])
    # sw: only picture 0 has such a caption; caption 3, a wrong one in sw, stands before it.
    assert one.queries_of("sw").tolist() == [0]
    assert {k: v.tolist() for k, v in one.task_hits(scores, ids, "sw", (1, 2)).items()} == {
        1: [0.0],
        2: [1.0],
    }
    # en: one wrong caption in en before each right one; those in sw are passed over.
    assert one.task_hits(scores, ids, "en", (2,))[2].tolist() == [1.0, 1.0]
    assert one.task_hits(scores, ids, "en", (1,))[1].tolist() == [0.0, 0.0]
    assert one.chance("en", (1,)) == {1: pytest.approx(1 / 3)}  # one of three captions in en
    assert one.languages == ["en", "sw"]


def test_the_pool_is_searched_and_never_right() -> None:
    captions = [(place, lang) for place in range(6) for lang in ("en", "en", "sw")]
    test = cached("test", [10, 11, 12, 13, 14, 15], captions, 0)
    # Picture 12 of the pool is one of the test set: it and its caption are left out.
    pool = cached("pool", [12, 20, 21], [(0, "en"), (1, "sw"), (2, "ja")], 1)
    to_image, to_text = make_searches(test, [pool], None, queries=8, seed=0)
    assert to_image.pool_label_M.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert np.array_equal(to_image.pool_MD[6:], pool.embedded.image_PD[1:])
    counts = {lang: (to_image.query_language_Q == lang).sum() for lang in ("en", "sw")}
    assert counts == {"en": 4, "sw": 4}  # evenly, though twelve are English
    assert to_text.pool_label_M.tolist() == [place for place, _ in captions] + [-1]
    assert to_text.pool_language_M[-1] == "sw"  # `ja` is no language of the test set
    assert to_text.query_label_Q.tolist() == [0, 1, 2, 3, 4, 5]
    for query, label in zip(to_image.query_QD, to_image.query_label_Q, strict=True):
        mine = test.embedded.text_MD[test.embedded.picture_M == label]
        assert (mine == query).all(1).any()


def test_an_image_of_two_pools_is_searched_once() -> None:
    test = cached("test", [10], [(0, "en")], 0)
    first, second = (cached("pool", ids, [(0, "en"), (1, "en")], 1) for ids in ([20, 21], [21, 22]))
    to_image, to_text = make_searches(test, [first, second], None, queries=8, seed=0)
    assert (len(to_image.pool_MD), len(to_text.pool_MD)) == (1 + 3, 1 + 3)


def test_languages_are_chosen_or_refused() -> None:
    test = cached("test", [1, 2], [(0, "en"), (0, "sw"), (1, "sw")], 0)
    to_image, to_text = make_searches(test, [], ["en"], queries=9, seed=0)
    assert to_image.languages == to_text.languages == ["en"]
    assert (len(to_image.pool_MD), len(to_text.pool_MD), len(to_text.query_QD)) == (2, 1, 1)
    with pytest.raises(UserError, match=r"set `test`: language `fr` is not in it; it has en, sw"):
        make_searches(test, [], ["fr"], queries=9, seed=0)
