"""Runs that tests of training share; tests copy what they change."""

from pathlib import Path

import pytest
from run_cases import config, mmalign
from shard_sets import make_set

from mmalign.core.config import write_yaml


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run file, and a run of all steps without a stop."""
    folder = tmp_path_factory.mktemp("runs")
    make_set(folder / "data", 14)
    (folder / "run.yaml").write_text(write_yaml(config(folder / "data")))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    return folder


@pytest.fixture(scope="session")
def stopped(folder: Path) -> Path:
    """The same run, stopped after half of its steps; to be copied."""
    mmalign("train", "run.yaml", "--out", "halfway", "--stop-after", "3", folder=folder)
    return folder / "halfway"


@pytest.fixture(scope="session")
def words(folder: Path) -> Path:
    """A run of masked language modelling on the same data, without a stop."""
    objective = {"kind": "masked_language_model"}
    (folder / "words.yaml").write_text(write_yaml(config(folder / "data", objective=objective)))
    mmalign("train", "words.yaml", "--out", "words", folder=folder)
    return folder / "words"
