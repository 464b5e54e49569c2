"""Caption-to-caption retrieval between languages, counted by hand."""

import numpy as np
import pytest

from mmalign.evaluation.alignment import measure_alignment
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.results import Results

AXES = np.eye(4, dtype=np.float32)


def measured(captions: list[tuple[int, str, str, np.ndarray]]) -> Results:
    """Alignment of captions (picture, language, text, vector)."""
    results = Results(suite="x", model={})
    embedded = EmbeddedSet(
        name="s",
        image_PD=np.zeros((9, 4), np.float32),
        text_MD=np.stack([vector for *_, vector in captions]).astype(np.float32),
        sample_P=list(range(9)),
        picture_M=np.array([picture for picture, *_ in captions], np.int64),
        language_M=np.array([lang for _, lang, *_ in captions]),
        texts=[text for _, _, text, _ in captions],
    )
    measure_alignment(embedded, results)
    return results


def bitext(results: Results) -> dict[str, float]:
    return {name.split("/")[2]: value for name, value in results.metrics.items()}


def test_directions_differ_and_are_averaged() -> None:
    # sw 2 lies where sw 1 does: en 1 ties, en 2 finds nothing of its own; both sw find en 1.
    results = measured(
        [
            (0, "en", "a", AXES[0]),
            (1, "en", "b", AXES[1]),
            (2, "en", "c", AXES[2]),
            (0, "sw", "x", AXES[0]),
            (1, "sw", "y", AXES[1]),
            (2, "sw", "z", AXES[1]),
        ]
    )
    assert bitext(results) == pytest.approx({"en-sw": 1 / 3, "sw-en": 2 / 3, "mean": 1 / 2})
    assert set(results.counts.values()) == {3, 6}
    assert results.counts["alignment/s/mean/bitext@1"] == 6
    assert results.chance["alignment/s/en-sw/bitext@1"] == pytest.approx(1 / 3)


def test_only_pictures_with_both_languages_and_their_first_captions_take_part() -> None:
    results = measured(
        [
            (0, "en", "a", AXES[0]),
            (0, "en", "a again", AXES[1]),  # a second caption neither asks nor answers
            (1, "en", "b", AXES[1]),
            (2, "en", "c", AXES[2]),  # no Swahili caption
            (0, "sw", "x", AXES[0]),
            (1, "sw", "y", AXES[1]),
            (3, "sw", "z", AXES[0]),  # no English caption
        ]
    )
    assert bitext(results) == {"en-sw": 1.0, "sw-en": 1.0, "mean": 1.0}
    assert results.counts["alignment/s/en-sw/bitext@1"] == 2


def test_an_equal_text_is_a_right_answer() -> None:
    # Both Swahili captions are the same words: either one is right, and chance says so.
    captions = [
        (0, "en", "a", AXES[0]),
        (1, "en", "b", AXES[1]),
        (2, "en", "c", AXES[2]),
        (0, "sw", "x", AXES[0]),
        (1, "sw", "x", AXES[0]),
        (2, "sw", "y", AXES[2]),
    ]
    results = measured(captions)
    # en 1 scores all of them alike: "y" ties with "x".
    assert bitext(results)["en-sw"] == pytest.approx(2 / 3)
    assert results.chance["alignment/s/en-sw/bitext@1"] == pytest.approx((2 + 2 + 1) / 3 / 3)
    # Towards English the texts differ: sw 1 says x and finds a.
    assert bitext(results)["sw-en"] == pytest.approx(2 / 3)


def test_collapsed_embeddings_score_zero() -> None:
    captions = [(p, lang, f"{lang} {p}", AXES[0]) for lang in ("en", "sw") for p in range(4)]
    assert set(bitext(measured(captions)).values()) == {0.0}


def test_languages_that_share_fewer_than_two_pictures_are_not_measured() -> None:
    captions = [
        (0, "en", "a", AXES[0]),
        (1, "en", "b", AXES[1]),
        (0, "sw", "x", AXES[0]),
        (1, "sw", "y", AXES[1]),
        (1, "ja", "z", AXES[1]),
    ]
    assert bitext(measured(captions)).keys() == {"en-sw", "sw-en", "mean"}
    assert measured(captions[:2]).metrics == {}
