"""A manifest names the code that wrote it, where there is a checkout, and only then."""

import subprocess
from pathlib import Path

import pytest

from mmalign import __version__
from mmalign.core import code_version as module
from mmalign.core.code_version import code_version

NOTHING = {"version": __version__, "commit": None, "dirty": None}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout with one commit."""
    module._git.cache_clear()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path / "package"


def test_the_commit_of_a_clean_checkout(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD")
    assert code_version(package) == {"version": __version__, "commit": commit, "dirty": False}


@pytest.mark.parametrize("name", ["a.py", "new.py"])
def test_a_changed_or_a_new_file_is_told(package: Path, name: str) -> None:
    (package / name).write_text("2\n")
    assert code_version(package)["dirty"] is True


def test_files_beside_the_package_do_not_matter(package: Path) -> None:
    (package.parent / "runs").mkdir()
    (package.parent / "runs" / "x").write_text("1")
    assert code_version(package)["dirty"] is False


def test_an_environment_within_a_checkout_is_no_part_of_it(package: Path) -> None:
    inner = package.parent / ".venv" / "site-packages" / "package"
    inner.mkdir(parents=True)
    assert code_version(inner) == NOTHING


def test_without_git_there_is_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version(package) == NOTHING
