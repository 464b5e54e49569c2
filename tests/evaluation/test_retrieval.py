"""Recall by both protocols, aggregates and intervals, on matrices whose answer is known by hand."""

from math import comb

import numpy as np
import pytest

from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.retrieval import DIRECTIONS, Protocol, measure_retrieval
from mmalign.results.language_families import by_family, family_of
from mmalign.results.protocol import sentence
from mmalign.results.results import Results


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


def measured(
    one: EmbeddedSet,
    ks: tuple[int, ...] = (1, 2),
    protocols: tuple[Protocol, ...] = ("all-captions",),
) -> Results:
    results = Results(suite="x", model={})
    measure_retrieval(one, ks, results, protocols)
    return results


def recalls(results: Results, name: str = "s") -> dict[str, list[float]]:
    """Language or aggregate of a set -> recalls of texts at each k, then of images; families left out."""
    parts: dict[str, list[float]] = {}
    for one, value in results.metrics.items():
        _, of_set, lang, direction, _ = one.split("/")
        if of_set == name and "family:" not in lang:
            parts.setdefault(lang, []).append(value)
            assert direction == DIRECTIONS[len(parts[lang]) > 2]
    return {lang: pytest.approx(values) for lang, values in parts.items()}


# Three images on the axes. Captions score (image 0, 1, 2):
#   en 0 -> (3, 2, 1) right first      en 1 -> (2, 3, 1) wrong by one
#   en 2 -> (1, 2, 3) right first      sw 0 -> (1, 3, 2) wrong by two     sw 1 -> (2, 1, 3) by two
IMAGES = rows((1, 0, 0), (0, 1, 0), (0, 0, 1))
TEXTS = rows((3, 2, 1), (2, 3, 1), (1, 2, 3), (1, 3, 2), (2, 1, 3))
SET = (IMAGES, TEXTS, [0, 0, 2, 0, 1], ["en", "en", "en", "sw", "sw"])


def test_recalls_counts_and_chance_by_hand_by_both_protocols() -> None:
    results = measured(embedded(*SET), protocols=("first-caption", "all-captions"))
    # Texts at 1 and 2: captions en 0 and 2 find their image at once, caption 1 as the second.
    # Images: 0 scores its English captions 3 and 2, the other 1; its Swahili one 1, the other 2; ...
    assert recalls(results) == {
        "en": [2 / 3, 1, 1, 1],
        "sw": [0, 0, 0, 1],
        "mean": [1 / 3, 1 / 2, 1 / 2, 1],
        "all": [2 / 5, 3 / 5, 2 / 4, 1],
    }
    # English loses caption 1, of image 0; Swahili has one caption per image.
    assert recalls(results, "s@first-caption") == {
        "en": [1, 1, 1, 1],
        "sw": [0, 0, 0, 1],
        "mean": [1 / 2, 1 / 2, 1 / 2, 1],
        "all": [2 / 4, 2 / 4, 2 / 4, 1],
    }
    for part, texts, images in (("en", 3, 2), ("mean", 5, 4), ("all", 5, 4)):
        assert results.counts[f"retrieval/s/{part}/text_to_image/recall@1"] == texts
        assert results.counts[f"retrieval/s/{part}/image_to_text/recall@1"] == images
    assert results.metrics.keys() == results.counts.keys() == results.chance.keys()
    assert results.chance["retrieval/s/en/text_to_image/recall@2"] == pytest.approx(2 / 3)
    # Image 0 owns two of three captions, image 2 one; with the first captions only, each one of two.
    name = "retrieval/s{}/en/image_to_text/recall@1"
    assert results.chance[name.format("")] == pytest.approx(1 / 2)
    assert results.chance[name.format("@first-caption")] == pytest.approx(1 / 2)
    assert sentence(results.protocol["retrieval/s@first-caption"]).startswith("first-caption: ")
    assert sentence(results.protocol["retrieval/s"]).startswith("all-captions: ")
    assert "all 3 distinct pictures" in sentence(results.protocol["retrieval/s"])
    low, high = results.ci95["retrieval/s/en/text_to_image/recall@1"]
    assert low <= 2 / 3 <= high


def test_the_protocols_differ_where_a_later_caption_is_the_better_one() -> None:
    # Image 0's second caption is right, its first one points to image 1.
    texts = rows((0, 1, 0), (1, 0, 0), (0, 0.9, 0), (0, 0, 1))
    one = embedded(IMAGES, texts, [0, 0, 1, 2], ["en"] * 4)
    results = measured(one, ks=(1,), protocols=("all-captions", "first-caption"))
    name = "retrieval/{}/en/image_to_text/recall@1"
    assert results.metrics[name.format("s")] == pytest.approx(2 / 3)
    assert results.metrics[name.format("s@first-caption")] == pytest.approx(1 / 3)


def test_first_captions_are_those_of_each_image_in_each_language() -> None:
    pictures, langs = [1, 0, 1, 0, 1, 1], ["sw", "en", "en", "en", "sw", "en"]
    texts = np.arange(12, dtype=np.float32).reshape(6, 2)
    one = embedded(texts[:2], texts, pictures, langs)
    assert one.first_captions().tolist() == [0, 1, 2]
    kept = one.with_captions(one.first_captions())
    assert kept.texts == ["text 0", "text 1", "text 2"]
    assert kept.text_MD.tolist() == texts[:3].tolist()
    assert (kept.picture_M.tolist(), kept.language_M.tolist()) == ([1, 0, 1], ["sw", "en", "en"])


def test_an_image_without_captions_is_in_the_pool_but_is_no_query() -> None:
    # Image 3 is nearest to every caption.
    images = np.concatenate([IMAGES, rows((9, 9, 9))])
    results = measured(embedded(images, *SET[1:]), ks=(1, 2, 3))
    assert results.metrics["retrieval/s/all/text_to_image/recall@1"] == 0.0
    assert results.metrics["retrieval/s/all/text_to_image/recall@2"] == pytest.approx(2 / 5)
    assert results.metrics["retrieval/s/all/text_to_image/recall@3"] == pytest.approx(3 / 5)
    assert results.metrics["retrieval/s/en/image_to_text/recall@1"] == 1.0
    assert results.counts["retrieval/s/en/image_to_text/recall@1"] == 2
    assert results.chance["retrieval/s/all/text_to_image/recall@1"] == 0.25


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


def by_language(recalls: dict[str, float], pictures: int = 10) -> EmbeddedSet:
    """One caption per image and language; the first share of them points to its image, the others to none."""
    images = np.eye(pictures + 1, dtype=np.float32)
    captions, placed, langs = [], [], []
    for lang, recall in recalls.items():
        for picture in range(pictures):
            hit = picture < round(recall * pictures)
            captions.append(images[picture if hit else pictures])
            placed.append(picture)
            langs.append(lang)
    return embedded(images, np.stack(captions), placed, langs)


def test_worst_five_are_those_of_each_metric_and_need_more_than_five() -> None:
    recalls = {"de": 0.9, "en": 1.0, "es": 0.2, "fr": 0.4, "ja": 0.1, "sw": 0.3, "xx": 0.5}
    results = measured(by_language(recalls), ks=(1,))
    name = "retrieval/s/{}/text_to_image/recall@1"
    assert results.metrics[name.format("worst5")] == pytest.approx(
        (0.1 + 0.2 + 0.3 + 0.4 + 0.5) / 5
    )
    assert results.counts[name.format("worst5")] == 50
    assert results.chance[name.format("worst5")] == pytest.approx(1 / 11)
    assert name.format("worst5") not in results.ci95
    five = measured(by_language(dict(list(recalls.items())[:5])), ks=(1,))
    assert not any("worst5" in metric for metric in five.metrics)


def test_families_are_means_of_their_languages() -> None:
    recalls = {"de": 0.8, "eo": 0.5, "es": 0.2, "ja": 0.1, "pt-BR": 0.6}
    results = measured(by_language(recalls), ks=(1,))
    families = {
        name.split("/")[2]: value
        for name, value in results.metrics.items()
        if "/family:" in name and "/text_to_image/" in name
    }
    assert families == pytest.approx(
        {"family:Germanic": 0.8, "family:Japonic": 0.1, "family:Romance": 0.4}
    )
    assert results.counts["retrieval/s/family:Romance/text_to_image/recall@1"] == 20
    low, high = results.ci95["retrieval/s/family:Romance/text_to_image/recall@1"]
    assert low < 0.4 < high


def test_the_languages_of_the_large_sets_have_families() -> None:
    xm3600 = "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw te"
    demo = "en es ja ko pt it fr de fa id zh ru tr ar"
    african = (
        "af am bem ff ha ig kr lg luo mg nso om rw sn so ss st sw teo ti tn ts tw ve wo xh yo zu"
    )
    codes = set(
        f"{xm3600} {demo} {african} th tr uk vi zh-Hant iw tw-asante pt_BR lgg-x-official".split()
    )
    assert {code for code in codes if family_of(code) is None} == set()
    assert {family_of(code) for code in ("eo", "ia", "tlh", "xx", "")} == {None}
    families = by_family(["sw", "it", "zu", "eo", "ca"])
    assert families == {"Bantu": ["sw", "zu"], "Romance": ["it", "ca"]}
    assert list(families) == sorted(families)


def test_intervals_of_means_know_that_languages_share_images() -> None:
    # All languages hit and miss the same images, so 8 languages are worth no more than one.
    rng = np.random.default_rng(0)
    good = set(np.flatnonzero(rng.random(100) < 0.5).tolist())
    images = np.eye(101, dtype=np.float32)
    langs = [f"q{letter}" for letter in "abcdefgh"]  # of no family
    texts = np.stack([images[p if p in good else 100] for _ in langs for p in range(100)])
    one = embedded(
        images, texts, list(range(100)) * 8, [lang for lang in langs for _ in range(100)]
    )
    ci95 = measured(one, ks=(1,)).ci95
    for part in ("qa", "mean", "all"):
        low, high = ci95[f"retrieval/s/{part}/text_to_image/recall@1"]
        # 1.96 standard errors of 100 images to either side; 800 independent queries: a third.
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 100), rel=0.15)
    assert {name.split("/")[2] for name in ci95} == {*langs, "mean", "all"}


def test_intervals_are_those_of_a_bootstrap_by_hand() -> None:
    rng = np.random.default_rng(1)
    images, texts = (rng.normal(size=(n, 4)).astype(np.float32) for n in (30, 150))
    pictures = rng.integers(0, 30, 150).tolist()
    langs = rng.choice(["en", "de", "sw"], 150).tolist()
    results = measured(embedded(images, texts, pictures, langs), ks=(10,))
    name = "text_to_image/recall@10"
    # Images drawn one draw after the other, and every mean by its definition.
    asked, rng = np.unique(pictures), np.random.default_rng(0)
    found: dict[str, list[float]] = {"de": [], "mean": [], "all": [], "family:Germanic": []}
    for _ in range(4000):
        times = np.bincount(rng.choice(asked, len(asked)), minlength=30)
        hits, queries = {}, {}
        for lang in ("de", "en", "sw"):
            group = f"retrieval/s/{lang}/{name}"
            times_Q = times[results.ids[group.rpartition("/")[0]]]
            hits[lang], queries[lang] = (times_Q * results.values[group]).sum(), times_Q.sum()
        recall = {lang: hits[lang] / queries[lang] for lang in hits}
        found["de"].append(recall["de"])
        found["mean"].append(sum(recall.values()) / 3)
        found["all"].append(sum(hits.values()) / sum(queries.values()))
        found["family:Germanic"].append((recall["de"] + recall["en"]) / 2)
    for part, values in found.items():
        interval = results.ci95[f"retrieval/s/{part}/{name}"]
        assert interval == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))), abs=0.02)
        assert interval[1] - interval[0] > 0.05
