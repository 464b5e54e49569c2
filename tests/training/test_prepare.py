"""A run folder belongs to one configuration, also where an older version wrote it; and goes on by itself."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from frozen_towers import train_each
from ranks import run_ranks
from shard_sets import make_set
from tiny import MODEL, tiny_run

from mmalign.core.commit import newest_folder
from mmalign.core.config import read_yaml, validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import ModelConfig, build_dual_encoder
from mmalign.training.prepare import check_sizes, open_run
from mmalign.training.run_config import RunConfig


def config(out: Path, **changes: Any) -> RunConfig:
    tree = {
        **read_yaml(out / "config.yaml"),
        "name": "tiny",
        "steps": 4,
        "batch_size": 4,
        "data": {"train": ["nowhere"]},
        "optimizer": {"lr": 1e-3},
        "engine": {"precision": "fp32"},
        **changes,
    }
    return validate(RunConfig, tree, "test")


def test_fields_that_an_older_version_did_not_know_mean_their_defaults(tmp_path: Path) -> None:
    out = tiny_run(tmp_path)
    now = config(out)
    tree = now.model_dump(mode="json")
    del tree["model"]["text_projection"], tree["optimizer"]["cooldown_steps"]
    (out / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    assert open_run(now, out)[0].model.text_projection == "linear"


def test_another_run_is_refused(tmp_path: Path) -> None:
    out = tiny_run(tmp_path)
    now = config(out)
    tree = now.model_dump(mode="json")
    del tree["model"]["text_projection"]
    (out / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    other = now.model_copy(
        update={"model": now.model.model_copy(update={"text_projection": "mlp"})}
    )
    with pytest.raises(UserError, match=r"holds another run, its `model\.text_projection` differs"):
        open_run(other, out)
    (out / "config.yaml").write_text(write_yaml({**tree, "stepz": 4}), encoding="utf-8")
    with pytest.raises(UserError, match="holds another run"):
        open_run(other, out)


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_precision_auto_keeps_what_the_checkpoints_were_computed_in(
    tmp_path: Path, stored: Literal["fp32", "bf16"]
) -> None:
    out = tiny_run(tmp_path)
    before = config(out, engine={"precision": stored}).model_dump(mode="json")
    (out / "config.yaml").write_text(write_yaml(before), encoding="utf-8")
    assert open_run(config(out, engine={"precision": "auto"}), out)[0].engine.precision == stored
    other = "bf16" if stored == "fp32" else "fp32"
    with pytest.raises(UserError, match=r"its `engine\.precision` differs"):
        open_run(config(out, engine={"precision": other}), out)


def test_a_run_that_starts_takes_the_precision_that_the_device_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.core.precision.multiplies_bf16", lambda: False)
    run = config(tiny_run(tmp_path / "other"), engine={})
    assert run.engine.precision == "auto"
    assert open_run(run, tmp_path / "new")[0].engine.precision == "fp32"
    assert not (tmp_path / "new").exists()  # nothing is written before all is ready


def test_first_weights_that_are_gone_do_not_hinder_a_resume(tmp_path: Path) -> None:
    """They count at the first start alone; later ones go on from the run's own checkpoints."""
    make_set(tmp_path / "data", 6)
    parent, out = tiny_run(tmp_path / "parent"), tmp_path / "out"
    going_on = config(
        parent,
        name="next",
        data={"train": [str(tmp_path / "data")], "workers": 0},
        tokenizer={"kind": "pretrained", "name": str(parent / "tokenizer")},
        engine={"precision": "fp32"},
        init_from=str(parent),
    )
    first = {"out": (going_on, 2)}
    assert run_ranks(1, train_each, tmp_path / "store1", first, tmp_path) == [{}]
    shutil.rmtree(parent)
    later = {"out": (going_on, None), "anew": (going_on, None)}
    (stopped,) = run_ranks(1, train_each, tmp_path / "store2", later, tmp_path)
    whole = newest_folder(out / "checkpoints")[0]
    state = json.loads((whole / "state.json").read_text())
    assert (state["step"], state["parent"]["how"]) == (4, "init_from")
    assert stopped.keys() == {"anew"}  # a first start needs them
    assert str(parent) in stopped["anew"]


VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2}
OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"layers": 1, "width": 16, "heads": 2},
}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}


@pytest.mark.parametrize(
    ("kind", "name", "options", "size", "sizes"),
    [
        ("timm", "vit_tiny_patch16_224", VIT, 100, "96 or 112"),
        ("timm", "vit_tiny_patch16_224", VIT, 96, None),
        ("open_clip", "ViT-B-32", OPEN_CLIP, 100, "96 or 112"),
        ("timm", "convnext_atto", CONVNEXT, 98, "96 or 100"),
        ("timm", "convnext_atto", CONVNEXT, 104, "96 or 112"),
        ("timm", "convnext_atto", CONVNEXT, 96, None),
        ("timm", "resnet10t", {"channels": [8, 8, 8, 8]}, 99, None),  # its convolutions overlap
    ],
)
def test_images_of_which_pixels_would_be_left_out_are_refused(
    kind: str, name: str, options: dict[str, Any], size: int, sizes: str | None
) -> None:
    image = {"kind": kind, "name": name, "options": options, "image_size": size}
    model = validate(ModelConfig, {**MODEL, "image": image}, "test")
    for device in ("cpu", "meta"):  # a run that starts, and --dry-run
        with torch.device(device):
            built = build_dual_encoder(model, 160, 0)
        if sizes is None:
            check_sizes(model, built)
        else:
            with pytest.raises(UserError, match=f"image_size: is {size}, .* set it to {sizes}$"):
                check_sizes(model, built)


def test_texts_that_the_tower_has_no_positions_for_are_refused() -> None:
    architecture = MODEL["text"]["architecture"] | {"max_position_embeddings": 34}
    for kind, fits in {"bert": 34, "xlm-roberta": 32}.items():
        for length in (fits, fits + 1):
            text = {"architecture": architecture | {"model_type": kind}, "max_length": length}
            model = validate(ModelConfig, {**MODEL, "text": text}, "test")
            built = build_dual_encoder(model, 160, 1)
            if length == fits:
                check_sizes(model, built)
            else:
                with pytest.raises(
                    UserError, match=f"max_length: is {length}, .* to {fits} or less"
                ):
                    check_sizes(model, built)
