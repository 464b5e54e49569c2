"""Any name of a model leads to its format and its model, or to one sentence."""

from pathlib import Path

import numpy as np
import pytest
from shard_sets import make_image
from tiny import TEXTS

from mmalign.core.errors import UserError
from mmalign.models.encoder import Encoder
from mmalign.models.load import detect_format, load_model, load_text_encoder, text_encoder_of

IMAGES = [make_image(1), make_image(2)]


@pytest.mark.parametrize("place", ["", "checkpoints/step-000000001"])
def test_a_run_is_its_encoder(run: Path, encoder: Encoder, place: str) -> None:
    model = load_model(str(run / place))
    assert detect_format(str(run / place)) == "run"
    assert model.facts == {**encoder.facts, "path": str(run / place)}
    np.testing.assert_array_equal(model.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    np.testing.assert_array_equal(model.encode_images(IMAGES), encoder.encode_images(IMAGES))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip"),
        ("local-dir:somewhere", "open_clip"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip"),
        ("sentence-transformers:clip-ViT-B-32", "sentence-transformers"),
        ("transformers:x", "transformers"),
        ("onnx:x", "onnx"),
        ("onnx-int8:x", "onnx-int8"),
    ],
)
def test_a_prefix_names_the_library(name: str, found: str) -> None:
    assert detect_format(name) == found


def test_the_files_of_a_folder_name_the_library(tmp_path: Path) -> None:
    found = []
    # Each file goes before those that were there before it.
    for file in (
        *("onnx/text_model.onnx", "config.json", "adapter_config.json", "modules.json"),
        *("open_clip_config.json", "tower.json"),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        found.append(detect_format(str(tmp_path)))
    assert found == [
        *("onnx", "transformers", "tower", "sentence-transformers", "open_clip", "tower")
    ]


def test_a_finetuning_is_its_tower_and_no_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    (tmp_path / "config.yaml").touch()
    tower = load_text_encoder(str(run))
    tower.save(tmp_path / "tower")
    for folder in (tmp_path, tmp_path / "tower"):
        assert detect_format(str(folder)) == "tower"
        model = load_model(str(folder))
        np.testing.assert_allclose(model.encode_texts(TEXTS), tower.encode(TEXTS), atol=1e-6)
        again = text_encoder_of(model)
        np.testing.assert_array_equal(again.encode(TEXTS), tower.encode(TEXTS))


def test_a_library_that_keeps_its_text_tower_is_named() -> None:
    with pytest.raises(UserError, match="a text encoder of open_clip cannot be read on its own"):
        load_text_encoder("open_clip:ViT-B-32/openai")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such/folder", "no model in a folder or on the hub of that name"),
        ("nobody/nothing-at-all", "no model in a folder or on the hub of that name"),
        ("../elsewhere", "no model in a folder or on the hub of that name"),
        ("open_clip:ViT-B-32", "no weights; write open_clip:ARCHITECTURE/TAG"),
        ("open_clip:ViT-B-32/no_such_tag", "open_clip cannot load it"),
        ("open_clip:no-such-model/openai", "open_clip cannot load it"),
        ("local-dir:no/such/folder", "open_clip cannot load it"),
        ("sentence-transformers:nobody/nothing", "sentence-transformers cannot load it"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, reason: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=reason) as failure:
        load_model(name)
    assert "\n" not in str(failure.value)
    with pytest.raises(UserError, match=r"no model in this folder: it has none of config\.yaml"):
        load_model(str(tmp_path))
