"""The similarity of images and captions, and selections by it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from shard_sets import make_set
from tiny import tiny_run

from mmalign.data.images import UndecodableImage
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.select import select
from mmalign.data.shards.reader import Pair, ShardSet
from mmalign.evaluation import score as module
from mmalign.evaluation.score import score
from mmalign.models.encoder import Encoder, load_encoder


def test_every_caption_has_the_cosine_with_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 3)
    data, model = make_set(tmp_path / "data", 10), load_encoder(tiny_run(tmp_path / "run"))
    assert score(data, tmp_path / "s.parquet", model) == (10, {})
    rows = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    shard_set = ShardSet(data)
    pairs = [shard_set.read(i) for i in range(10)]
    assert [row["key"] for row in rows] == [pair.key for pair in pairs]
    assert [row["shard"] for row in rows] == ["00000.tar"] * 4 + ["00001.tar"] * 4 + [
        "00002.tar"
    ] * 2
    for row, pair in zip(rows, pairs, strict=True):
        image = model.encode_images([pair.image])[0]
        texts = model.encode_texts([caption.text for caption in pair.captions])
        np.testing.assert_allclose(row["clip_score"], texts @ image, atol=1e-5)
    scores = np.concatenate([row["clip_score"] for row in rows])
    rules = SelectConfig.model_validate(
        {
            "tables": (str(tmp_path / "s.parquet"),),
            "columns": {"clip_score": {"min": float(np.median(scores))}},
        }
    )
    found = select(str(data), tmp_path / "out", rules)
    assert sum(found.manifest.languages.values()) == (scores >= np.median(scores)).sum()


def test_a_batch_of_which_no_image_decodes_has_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    data, model = make_set(tmp_path / "data", 4), load_encoder(tiny_run(tmp_path / "run"))
    monkeypatch.setattr(module, "similarities", refuse_some(module.similarities))
    monkeypatch.setattr(module, "decode", refuse)
    assert score(data, tmp_path / "s.parquet", model) == (2, {"does not decode": 2})


def refuse(image: bytes) -> None:
    raise UndecodableImage("it is text")


def refuse_some(real: Callable[..., list[np.ndarray]]) -> Callable[..., list[np.ndarray]]:
    def similarities(model: Encoder, pairs: list[Pair]) -> list[np.ndarray]:
        if pairs and pairs[0].key == "k002":
            raise UndecodableImage("it is text")
        return real(model, pairs)

    return similarities


def test_parts_make_one_table_and_what_does_not_decode_has_no_row(tmp_path: Path) -> None:
    data, model = make_set(tmp_path / "data", 10), load_encoder(tiny_run(tmp_path / "run"))
    tar = bytearray((data / "00001.tar").read_bytes())
    at = tar.index(b"\x89PNG") + 30
    tar[at : at + 20] = bytes(20)
    (data / "00001.tar").write_bytes(tar)
    parts = tmp_path / "parts"
    done = [score(data, parts / f"{i}.parquet", model, "s", (i, 2)) for i in range(2)]
    assert done == [(6, {}), (3, {"checksum": 1})]
    rules = SelectConfig.model_validate({"tables": (str(parts),), "columns": {"s": {"min": -1.0}}})
    assert select(str(data), tmp_path / "out", rules).removed["samples"] == {"not in parts": 1}
