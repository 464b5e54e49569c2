"""An export loads where only the other library is installed: a fresh environment, nothing of ours in it.

    tiny encoder -> folder -> venv + pip install <library> -> loader program -> its vectors against ours

Each environment is made, used and removed; the versions are those of constraints.txt. With torch they take
minutes and gigabytes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import other_loaders
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


TRANSFORMERS_JS = """
import * as js from "@huggingface/transformers";

js.env.allowRemoteModels = false;
js.env.localModelPath = "./";
const tokenizer = await js.AutoTokenizer.from_pretrained("model");
const tokens = tokenizer(JSON.parse(process.argv[2]), { padding: true, truncation: true });
const found = {};
for (const dtype of ["fp32", "int8"]) {
  const options = { dtype, config: { model_type: "clip_text_model" } };
  const text = await js.CLIPTextModelWithProjection.from_pretrained("model", options);
  found[dtype] = (await text(tokens)).text_embeds.tolist();
}
const options = { dtype: "fp32", config: { model_type: "clip_vision_model" } };
const vision = await js.CLIPVisionModelWithProjection.from_pretrained("model", options);
const processor = await js.AutoProcessor.from_pretrained("model");
const image = new js.RawImage(new Uint8ClampedArray(64 * 48 * 3).fill(200), 64, 48, 3);
found.images = (await vision(await processor(image))).image_embeds.tolist();
console.log(JSON.stringify(found));
"""


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


# What is installed, and what of other_loaders.py runs there. Optimum requires transformers 4.
OTHERS = (
    ("transformers torch pillow torchvision", "image_processor tokenizer pipeline"),
    ("transformers<5 torch pillow torchvision", "image_processor tokenizer pipeline"),
    ("sentence-transformers[train]", "sentence_transformers_trainer"),
    ("sentence-transformers[onnx]", "sentence_transformers_onnx"),
    ("open_clip_torch transformers", "open_clip_moved"),
)


@pytest.mark.parametrize(("packages", "calls"), OTHERS)
def test_what_people_call_runs_without_us(
    packages: str, calls: str, environment: Path, exported: Any, tmp_path: Path
) -> None:
    needs_4 = "<5" in packages or "onnx" in packages
    pins = () if needs_4 else ("-c", str(CONSTRAINTS))
    installed = pip(environment, "install", "-q", *pins, *packages.split())
    assert installed.returncode == 0, installed.stderr[-2000:]
    assert not is_importable(environment, "mmalign")
    folder, out = shutil.copytree(exported.folder, tmp_path / "moved"), tmp_path / "out.npz"
    for call in calls.split():
        command = [str(environment), "-I", other_loaders.__file__, call, str(folder), str(out)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(out) as found:
            if call == "tokenizer":
                assert found["decoded"].tolist() == other_loaders.TEXTS
            if call in ("sentence_transformers_onnx", "open_clip_moved"):
                ours = exported.encoder.encode_texts(other_loaders.TEXTS)
                np.testing.assert_allclose(found["texts"], ours, atol=1e-5)


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node here")
def test_transformers_js_computes_our_vectors(exported: Any, tmp_path: Path) -> None:
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "@huggingface/transformers@4"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, check=False).returncode != 0:
        pytest.skip("npm reaches no registry")
    shutil.copytree(exported.folder, tmp_path / "model")
    (tmp_path / "load.mjs").write_text(TRANSFORMERS_JS, encoding="utf-8")
    command = ["node", "load.mjs", json.dumps(other_loaders.TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, ours = json.loads(done.stdout), exported.encoder.encode_texts(other_loaders.TEXTS)
    np.testing.assert_allclose(found["fp32"], ours, atol=1e-5)
    assert (np.asarray(found["int8"]) * ours).sum(1).min() > 0.98
    assert np.asarray(found["images"]).shape == (1, ours.shape[1])


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
