"""Alignment between languages, counted by hand and by brute force."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.alignment_cases import everything, make_embedded, random_spaces, unit
from ranks import run_ranks

from mmalign.evaluation import bitext
from mmalign.evaluation.alignment import linear_cka, measure_alignment
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.results.results import Results

AXES = np.eye(4, dtype=np.float32)


Caption = tuple[int, str, str, np.ndarray]
EN: list[Caption] = [(i, "en", text, AXES[i]) for i, text in enumerate("abc")]


def measured(captions: list[Caption]) -> Results:
    """Alignment of captions (image, language, text, vector)."""
    images, langs, texts, vectors = zip(*captions, strict=True)
    return of_set(
        EmbeddedSet(
            name="s",
            image_PD=np.zeros((9, 4), np.float32),
            text_MD=np.stack(vectors).astype(np.float32),
            sample_P=list(range(9)),
            picture_M=np.array(images, np.int64),
            language_M=np.array(langs),
            texts=list(texts),
        )
    )


def of_set(embedded: EmbeddedSet) -> Results:
    results = Results(suite="x", model={})
    measure_alignment(embedded, results)
    return results


def values(results: Results, metric: str = "bitext@1") -> dict[str, float]:
    """Pair or `mean` -> value."""
    parts = ((name.split("/"), value) for name, value in results.metrics.items())
    return {pair: value for (_, _, pair, of), value in parts if of == metric}


def test_directions_differ_and_are_averaged() -> None:
    # sw 2 lies where sw 1 does: en 1 ties, en 2 finds nothing of its own; both sw find en 1.
    sw = [(0, "sw", "x", AXES[0]), (1, "sw", "y", AXES[1]), (2, "sw", "z", AXES[1])]
    results = measured(EN + sw)
    assert values(results) == pytest.approx({"en-sw": 1 / 3, "sw-en": 2 / 3, "mean": 1 / 2})
    assert set(results.counts.values()) == {3, 6}
    assert results.counts["alignment/s/mean/bitext@1"] == 6
    assert results.chance["alignment/s/en-sw/bitext@1"] == pytest.approx(1 / 3)


def test_only_images_with_both_languages_and_their_first_captions_are_used() -> None:
    results = measured(
        [
            (0, "en", "a", AXES[0]),
            (0, "en", "a again", AXES[1]),  # a second caption is neither query nor answer
            *EN[1:],  # the last has no Swahili caption
            (0, "sw", "x", AXES[0]),
            (1, "sw", "y", AXES[1]),
            (3, "sw", "z", AXES[0]),  # no English caption
        ]
    )
    assert values(results) == {"en-sw": 1.0, "sw-en": 1.0, "mean": 1.0}
    assert values(results, "translation_gap")["mean"] == pytest.approx(1)
    assert results.counts["alignment/s/en-sw/bitext@1"] == 2


def test_an_equal_text_is_a_right_answer() -> None:
    # Two Swahili captions are the same words: either one is right, and so is chance.
    sw = [(0, "sw", "x", AXES[0]), (1, "sw", "x", AXES[0]), (2, "sw", "y", AXES[2])]
    results = measured(EN + sw)
    # en 1 scores all of them alike: "y" ties with "x".
    assert values(results)["en-sw"] == pytest.approx(2 / 3)
    assert results.chance["alignment/s/en-sw/bitext@1"] == pytest.approx((2 + 2 + 1) / 3 / 3)
    # Towards English the texts differ: sw 1 is x and finds a.
    assert values(results)["sw-en"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("point", [AXES[0], np.full(4, np.nan)], ids=["collapsed", "not numbers"])
def test_embeddings_without_information_score_zero(point: np.ndarray) -> None:
    captions = [(p, lang, f"{lang} {p}", point) for lang in ("en", "sw") for p in range(4)]
    assert set(measured(captions).metrics.values()) == {0.0}


def test_languages_that_share_fewer_than_two_images_are_not_measured() -> None:
    sw = [(0, "sw", "x", AXES[0]), (1, "sw", "y", AXES[1])]
    results = measured([*EN[:2], *sw, (1, "ja", "z", AXES[1])])
    assert values(results).keys() == {"en-sw", "sw-en", "mean"}
    assert measured(EN[:2]).metrics == measured(EN[:1]).metrics == {}


def test_equal_spaces_are_perfectly_aligned() -> None:
    rows = random_spaces()["l0"]
    results = of_set(make_embedded({"en": rows, "sw": rows}))
    for metric in ("bitext@1", "bitext_csls@1", "cka"):
        assert values(results, metric)["en-sw"] == pytest.approx(1)
    cosine = rows.astype(float) @ rows.T
    others = cosine[~np.eye(len(rows), dtype=bool)]
    assert values(results, "translation_gap")["mean"] == pytest.approx(1 - others.mean())


def test_a_rotated_language_has_the_same_shape_elsewhere() -> None:
    rows = random_spaces(pictures=40)["l0"]
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    results = of_set(make_embedded({"en": rows, "sw": unit(rows @ turn)}))
    assert values(results, "cka")["sw-en"] == pytest.approx(1)
    assert values(results)["mean"] < 0.3
    assert abs(values(results, "translation_gap")["mean"]) < 0.3


def test_an_offset_between_languages_disappears_with_the_means() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 16))
    away = np.zeros(16)
    away[0] = 30
    results = of_set(make_embedded({"en": unit(rows), "sw": unit(rows + away)}))
    gap, centred = (
        values(results, metric)["en-sw"]
        for metric in ("translation_gap", "translation_gap_centred")
    )
    assert gap < 0.2 < 0.9 < centred


def test_hubs_cost_bitext_but_not_csls() -> None:
    # All of English scores 0.8 with sw 0 and 0.6 with its own. CSLS: 2 x 0.8 - 0.8 and 2 x 0.6 - 0.06.
    axes = np.eye(13, dtype=np.float32)
    sw = np.concatenate([axes[12:], axes[1:12]])
    results = of_set(make_embedded({"en": 0.6 * axes[:12] + 0.8 * axes[12], "sw": sw}))
    assert values(results)["en-sw"] == pytest.approx(1 / 12)
    assert values(results, "bitext_csls@1")["en-sw"] == 1


def brute_force(a_ND: np.ndarray, b_ND: np.ndarray) -> dict[str, float]:
    """All measures from a to b by their definitions, in float64."""
    a, b = a_ND.astype(float), b_ND.astype(float)
    n, own = len(a), np.arange(len(a))
    cosine = a @ b.T
    of_a, of_b = (np.sort(one, axis=1)[:, -10:].mean(1) for one in (cosine, cosine.T))
    csls = 2 * cosine - of_a[:, None] - of_b[None]
    x, y = a - a.mean(0), b - b.mean(0)
    centred = unit(x).astype(float) @ unit(y).astype(float).T
    k, other = x @ x.T, y @ y.T
    off = ~np.eye(n, dtype=bool)
    return {
        "bitext@1": (cosine.argmax(1) == own).mean(),
        "bitext_csls@1": (csls.argmax(1) == own).mean(),
        "translation_gap": cosine.diagonal().mean() - cosine[off].mean(),
        "translation_gap_centred": centred.diagonal().mean() - centred[off].mean(),
        "cka": (k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum()),
    }


@pytest.fixture(params=[(2**25, 2**21), (0, 64)], ids=["kept", "in small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bitext, "_KEPT", request.param[0])
    monkeypatch.setattr(bitext, "_BLOCK", request.param[1])
    yield


def test_all_measures_are_those_of_their_definitions(blocks: None) -> None:
    spaces = random_spaces()
    results = of_set(make_embedded(spaces))
    pairs = [(a, b) for a in spaces for b in spaces if a != b]
    assert values(results).keys() == {f"{a}-{b}" for a, b in pairs} | {"mean"}
    for a, b in pairs:
        n = min(len(spaces[a]), len(spaces[b]))
        for metric, expected in brute_force(spaces[a][:n], spaces[b][:n]).items():
            assert values(results, metric)[f"{a}-{b}"] == pytest.approx(expected, abs=1e-6), metric
    means = values(results, "bitext_csls@1")
    assert 0 < means["l0-l1"] < 1
    assert results.ids["alignment/s/l0-l4"].tolist() == list(range(18))  # images of the queries
    assert means["mean"] == pytest.approx(np.mean([means[f"{a}-{b}"] for a, b in pairs]))


def test_equal_texts_are_right_in_small_blocks_too(blocks: None) -> None:
    spaces = random_spaces(2)
    embedded = make_embedded(spaces)
    texts = [f"{text.split()[0]} {int(text.split()[1]) % 10}" for text in embedded.texts]
    cosine = spaces["l0"][:27] @ spaces["l1"].T
    expected = (cosine.argmax(1) % 10 == np.arange(27) % 10).mean()
    assert values(of_set(replace(embedded, texts=texts)))["l0-l1"] == pytest.approx(expected)


def test_chance_of_cka_is_the_mean_over_random_pairings() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(12, 20)) for _ in range(2))
    x, y = (torch.from_numpy(one - one.mean(0)) for one in (a, b))
    _, chance = linear_cka(x, y)
    shuffled = [linear_cka(x, y[torch.from_numpy(rng.permutation(12))])[0] for _ in range(2000)]
    assert chance == pytest.approx(np.mean(shuffled), abs=0.005)
    assert chance > 0.5  # few captions look alike in shape: the reader must know


def test_two_ranks_have_the_results_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "dictionaries"
    folder.mkdir()
    for lang in ("de", "sw", "ja"):
        lines = [f"word{i}\t{lang}{i % 7}" for i in range(12)]
        (folder / f"en-{lang}.tsv").write_text("\n".join(["en\ttranslation", *lines]))
    torch.set_num_threads(1)
    expected = everything(folder)
    metrics = json.loads(expected)["metrics"]
    assert {name.split("/")[0] for name in metrics} == {"alignment", "geometry", "words"}
    assert run_ranks(2, everything, tmp_path / "store", folder) == [expected] * 2
