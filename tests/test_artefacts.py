"""Artefacts of mmalign 0.1.0 can be read, resumed, evaluated and exported (see artefacts/README.md)."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ranks import run_command
from safetensors.torch import load_file
from typer.testing import CliRunner

import mmalign
from mmalign.cli import app
from mmalign.data.shards.reader import ShardSet
from mmalign.models.load import load_text_encoder
from mmalign.results.results import read_results

ARCHIVE = Path(__file__).parent / "artefacts" / "0.1.0.tar.xz"
TEXTS = ["red apple, fox", "ein roter Ball, Fuchs", "りんご、きつね", ""]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefacts")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as working directory: the files refer to each other relative to it."""
    copy = shutil.copytree(unpacked, tmp_path / "work")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def reference(folder: Path) -> dict[str, np.ndarray]:
    return dict(np.load(folder / "reference.npz"))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_models_give_the_same_vectors(folder: Path, reference: dict[str, np.ndarray]) -> None:
    model = mmalign.load("run")
    shards = ShardSet(Path("data/small/test"))
    images = [shards.read(number).image for number in range(3)]
    np.testing.assert_allclose(model.encode_texts(TEXTS), reference["run_text"], atol=1e-6)
    np.testing.assert_allclose(model.encode_images(images), reference["run_image"], atol=1e-6)
    exported = mmalign.load("run/export").encode_texts(TEXTS)
    np.testing.assert_allclose(exported, reference["export_text"], atol=1e-6)
    for name in ("run", "tuned", "lora", "adapter"):
        vectors = load_text_encoder(name).encode(TEXTS[:3])
        np.testing.assert_allclose(vectors, reference[f"{name}_tower"], atol=1e-6, err_msg=name)


def test_a_run_resumes_and_reaches_the_same_weights(folder: Path) -> None:
    last = folder / "run/checkpoints/step-000000006"
    expected = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    (folder / "run/checkpoints/LATEST").write_text("step-000000003\n")
    # In its own process, because training joins a process group until the process ends.
    done = run_command(["train", "run.yaml", "--out", "run"], folder)
    assert done.returncode == 0, done.stderr
    resumed = load_file(last / "model.safetensors")
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        # Not bit-equal, because the artefacts may have been written on another type of CPU.
        np.testing.assert_allclose(resumed[name], tensor, atol=1e-5, rtol=1e-4, err_msg=name)


def test_data_verify_and_are_built_again_with_the_same_bytes(folder: Path) -> None:
    run("data", "verify", "data/small/train")
    run("data", "build", "recipe.yaml", "--out", "again")
    for split in ("train", "test", "objects"):
        for path in (folder / "data/small" / split).glob("*.tar"):
            assert (folder / "again" / split / path.name).read_bytes() == path.read_bytes()


def test_results_are_read_and_measured_again(folder: Path) -> None:
    before = read_results(folder / "run/eval/small/results.json")
    run("eval", "eval.yaml", "--model", "run", "--out", "measured")
    after = read_results(folder / "measured/results.json")
    assert after.metrics == pytest.approx(before.metrics, abs=1e-5)
    assert after.data == before.data
    assert after.counts == before.counts
    run("report", "run")


@pytest.mark.usefixtures("in_this_process")
def test_a_fine_tuned_tower_is_exported(folder: Path) -> None:
    run("export", "tuned", "--format", "sentence-transformers", "--out", "published")
    assert (folder / "published/modules.json").is_file()
