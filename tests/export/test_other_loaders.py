"""What people call on an export beside the loaders that verify it opens, and computes the same."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import other_loaders
import pytest
import torch
from other_loaders import LONG, TEXTS
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from mmalign.data.tokenizer import load_tokenizer
from mmalign.export.loaders import normalised
from mmalign.export.sentence_transformers import write_tokenizer


@pytest.fixture
def moved(exported: Any, tmp_path: Path) -> Path:
    """The folder in three formats, in another place than it was written to."""
    return Path(shutil.copytree(exported.folder, tmp_path / "moved"))


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_auto_image_processor_computes_our_pixels(moved: Path) -> None:
    pixels = other_loaders.image_processor(moved)["pixels"]
    expected = normalised(moved, other_loaders.gradient())
    np.testing.assert_allclose(pixels[0], expected, atol=1e-6)


def test_tokens_are_decoded_to_words_also_of_a_tokenizer_of_version_0_1(
    exported: Any, moved: Path, tmp_path: Path
) -> None:
    assert other_loaders.tokenizer(moved)["decoded"] == TEXTS
    # Trained without a decoder, as then.
    old = load_tokenizer(exported.run / "tokenizer")
    old.inner.backend_tokenizer.decoder = None
    (tmp_path / "old").mkdir()
    write_tokenizer(old, 32, tmp_path / "old")
    assert other_loaders.tokenizer(tmp_path / "old")["decoded"] == TEXTS
    # A run's own folder as well.
    own = AutoTokenizer.from_pretrained(exported.run / "tokenizer")
    assert own.decode(own(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0]


def test_a_feature_extraction_pipeline_takes_a_long_text(moved: Path) -> None:
    states = other_loaders.pipeline(moved)["long_states"]
    assert states.shape[1] == AutoTokenizer.from_pretrained(moved).model_max_length
    assert len(AutoTokenizer.from_pretrained(moved)(LONG)["input_ids"]) > states.shape[1]
    assert np.isfinite(states).all()


def test_sentence_transformers_trains_and_saves_it_again(moved: Path) -> None:
    found = other_loaders.sentence_transformers_trainer(moved)
    assert np.abs(found["trained"] - found["before"]).max() > 1e-3
    np.testing.assert_allclose(found["reloaded"], found["trained"], atol=1e-6)


def test_open_clip_creates_model_and_transforms_from_a_moved_folder(
    exported: Any, moved: Path
) -> None:
    found = other_loaders.open_clip_moved(moved)
    ours = exported.encoder.encode_images([png(other_loaders.gradient())])
    np.testing.assert_allclose(found["texts"], exported.encoder.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found["images"], ours, atol=1e-6)


@pytest.mark.parametrize("graph", ["text_model", "text_model_int8"])
def test_the_graphs_have_the_states_that_sentence_transformers_continues_with(
    graph: str, exported: Any, moved: Path
) -> None:
    # Its own ONNX backend needs a package that mmalign does not have; a slow test runs it.
    model = SentenceTransformer(str(moved), device="cpu")
    tokens = dict(model.tokenize(TEXTS))
    session = onnxruntime.InferenceSession(moved / f"onnx/{graph}.onnx")
    inputs = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    vectors, states = session.run(["text_embeds", "last_hidden_state"], inputs)
    tokens["token_embeddings"] = torch.from_numpy(states)
    for module in list(model)[1:]:
        tokens = module(tokens)
    # The 8-bit graph rounds its projection too, which the library then computes in float32.
    atol = 0.02 if "int8" in graph else 1e-6
    np.testing.assert_allclose(tokens["sentence_embedding"].detach(), vectors, atol=atol)
    near = (vectors * exported.encoder.encode_texts(TEXTS)).sum(1)
    assert near.min() > (0.98 if "int8" in graph else 1 - 1e-5)
