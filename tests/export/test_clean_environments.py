"""An export loads where only the other library is installed: a fresh environment, nothing of ours in it.

    tiny encoder -> folder -> venv + pip install <library> -> loader program -> its vectors against ours

Each environment is made, used and removed; the versions are those of constraints.txt. With torch they take
minutes and gigabytes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_cases import build_encoder, source_of

from mmalign.export.build import write_files
from mmalign.export.probes import TEXTS, probe_images, write_probes
from mmalign.export.verify import LOADERS, checked_difference, run_loader
from mmalign.models.load import text_encoder_of
from mmalign.models.text_encoder import TextEncoder

pytestmark = pytest.mark.slow
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


# What is installed, what must not have come along, the formats that are loaded there, and the library.
CASES = (
    ("onnxruntime tokenizers numpy pillow", "mmalign torch transformers", "onnx", "onnxruntime"),
    (
        "sentence-transformers",
        "mmalign open_clip timm",
        "sentence-transformers",
        "sentence_transformers",
    ),
    (
        "sentence-transformers pillow torchvision timm",
        "mmalign open_clip",
        "sentence-transformers-router",
        "sentence_transformers",
    ),
    (
        "transformers torch pillow torchvision timm",
        "mmalign open_clip sentence_transformers",
        "sentence-transformers transformers",
        "transformers",
    ),
    ("open_clip_torch transformers", "mmalign sentence_transformers", "open_clip", "open_clip"),
)


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """The Python of an empty virtual environment."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    reached = pip(python, "download", "--no-deps", "--dest", str(tmp_path / "wheel"), "packaging")
    if reached.returncode != 0:
        pytest.skip(f"pip reaches no registry: {reached.stderr.strip().splitlines()[-1:]}")
    yield python
    shutil.rmtree(folder)


def is_importable(python: Path, package: str) -> bool:
    command = [str(python), "-I", "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("packages", "absent", "formats", "library"), CASES)
def test_the_export_loads_without_us(
    packages: str, absent: str, formats: str, library: str, environment: Path, tmp_path: Path
) -> None:
    installed = pip(environment, "install", "-q", "-c", str(CONSTRAINTS), *packages.split())
    assert installed.returncode == 0, installed.stderr[-2000:]
    assert [name for name in absent.split() if is_importable(environment, name)] == []

    probes = tmp_path / "probes"
    probes.mkdir()
    write_probes(probes, TEXTS)
    for format_name in formats.split():
        # transformers cannot pool by the mean.
        encoder = build_encoder(pooling="cls" if format_name == "transformers" else "mean")
        folder = tmp_path / format_name
        folder.mkdir()
        write_files(source_of(encoder), folder, [format_name], home=str(folder))
        loader = next(one for one in LOADERS[format_name] if one.package == library)
        tower = text_encoder_of(encoder)
        trunk = TextEncoder(tower.trunk, tower.tokenizer, max_length=tower.max_length)
        ours = {"texts": tower.encode(TEXTS), "states": trunk.encode(TEXTS)}
        ours["images"] = encoder.encode_images(probe_images())
        vectors = run_loader(loader, folder, probes, str(environment))
        assert checked_difference(loader, ours, vectors) <= loader.tolerance
