"""What is exported is the model that the path means, with what was measured on it and on nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tiny import TEXTS, tiny_run

from mmalign.core.commit import committed_folder
from mmalign.core.config import read_yaml, write_yaml
from mmalign.core.errors import UserError
from mmalign.export.source import lineage, read_source
from mmalign.models.encoder import load_encoder
from mmalign.models.load import load_text_encoder
from mmalign.results.results import Results

METRIC = "retrieval/s/en/text_to_image/recall@1"


def measure(folder: Path, sha256: str) -> Results:
    """Results as `mmalign eval` leaves them."""
    results = Results(suite="s", model={"path": "runs/x", "sha256": sha256, "step": 1})
    results.add(METRIC, np.array([0.0, 1.0]))
    results.write(folder / "results.json")
    return results


def finetuned(run: Path, folder: Path) -> Path:
    """A fine-tuning as `mmalign finetune` leaves it, whose tower differs from the run's."""
    tower = load_text_encoder(str(run))
    torch.manual_seed(5)
    with torch.no_grad():
        tower.projection.weight.add_(torch.randn_like(tower.projection.weight))  # type: ignore
    folder.mkdir(parents=True)
    model = {"path": str(run), "sha256": tower.facts["sha256"], "step": 1, "trainable": "all"}
    with committed_folder(folder / "tower", {"task": "toy", "model": model}) as place:
        tower.save(place)
    (folder / "config.yaml").write_text(write_yaml({"task": {"name": "toy"}, "lr": 1e-5}))
    measure(folder, tower.facts["sha256"])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(tmp_path / "run")


@pytest.mark.parametrize("inner", ["", "checkpoints/step-000000001"])
def test_a_run_and_its_checkpoint_are_both_towers(run: Path, inner: str) -> None:
    encoder = load_encoder(run)
    measure(run / "eval" / "s", encoder.facts["sha256"])
    source = read_source(run / inner)
    assert source.encoder is not None and source.both_towers("x") is source.encoder
    assert np.array_equal(source.tower.encode(TEXTS), encoder.encode_texts(TEXTS))
    assert source.config == read_yaml(run / "config.yaml")
    assert source.results is not None and source.results.metrics == {METRIC: 0.5}
    assert source.results.model == {"sha256": encoder.facts["sha256"], "step": 1}
    assert source.lineage["model"]["kind"] == "run"


def test_numbers_of_other_weights_are_left_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_source(run).results is None
    assert "other weights" not in capsys.readouterr().err
    measure(run / "eval" / "s", "0" * 64)
    assert read_source(run).results is None
    assert "measured on other weights" in "".join(capsys.readouterr())


def test_a_masked_language_model_is_a_text_tower_without_projection(run: Path) -> None:
    tree = {**read_yaml(run / "config.yaml"), "objective": {"kind": "masked_language_model"}}
    (run / "config.yaml").write_text(write_yaml(tree))
    source = read_source(run)
    assert source.encoder is None and source.tower.projection is None
    with pytest.raises(UserError, match="--format open_clip: holds an image tower and"):
        source.both_towers("open_clip")


def test_the_lineage_holds_no_secret(run: Path) -> None:
    tree = read_yaml(run / "config.yaml")
    signed = "https://me:hunter2@host/set?X-Amz-Signature=1f2e"
    tree["data"] = {"train": [signed], "note": f"see {signed} and ghp_{'a' * 30}"}
    (run / "config.yaml").write_text(write_yaml(tree))
    text = json.dumps(lineage(run, load_text_encoder(str(run)).facts))
    assert "host/set" in text
    assert not re.search("hunter2|1f2e|Signature|ghp_", text)


@pytest.mark.parametrize(("folder", "inner"), [("run/finetune/toy", ""), ("elsewhere", "tower")])
def test_a_fine_tuning_is_its_tower(run: Path, tmp_path: Path, inner: str, folder: str) -> None:
    path = finetuned(run, tmp_path / folder)
    before = load_text_encoder(str(run))
    source = read_source(path / inner)
    assert source.encoder is None
    assert np.abs(source.tower.encode(TEXTS) - before.encode(TEXTS)).max() > 0.01
    assert source.config["task"]["name"] == "toy"
    assert source.results is not None
    assert source.results.model["sha256"] == source.tower.facts["sha256"]
    assert source.results.model["fine_tuned_from"] == before.facts["sha256"]
    assert "path" not in source.results.model
    assert source.lineage["parent"]["model"]["sha256"] == before.facts["sha256"]


def test_a_damaged_fine_tuning_is_refused(run: Path, tmp_path: Path) -> None:
    folder = finetuned(run, tmp_path / "elsewhere")
    path = folder / "tower" / "tower.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling": "cls"}))
    with pytest.raises(UserError, match=r"tower.json: damaged"):
        read_source(folder)


def test_an_adapter_on_a_fine_tuned_tower_is_merged(run: Path, tmp_path: Path) -> None:
    base = finetuned(run, tmp_path / "elsewhere")
    settings = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(load_text_encoder(str(base)).trunk, settings)
    adapted.save_pretrained(str(tmp_path / "lora"))
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)})
    )
    source = read_source(tmp_path / "lora")
    assert source.encoder is None and source.results is None and source.config["r"] == 2
    assert not any("lora" in name for name in source.tower.state_dict())
    lineage = source.lineage
    assert lineage["model"]["kind"] == "adapter"
    assert lineage["parent"]["model"]["kind"] == "fine-tuning"
    assert lineage["parent"]["parent"]["model"]["kind"] == "run"
    assert str(tmp_path) not in json.dumps(lineage)


def test_anything_else_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task/config.yaml").write_text("task: {name: toy}\n")
    for path in (tmp_path, tmp_path / "task", tmp_path / "absent"):
        with pytest.raises(UserError, match="nothing that can be exported") as caught:
            read_source(path)
        assert "\n" not in str(caught.value)
