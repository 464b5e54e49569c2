"""One thread, one run of a tiny model, and its tower, for all tests of text tasks."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_run

from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.fit import copy_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="session")
def loaded(run: Path) -> TextEncoder:
    return load_text_encoder(str(run))


@pytest.fixture
def tower(loaded: TextEncoder) -> TextEncoder:
    """A copy, which a test may change; loading takes forty times as long."""
    return copy_of(loaded)
