"""Search answers what a product of all vectors says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from search.search_cases import IMAGES, LANGUAGES, exact_index
from shard_sets import make_image, make_pair, make_set, write_set
from tiny import tiny_model, tiny_run

from mmalign.core.batch import Caption
from mmalign.core.errors import UserError
from mmalign.data.images import UndecodableImage
from mmalign.data.shards.reader import ShardSet
from mmalign.models.encoder import load_encoder
from mmalign.search.corpus import SearchIndex


def test_a_text_finds_the_images_with_the_largest_products(
    index: SearchIndex, folder: Path
) -> None:
    model, shard_set = load_encoder(folder / "run"), ShardSet(folder / "set")
    image_PD = model.encode_images([shard_set.read(i).image for i in range(IMAGES)])
    scores = image_PD @ model.encode_texts(["en 3 dog"])[0]
    found = index.by_text("en 3 dog", 5)
    order = np.argsort(-scores)[:5]
    images = [index.read_image(one["picture"]) for one in found]
    assert images == [shard_set.read(i).image for i in order]
    assert [one["score"] for one in found] == pytest.approx(scores[order].tolist(), abs=1e-6)
    for one, sample in zip(found, order, strict=True):
        captions = shard_set.read(int(sample)).captions
        assert one["captions"] == [{"lang": c.lang, "text": c.text} for c in captions]


def test_an_image_finds_the_nearest_captions_of_each_language(
    index: SearchIndex, folder: Path
) -> None:
    model, shard_set = load_encoder(folder / "run"), ShardSet(folder / "set")
    asked = make_image(5)
    found = index.by_image(asked, 2)
    assert [one["lang"] for one in found] == sorted(LANGUAGES)
    for of_language in found:
        captions = [c for i in range(IMAGES) for c in shard_set.read(i).captions]
        texts = [c.text for c in captions if c.lang == of_language["lang"]]
        scores = model.encode_texts(texts) @ model.encode_images([asked])[0]
        order = np.argsort(-scores)[:2]
        assert [one["text"] for one in of_language["captions"]] == [texts[i] for i in order]
        assert [one["score"] for one in of_language["captions"]] == pytest.approx(
            scores[order].tolist(), abs=1e-6
        )


def test_more_results_than_there_are(index: SearchIndex) -> None:
    assert sorted(one["picture"] for one in index.by_text("dog", 100)) == list(range(IMAGES))


def test_what_is_no_image_is_refused(index: SearchIndex) -> None:
    with pytest.raises(UndecodableImage):
        index.by_image(b"no image", 3)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 3)
    model = tiny_model()
    torch.nn.init.constant_(model.image_projection.weight, float("nan"))
    run = tiny_run(tmp_path / "run", model)
    with pytest.raises(UserError, match="not finite"):
        exact_index(load_encoder(run), tmp_path / "set", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))  # nothing that a later start would read


def test_equal_captions_are_one(tmp_path: Path) -> None:
    pairs = [make_pair(i, ("en",)) for i in range(3)]
    same = [replace(pair, captions=(Caption("en", "x"),)) for pair in pairs]
    model = load_encoder(tiny_run(tmp_path / "run"))
    index = exact_index(model, write_set(tmp_path / "set", same), tmp_path / "cache")
    assert [one["text"] for one in index.by_image(make_image(0), 3)[0]["captions"]] == ["x"]


def test_examples_are_captions_of_several_languages(index: SearchIndex) -> None:
    examples = index.examples(2)
    assert examples == index.examples(2)
    assert [one["lang"] for one in examples] == ["ar", "ja"]
    assert all(one["text"].startswith(one["lang"]) for one in examples)
    assert [one["lang"] for one in index.examples(8)] == ["ar", "en", "ja"]


def test_a_second_start_encodes_nothing(
    index: SearchIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_encoder(folder / "run")
    encoded: list[int] = []
    encode = model.encode_texts
    monkeypatch.setattr(model, "encode_texts", lambda t: (encoded.append(len(t)), encode(t))[1])
    again = exact_index(model, folder / "set", folder / "cache")
    assert encoded == [1]  # the one that warms the tower up
    assert again.by_text("dog", 3) == index.by_text("dog", 3)
