"""mteb's loaders, played by lists of batches: the rows come back as the model encodes them, in order."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TEXTS

from mmalign.models.encoder import Encoder
from mmalign.models.external.mteb import MtebModel

CALL: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    shapes = [(40, 30, 3)] * count
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


def as_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_texts_come_back_in_order_whatever_the_batches(encoder: Encoder) -> None:
    loader = [{"text": list(TEXTS[:4]), "id": list("abcd")}, {"text": list(TEXTS[4:])}]
    rows = MtebModel(encoder).encode(loader, **CALL, prompt_type="query", batch_size=2)
    assert rows.dtype == np.float32
    assert np.abs(rows - encoder.encode_texts(TEXTS)).max() <= 1e-6


def test_pictures_of_every_mode_come_back_in_order(encoder: Encoder) -> None:
    images = pictures(3)
    others = [images[0].convert("CMYK"), images[1].convert("L"), images[2].convert("P")]
    loader = [{"image": images[:2]}, {"image": [images[2], *others]}]
    rows = MtebModel(encoder).encode(loader, **CALL, show_progress_bar=False)
    expected = [*images, others[0].convert("RGB"), *others[1:]]
    assert rows.shape == (6, 16)
    assert np.abs(rows - encoder.encode_images(map(as_bytes, expected))).max() <= 1e-6


def test_a_row_of_both_is_the_scaled_sum(encoder: Encoder) -> None:
    images = pictures(len(TEXTS))
    loader = ({"text": [t], "image": [i]} for t, i in zip(TEXTS, images, strict=True))
    rows = MtebModel(encoder).encode(loader, **CALL)
    total = encoder.encode_texts(TEXTS) + encoder.encode_images(map(as_bytes, images))
    assert np.abs(rows - unit(total)).max() <= 1e-6
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_similarities_are_cosines_of_arrays_and_tensors_of_any_length(encoder: Encoder) -> None:
    model, rng = MtebModel(encoder), np.random.default_rng(0)
    first, second = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    expected = unit(first) @ unit(second).T
    assert np.allclose(model.similarity(first, torch.from_numpy(7 * second)), expected, atol=1e-6)
    pairwise = model.similarity_pairwise(first, second)
    assert np.allclose(pairwise, np.diag(expected), atol=1e-6)
    assert np.allclose(model.similarity(first[0], second), expected[:1], atol=1e-6)
    # As mteb's summarization does, which numpy's arrays of one row refuse.
    assert float(model.similarity(first[0], second[0])) == pytest.approx(expected[0, 0], abs=1e-6)


def test_the_meta_data_of_mteb_name_the_weights(encoder: Encoder) -> None:
    pytest.importorskip("mteb")
    meta = MtebModel(encoder).mteb_model_meta
    assert meta.name == "mmalign/run" and meta.revision == encoder.facts["sha256"]
    assert set(meta.modalities) == {"text", "image"}
