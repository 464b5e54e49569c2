"""A run that started from pretrained folders goes on, is measured and published after these are gone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from frozen_towers import pretrained_model
from ranks import run_command
from safetensors.torch import load_file
from shard_sets import make_image, make_set
from tiny import TEXTS
from typer.testing import CliRunner

import mmalign
from mmalign.cli import app
from mmalign.core.config import write_yaml
from mmalign.models.encoder import load_encoder, weights_sha256
from mmalign.models.run_towers import read_towers
from mmalign.models.text_tower import load_trunk

STEPS, HALF = 4, 2
IMAGES = [make_image(number) for number in range(3)]


def run(*arguments: str, folder: Path, ranks: int = 1, fails: bool = False) -> str:
    done = run_command(arguments, folder, ranks)
    assert (done.returncode == 1) is fails, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its first half, copied; where they were trained and their pretrained folders were renamed."""
    folder = tmp_path_factory.mktemp("alone")
    make_set(folder / "data", 12)
    model, places = pretrained_model(folder / "originals")
    config = {
        "name": "tiny",
        "steps": STEPS,
        "batch_size": 4,
        "data": {"train": [str(folder / "data")], "captions_per_image": 2, "workers": 0},
        "tokenizer": {"kind": "pretrained", "name": str(places[1])},
        "model": model,
        "optimizer": {"lr": 1e-3},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": HALF},
        "log": {"every": 1},
    }
    (folder / "run.yaml").write_text(write_yaml(config))
    run("train", "run.yaml", "--out", "trained/whole", folder=folder)
    run("train", "run.yaml", "--out", "trained/half", "--stop-after", str(HALF), folder=folder)
    encoder = load_encoder(folder / "trained/whole")
    vectors = {"texts": encoder.encode_texts(TEXTS), "images": encoder.encode_images(IMAGES)}
    np.savez(folder / "vectors.npz", **vectors)
    shutil.copytree(folder / "trained", folder / "copied", symlinks=True)
    (folder / "trained").rename(folder / "renamed")
    (folder / "originals").rename(folder / "gone")
    return folder


def test_it_gives_the_same_vectors(folder: Path) -> None:
    model, before = mmalign.load(str(folder / "copied/whole")), np.load(folder / "vectors.npz")
    np.testing.assert_array_equal(model.encode_texts(TEXTS), before["texts"])
    np.testing.assert_array_equal(model.encode_images(IMAGES), before["images"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_resumes(folder: Path, ranks: int) -> None:
    out = f"copied/resumed{ranks}"
    shutil.copytree(folder / "copied/half", folder / out, symlinks=True)
    run("train", "run.yaml", "--out", out, folder=folder, ranks=ranks)
    last = f"checkpoints/step-{STEPS:09d}/model.safetensors"
    resumed, whole = load_file(folder / out / last), load_file(folder / "copied/whole" / last)
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        # Two ranks draw other dropout than one.
        if ranks == 1 or name.startswith("image_tower."):
            assert resumed[name].equal(tensor), name


@pytest.mark.parametrize("field", ["resume_from", "init_from"])
def test_another_run_goes_on_from_it(folder: Path, field: str) -> None:
    changes = (f"{field}=copied/half", "tokenizer.name=copied/half/tokenizer")
    run("train", "run.yaml", *changes, "--out", f"copied/{field}", folder=folder)
    towers = [read_towers(folder / "copied" / name) for name in (field, "half")]
    assert towers[0] == towers[1]


def test_it_is_measured_fine_tuned_and_embedded(folder: Path) -> None:
    suite = {
        "name": "small",
        "sets": [{"name": "test", "shards": "data", "measures": ["retrieval"]}],
    }
    (folder / "suite.yaml").write_text(write_yaml(suite))
    run("eval", "suite.yaml", "--model", "copied/whole", "--out", "measured", folder=folder)
    refused = run(
        "eval", "suite.yaml", "--model", "copied/whole", "--untrained", folder=folder, fails=True
    )
    assert "resnet.safetensors" in refused
    run("embed", "copied/whole", folder=folder)
    (folder / "task").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{n}\t{'ab'[n % 2]}\t{text}" for n, text in enumerate(TEXTS)]
        path = folder / "task" / f"{split}.en.tsv"
        path.write_text("\n".join(["id\tlabel\ttext", *rows]), encoding="utf-8")
    task = {"name": "topics", "folder": "task", "language": "en"}
    job = {"task": task, "trainable": "lora", "epochs": 1}
    (folder / "tune.yaml").write_text(write_yaml(job))
    tuned = ("tune.yaml", "--model", "copied/whole", "--out", "copied/whole/finetune/topics")
    run("finetune", *tuned, folder=folder)
    (folder / "copied/whole").rename(folder / "copied/base")
    tower = mmalign.load(str(folder / "copied/base/finetune/topics"))
    assert np.isfinite(tower.encode_texts(TEXTS)).all()
    (folder / "copied/base").rename(folder / "copied/whole")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("formats", ["open_clip,onnx", "sentence-transformers-router"])
def test_it_is_published_without_the_places_of_its_weights(
    folder: Path, formats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = folder / f"export_{formats}"
    options = [part for name in formats.split(",") for part in ("--format", name)]
    # Each library loads the folder and must give our vectors; a folder of this machine in it is refused.
    done = CliRunner().invoke(app, ["export", "copied/whole", *options, "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    bases = json.loads((out / "lineage.json").read_text())["base_models"]
    name, sha256 = ".../text", weights_sha256(load_trunk(str(folder / "gone/text")))
    assert bases["text"] == {"library": "transformers", "name": name, "sha256": sha256}
    tower = load_encoder(
        folder / "copied/whole"
    ).model.image_tower  # frozen, so still that of the file
    facts = {"library": "timm", "name": "resnet10t", "sha256": weights_sha256(tower.trunk)}
    assert bases["image"] == facts
