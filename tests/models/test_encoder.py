"""Any name of a model leads to its model, or to one sentence."""

from pathlib import Path

import numpy as np
import pytest
from shard_sets import make_image
from tiny import TEXTS, tiny_run

from mmalign.core.errors import UserError
from mmalign.models.encoder import load_encoder
from mmalign.models.load import detect_format, load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("place", ["", "checkpoints/step-000000001"])
def test_a_run_is_its_encoder(run: Path, place: str) -> None:
    model, expected = load_model(str(run / place)), load_encoder(run)
    assert detect_format(str(run / place)) == "run"
    assert model.facts == {**expected.facts, "path": str(run / place)}
    np.testing.assert_array_equal(model.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    pictures = [make_image(1), make_image(2)]
    np.testing.assert_array_equal(model.encode_images(pictures), expected.encode_images(pictures))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip"),
        ("local-dir:somewhere", "open_clip"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip"),
        ("sentence-transformers:clip-ViT-B-32", "sentence-transformers"),
    ],
)
def test_a_prefix_tells_the_library(name: str, kind: str) -> None:
    assert detect_format(name) == kind


def test_the_files_of_a_folder_tell_the_library(tmp_path: Path) -> None:
    found = []
    # Each file goes before those that were there before it.
    for file in ("config.json", "modules.json", "open_clip_config.json", "tower.json"):
        (tmp_path / file).touch()
        found.append(detect_format(str(tmp_path)))
    assert found == ["transformers", "sentence-transformers", "open_clip", "tower"]


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model in this folder: it has none of config\.yaml"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such/folder", "nobody/nothing-at-all", "../elsewhere"])
def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no model in a folder or on the hub of that name"):
        load_model(name)
