"""Stages: a run goes on from another one's weights, on other data and image sizes, with its moments."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import config, losses, mmalign, newest
from safetensors.torch import load_file
from shard_sets import make_set
from tiny import MODEL

from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.export.source import lineage
from mmalign.models.image_tower import TimmTower, build_image_tower, fit_positions
from mmalign.training.run_config import RunConfig

POSITIONS = "image_tower.trunk.pos_embed"
VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
IMAGE = {"kind": "timm", "name": "vit_tiny_patch16_224", "image_size": 32, "options": VIT}


def test_a_smooth_grid_of_positions_stays_smooth() -> None:
    small, large = (
        build_image_tower(validate(TimmTower, {**IMAGE, "image_size": size}, "test"))
        for size in (32, 64)
    )
    state = small.trunk.state_dict()
    ramp = torch.linspace(0, 1, 4)
    token_1NC = state["pos_embed"]
    token_1NC[0, 1:] = (ramp[:, None] + ramp[None, :]).reshape(16, 1)
    fitted = fit_positions(state, large)
    assert fitted["pos_embed"].shape == (1, 65, 32)
    assert fitted["pos_embed"][0, 0].equal(token_1NC[0, 0])  # the class token
    grid = fitted["pos_embed"][0, 1:, 0].reshape(8, 8)
    assert bool((grid.diff(dim=0) > 0).all())
    assert bool((grid.diff(dim=1) > 0).all())
    assert all(one is fitted[name] for name, one in state.items() if name != "pos_embed")
    assert fit_positions(state, small)["pos_embed"].equal(token_1NC)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and the file of its next stage: other data, larger images, another schedule."""
    folder = tmp_path_factory.mktemp("stages")
    make_set(folder / "data", 14)
    make_set(folder / "clean", 9)
    tree = config(folder / "data", model={**MODEL, "image": IMAGE})
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "first", folder=folder)
    next_one: dict[str, Any] = {
        **config(folder / "clean", model={**MODEL, "image": {**IMAGE, "image_size": 48}}),
        "tokenizer": {"kind": "pretrained", "name": "first/tokenizer"},
        "init_from": "first",
        "steps": 4,
        "optimizer": {"lr": 1e-3, "schedule": "constant", "cooldown_steps": 3, "warmup_steps": 0},
    }
    (folder / "next.yaml").write_text(write_yaml(next_one))
    return folder


def test_larger_images_and_other_data(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    mmalign("train", "next.yaml", "--out", "second", folder=runs)
    before, after = (load_file(newest(runs / n) / "model.safetensors") for n in ("first", "second"))
    assert (before[POSITIONS].shape[1], after[POSITIONS].shape[1]) == (17, 37)
    assert json.loads((runs / "second/towers.json").read_text())["image"]["size"] == 48
    step = newest(runs / "second")
    parent = lineage(step, {"sha256": "x", "step": 4})["parent"]
    assert (parent["how"], parent["found"]) == ("init_from", True)


def test_the_moments_go_on(runs: Path) -> None:
    # The first gradient is that of the same weights either way; only what it is averaged with differs.
    same = ["model.image.image_size=32", "steps=1", "optimizer.cooldown_steps=0"]
    for out, takes in (("with", "true"), ("without", "false")):
        mmalign("train", "next.yaml", *same, f"init_optimizer={takes}", "--out", out, folder=runs)
    files = {
        n: load_file(newest(runs / n) / "optimizer-rank00000.safetensors")
        for n in ("first", "with", "without")
    }
    name = "text_projection.weight"
    updates = {n: int(file[f"updates/{name}"]) for n, file in files.items()}
    assert updates == {"first": 6, "with": 7, "without": 1}
    assert losses(runs / "with") == losses(
        runs / "without"
    )  # the first loss is of the same weights
    first, taken, none = (files[n][f"exp_avg/{name}"] for n in ("first", "with", "without"))
    torch.testing.assert_close(taken, 0.9 * first + none, atol=1e-6, rtol=1e-4)
    state = json.loads((newest(runs / "with") / "state.json").read_text())
    assert (state["step"], state["parent"]["optimizer"]) == (1, True)


def test_moments_of_another_shape_are_refused(runs: Path) -> None:
    refused = mmalign(
        "train", "next.yaml", "init_optimizer=true", "--out", "no", expect=1, folder=runs
    )
    assert "init_optimizer: first: no optimizer state that fits this run" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_moments_need_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`init_optimizer` needs `init_from`"):
        validate(RunConfig, config(tmp_path, init_optimizer=True), "test")
