"""The demo's table, and the demo from an installed wheel in an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmalign.data.shards.manifest import read_manifest
from mmalign.demo import _ROWS, make_table
from mmalign.results.results import Results

ROOT = Path(__file__).parents[1]
NOUNS = ("data_recipes", "eval", "train")


def test_the_table_fits_80_columns_and_shows_the_worst_language() -> None:
    results = Results("report", {})
    untrained: dict[str, float] = {}
    for mean in _ROWS.values():
        results.add(mean, 0.375, count=182_000, chance=0.0125)
        results.add(mean.replace("/mean/", "/worst5/"), 0.0, count=8)
        for lang, value in (("de", 0.5), ("es-ja", 0.25)):
            results.add(mean.replace("/mean/", f"/{lang}/"), value, count=8)
        results.add(f"{mean}0", 0.1, count=8)  # another metric of the same queries
        untrained[mean] = 0.1
    results.baselines["untrained"] = Results("report", {}, metrics=untrained)
    lines = make_table(results).splitlines()
    assert len(lines) == 1 + len(_ROWS) <= 8
    assert max(map(len, lines)) <= 80
    for line, words in zip(lines[1:], _ROWS, strict=True):
        assert line.startswith(words)
        assert line.removeprefix(words).split() == [
            "0.375", "0.250", "(es-ja)", "0.100", "0.013", "182,000"
        ]  # fmt: skip


def test_a_row_that_was_not_measured_is_left_out() -> None:
    results = Results("report", {})
    name = _ROWS["text to image, recall@1"]
    results.add(name, 0.5, count=8, chance=0.1)
    results.add(name.replace("/mean/", "/de/"), 0.5, count=8, chance=0.1)
    results.baselines["untrained"] = Results("report", {})
    assert len(make_table(results).splitlines()) == 2


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy, because a build leaves folders beside its sources.
    for name in ("mmalign", *NOUNS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """What `mmalign` of the installed wheel prints, started in `folder`."""
    command = [sys.executable, "-m", "mmalign", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package_and_of_the_noun_folders(installed: Path) -> None:
    def files(root: Path, *suffixes: str) -> set[str]:
        found = (path for path in root.rglob("*") if path.is_file())
        return {
            path.relative_to(root).as_posix()
            for path in found
            if "__pycache__" not in path.parts and (not suffixes or path.suffix in suffixes)
        }

    package = installed / "mmalign"
    nouns = {f"recipes/{n}/{f}" for n in NOUNS for f in files(ROOT / n, ".yaml", ".json")}
    assert files(package) == files(ROOT / "mmalign") | nouns
    assert "recipes/eval/prompts/de.json" in nouns and "py.typed" in files(package)
    # Nothing is put beside the package: `eval` and `train` are names that others may use.
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"mmalign"}


def test_an_installed_wheel_builds_the_demo_data_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    small = ["train_scenes=3", "test_scenes=2", "object_scenes=1", "sentence_scenes=1"]
    small += ["unpaired_scenes=1", "entailment={train: 2, dev: 1, test: 1}"]
    run(installed, tmp_path, "data", "build", "emoji_scenes", *(f"source.{one}" for one in small))
    assert read_manifest(tmp_path / "data" / "emoji_scenes" / "train").samples == 3


@pytest.mark.slow
def test_the_demo_runs_from_an_installed_wheel_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    shown = run(installed, tmp_path, "demo").partition("mmalign demo, means")[2]
    assert all(words in shown for words in _ROWS)
    assert "Next: open runs/demo/report.html" in shown
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
