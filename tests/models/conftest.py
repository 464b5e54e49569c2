"""One tiny run for all tests that only read it."""

from pathlib import Path

import pytest
from tiny import tiny_run

from mmalign.models.encoder import Encoder, load_encoder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("models") / "run")


@pytest.fixture(scope="session")
def encoder(run: Path) -> Encoder:
    return load_encoder(run)
