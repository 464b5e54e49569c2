"""Weights in open_clip's formats are found by every name, and what is none gets one sentence."""

import json
from pathlib import Path

import pytest
import torch
from export_cases import build_encoder, source_of
from safetensors.torch import save_file

from mmalign.core.errors import UserError
from mmalign.export.open_clip import write_open_clip
from mmalign.models.external.open_clip import load_open_clip_folder, read_open_clip

STATE = {"logit_scale": torch.tensor(2.0), "visual.proj": torch.ones(2, 2)}


def test_a_folder_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    config = {"model_cfg": {"embed_dim": 2}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    # As the models that open_clip's authors released have it.
    torch.save({"module." + name: one for name, one in STATE.items()}, tmp_path / "x.bin")
    (tmp_path / "x.bin").rename(tmp_path / "open_clip_pytorch_model.bin")
    for name in (f"{tmp_path}", f"local-dir:{tmp_path}", f"open_clip:{tmp_path}"):
        found = read_open_clip(name)
        assert found.state.keys() == STATE.keys()
        assert (found.model, found.preprocess) == (config["model_cfg"], config["preprocess_cfg"])
        assert found.folder == str(tmp_path)


def test_a_file_may_stand_in_a_tags_place(tmp_path: Path) -> None:
    path = tmp_path / "epoch_2.safetensors"
    save_file(STATE, path)
    found = read_open_clip(f"open_clip:xlm-roberta-base-ViT-B-32/{path}")
    assert found.state.keys() == STATE.keys()
    assert found.model["text_cfg"]["hf_pooler_type"] == "mean_pooler"
    assert found.folder == "xlm-roberta-base"
    assert read_open_clip(str(path)).model == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("open_clip:ViT-Z-1/laion", "open_clip has no model `ViT-Z-1`"),
        ("open_clip:xlm-roberta-base-ViT-B-32/x", "`x` is no file and no tag of .*laion5b_s13b"),
    ],
)
def test_unknown_names_get_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_open_clip(name)


def test_files_without_tensors_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no open_clip_config\.json in this folder"):
        read_open_clip(str(tmp_path))
    path = tmp_path / "epoch_1.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="no checkpoint of tensors alone"):
        read_open_clip(str(path))
    torch.save({"state_dict": {"epoch": 1}}, path)
    with pytest.raises(UserError, match="holds no `state_dict` of tensors"):
        read_open_clip(str(path))


def test_a_config_of_another_model_is_not_taken_for_the_text_towers(tmp_path: Path) -> None:
    encoder = build_encoder()
    home, moved = tmp_path / "home", tmp_path / "moved"
    for folder in (home, moved):
        folder.mkdir()
        write_open_clip(source_of(encoder), folder, str(home))
    facts = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**facts, "model_type": "clip"}))
    # The text tower is then found by its name, as open_clip itself does.
    model, _, _ = load_open_clip_folder(moved)
    assert model.text.config.model_type == "bert"
