"""`mmalign embed`: the tower whose features are written is the one that the run has, or will have."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_towers import FROZEN, frozen_tower, make_set_to_embed
from ranks import run_command
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_run, tiny_tokenizer

from mmalign.core.commit import committed_folder
from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.image_features import open_features
from mmalign.evaluation.feature_cache import describe_tower
from mmalign.models.encoder import weights_sha256
from mmalign.training.embed import load_frozen_tower
from mmalign.training.run_config import RunConfig


def run_tree(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "steps": 6,
        "batch_size": 4,
        "data": {"train": [str(data)], "workers": 0},
        "tokenizer": {"kind": "trained", "vocabulary": 160},
        "model": FROZEN,
        "optimizer": {"lr": 1e-3},
        **changes,
    }


def config(**changes: Any) -> RunConfig:
    return validate(RunConfig, run_tree(Path("data"), **changes), "run.yaml")


def test_the_tower_of_a_run_that_is_yet_to_start_is_drawn_from_its_seed() -> None:
    for seed in (0, 1):
        tower = load_frozen_tower(config(seed=seed), None)
        assert weights_sha256(tower) == weights_sha256(frozen_tower(seed))


def test_the_tower_of_a_run_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    trained = tiny_model(7)
    run = tiny_run(tmp_path / "run", trained)
    expected = weights_sha256(trained.image_tower)
    assert weights_sha256(load_frozen_tower(config(), run)) == expected
    resumed = load_frozen_tower(config(resume_from=str(run)), None)
    assert weights_sha256(resumed) == expected
    empty = tmp_path / "new"
    assert weights_sha256(load_frozen_tower(config(), empty)) == weights_sha256(frozen_tower(0))


def test_the_tower_of_init_from_is_that_models(tmp_path: Path) -> None:
    trained = tiny_model(7)
    run = tiny_run(tmp_path / "run", trained)
    tiny_tokenizer().save(tmp_path / "tokenizer")
    pretrained = {"kind": "pretrained", "name": str(tmp_path / "tokenizer")}
    tower = load_frozen_tower(config(init_from=str(run), tokenizer=pretrained), None)
    assert weights_sha256(tower) == weights_sha256(trained.image_tower)
    with pytest.raises(UserError, match="needs the tokenizer of that model"):
        load_frozen_tower(config(init_from=str(run)), None)


def test_a_tower_that_trains_is_refused(tmp_path: Path) -> None:
    image = {**FROZEN["image"], "frozen": False}
    with pytest.raises(UserError, match=r"model\.image\.frozen: is false"):
        load_frozen_tower(config(model={**FROZEN, "image": image}), None)


def test_a_checkpoint_of_another_tower_is_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    state = load_file(run / "checkpoints" / "step-000000001" / "model.safetensors")
    state.pop("image_tower.trunk.bn1.weight")
    with committed_folder(run / "checkpoints" / "step-000000002", {"step": 2}) as folder:
        save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"holds another image tower than `model\.image` describes"):
        load_frozen_tower(config(), run)


def test_a_set_at_a_url_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(write_yaml(run_tree(Path("data"))))
    refused = run_command(["embed", "run.yaml", "data.train=[s3://bucket/train]"], tmp_path)
    assert refused.returncode == 1
    assert "data.train: s3://bucket/train is at a URL" in refused.stderr


def test_a_tower_whose_features_are_not_finite_is_refused(tmp_path: Path) -> None:
    trained = tiny_model(7)
    with torch.no_grad():
        trained.image_tower.trunk.get_parameter("conv1.0.weight").fill_(math.nan)
    run = tiny_run(tmp_path / "broken", trained)
    data = make_set_to_embed(tmp_path / "train")
    (run / "config.yaml").write_text(write_yaml(run_tree(data)))
    refused = run_command(["embed", "broken"], tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "broken: its vectors are not finite" in refused.stderr


def test_the_verb_writes_what_a_run_will_ask_for(tmp_path: Path) -> None:
    data = make_set_to_embed(tmp_path / "train")
    (tmp_path / "run.yaml").write_text(write_yaml(run_tree(data)))
    done = run_command(["embed", "run.yaml", "seed=3"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"{data}: features of 14 images, width 16; of these cannot be used: does not decode: 1"
    )
    found = open_features(ShardSet(data), describe_tower(frozen_tower(3)))
    assert found.read(0).shape == (16,)
