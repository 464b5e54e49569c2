"""One run and its export to three formats, for all tests that only read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
from export_cases import build_encoder, load_in_this_process
from hub_server import TOKEN, Hub, running_hub
from tiny import tiny_run
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.config import read_yaml, write_yaml
from mmalign.export import verify
from mmalign.models.encoder import Encoder

SHARED = ("sentence-transformers", "open_clip", "onnx")


class Exported(NamedTuple):
    """A run, its model, its export, and what `mmalign export` wrote to the terminal."""

    run: Path
    encoder: Encoder
    folder: Path
    output: str


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each library has loaded the folder, in this process."""
    encoder = build_encoder()
    run = tiny_run(tmp_path_factory.mktemp("exported") / "run", encoder.model)
    tree = {**read_yaml(run / "config.yaml"), "model": encoder.config.model_dump(mode="json")}
    (run / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    arguments = [item for name in SHARED for item in ("--format", name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_loader", load_in_this_process)
        result = CliRunner().invoke(app, ["export", str(run), *arguments])
    assert result.exit_code == 0, result.output
    return Exported(run, encoder, run / "export", result.output)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
