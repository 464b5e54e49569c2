"""What tests of several folders share."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

# It would keep tests from their stand-in of the hub; the library reads it when it is imported.
os.environ.pop("HF_HUB_OFFLINE", None)

# Each complete collection goes through a million objects of the imported libraries, 15 % of the time of
# tests/export. They are no garbage, so collection waits for the end of the imports, and then leaves them out.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or nanobind reports what is left at the exit


# The fixtures import what they need, so that a single light test starts without torch.
@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries load an export here; a test in export/test_build.py starts a process for each."""
    from export_cases import load_in_this_process

    monkeypatch.setattr("mmalign.export.verify.run_loader", load_in_this_process)


@pytest.fixture
def forked_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's trainings and workers are forks of the process that has imported everything."""
    import ranks

    def run(arguments: list[str]) -> None:
        done = ranks.run_command(arguments, Path.cwd())
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr("mmalign.study.towers.run_verb", run)
    forks = SimpleNamespace(get_context=lambda method: ranks.context())
    monkeypatch.setattr("mmalign.study.run.multiprocessing", forks)
