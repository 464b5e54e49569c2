"""Embeddings on disk: computed once, equal to fresh ones, in a known layout, refused when damaged."""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import make_pair, make_set, write_set

from mmalign.core.commit import MANIFEST
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation import embedding_cache
from mmalign.evaluation.embed import EmbeddedSet, embed_set
from mmalign.evaluation.embedding_cache import cached_set, read_embeddings, write_embeddings
from mmalign.models.prompts import NO_PROMPTS


class Counting:
    """A model whose vectors depend on the bytes alone, and which counts what it encodes."""

    prompts, precision = NO_PROMPTS, "auto"

    def __init__(self, sha256: str = "a" * 64) -> None:
        self.facts: dict[str, Any] = {"path": "model", "sha256": sha256, "step": 1}
        self.asked = 0

    def encode_images(self, images: Iterable[bytes], batch_size: int = 256) -> np.ndarray:
        return self._encode(list(images))

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        return self._encode([text.encode() for text in texts])

    def _encode(self, values: list[bytes]) -> np.ndarray:
        self.asked += len(values)
        seeds = [int.from_bytes(value[-8:]) for value in values]
        rows = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def captions_of(embedded: EmbeddedSet) -> list[tuple[int, str, str, bytes]]:
    """Each caption with its image, its language and its vector, sorted."""
    parts = zip(
        embedded.picture_M.tolist(),
        embedded.language_M.tolist(),
        embedded.texts,
        (row.tobytes() for row in embedded.text_MD),
        strict=True,
    )
    return sorted(parts)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metadata" / "metadata_0.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Nine images, one of which is there twice."""
    pairs = [make_pair(n, (("en",), ("sw", "en"), ("en", "ja"))[n % 3]) for n in range(9)]
    pairs.append(make_pair(10, ("ja", "en"), picture="k001"))
    return write_set(tmp_path / "set", pairs)


def test_what_is_cached_is_what_was_computed(shards: Path, tmp_path: Path) -> None:
    cached = cached_set(Counting(), shards, "s", tmp_path / "cache")
    fresh = embed_set(Counting(), ShardSet(shards), "s")
    assert np.array_equal(cached.embedded.image_PD, fresh.image_PD)
    assert cached.embedded.image_PD.dtype == np.float32
    assert cached.embedded.sample_P == fresh.sample_P
    assert captions_of(cached.embedded) == captions_of(fresh)
    assert cached.picture_id_P.tolist() == ShardSet(shards).picture_ids[fresh.sample_P].tolist()


def test_a_set_is_encoded_once_by_each_model(shards: Path, tmp_path: Path) -> None:
    first, again, other = Counting(), Counting(), Counting("b" * 64)
    cached_set(first, shards, "s", tmp_path / "cache")
    cached_set(again, shards, "s", tmp_path / "cache")
    cached_set(other, shards, "s", tmp_path / "cache")
    assert (first.asked, again.asked, other.asked) == (9 + 17, 0, 9 + 17)
    other_data = make_set(tmp_path / "other", 5)
    cached_set(again, other_data, "s", tmp_path / "cache")
    assert again.asked > 0
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_layout_is_one_image_and_one_caption_per_row(shards: Path, tmp_path: Path) -> None:
    folder = cached_set(Counting(), shards, "s", tmp_path / "cache").folder
    images = np.load(folder / "img_emb" / "img_emb_0.npy")
    texts = np.load(folder / "text_emb" / "text_emb_0.npy")
    rows = lines_of(folder)
    assert len(images) == len(texts) == len(rows) == 17
    assert np.linalg.norm(texts, axis=1) == pytest.approx(1)
    model, shard_set = Counting(), ShardSet(shards)
    for image, text, row in zip(images, texts, rows, strict=True):
        assert np.array_equal(model.encode_texts([row["caption"]])[0], text)
        assert row["image_path"] == shard_set.keys[row["sample"]]
        assert np.array_equal(model.encode_images([shard_set.read(row["sample"]).image])[0], image)
    if find_spec("pyarrow"):  # the parquet file says what the lines say
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(folder / "metadata" / "metadata_0.parquet")
        assert table.to_pylist() == rows
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["normalised"] is True
    assert manifest["model_sha256"] == "a" * 64
    assert manifest["data_sha256"] == shard_set.manifest.sha256


def test_large_sets_are_in_several_files(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = ShardSet(shards)
    embedded = embed_set(Counting(), shard_set, "s")
    key = {"model_sha256": "m", "data_sha256": "d"}
    for rows in (1, 5, 100):
        monkeypatch.setattr(embedding_cache, "ROWS_PER_FILE", rows)
        write_embeddings(tmp_path / str(rows), embedded, shard_set, key)
    names = sorted(path.name for path in (tmp_path / "1" / "img_emb").iterdir())
    assert names[0] == "img_emb_00.npy"
    assert names[-1] == "img_emb_16.npy"
    read = [read_embeddings(tmp_path / str(rows), key, "s") for rows in (1, 5, 100)]
    for one in read[:-1]:
        assert np.array_equal(one.embedded.text_MD, read[-1].embedded.text_MD)
        assert np.array_equal(one.embedded.image_PD, read[-1].embedded.image_PD)
        assert one.embedded.texts == read[-1].embedded.texts


def test_an_image_without_captions_stays_an_image(tmp_path: Path) -> None:
    pairs = [make_pair(n, ("en",) if n != 2 else ()) for n in range(4)]
    shards = write_set(tmp_path / "set", pairs)
    cached = cached_set(Counting(), shards, "s", tmp_path / "cache")
    assert cached.embedded.image_PD.shape == (4, 8)
    assert cached.embedded.picture_M.tolist() == [0, 1, 3]
    assert lines_of(cached.folder)[2]["caption"] is None
    assert not np.load(cached.folder / "text_emb" / "text_emb_0.npy")[2].any()


def test_damage_and_embeddings_of_another_model_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = cached_set(Counting(), shards, "s", tmp_path / "cache").folder
    manifest, vectors = folder / MANIFEST, folder / "img_emb" / "img_emb_0.npy"
    valid = manifest.read_text()
    manifest.write_text(valid.replace("a" * 64, "c" * 64))
    with pytest.raises(UserError, match=r"`model_sha256` is c+, wanted is a+; delete"):
        cached_set(Counting(), shards, "s", tmp_path / "cache")
    manifest.write_text(valid)
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    with pytest.raises(UserError, match=r"img_emb_0\.npy: damaged.*; delete .* and repeat"):
        cached_set(Counting(), shards, "s", tmp_path / "cache")
