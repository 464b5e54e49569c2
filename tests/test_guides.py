"""The commands of the README and the guides: all parse, and those marked `run` also run on small data.

A block of commands is preceded by `<!-- test: run -->`, `<!-- test: parse -->` or `<!-- test: none, why -->`.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from ranks import run_command
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.config import load_config
from mmalign.training.dry_run import needs
from mmalign.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "train" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Its commands need Docker, so they are only planned.
DOCKER = ROOT / "docker" / "README.md"
BLOCK = re.compile(r"(?:<!-- test: (\w+)[^>]*-->\n)?```(?:bash|sh)\n(.*?)```", re.S)
# Overrides for small data, by command. `train` runs in its own process, because it joins a process group.
SMALL = {
    "data build": "source.train_scenes=64 source.test_scenes=16 source.object_scenes=16 "
    "source.sentence_scenes=16 source.unpaired_scenes=28 source.entailment.train=40 "
    "source.entailment.dev=8 source.entailment.test=8",
    "train": "steps=2 batch_size=8 data.workers=0",
    "eval": "layers.pictures=16",
    "finetune": "epochs=1 hidden=8 folds=2",
}
# The order provides the inputs of each command: data, a run, its results.
ORDER = ("pretraining", "evaluation", "text_transfer", "publishing", "data", "large_scale")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The test mode (`run`, `parse`, `none`) and the commands of each block."""
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert kind in ("run", "parse", "none"), f"{page.name}: this block has no test mode: {text}"
        yield kind, text


def commands(text: str) -> list[list[str]]:
    """The arguments of each line that calls `mmalign`."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    found = (words[words.index("mmalign") + 1 :] for words in lines if "mmalign" in words)
    return [words for words in found if words]  # `cd mmalign` names the folder


def every_command() -> list[list[str]]:
    return [words for page in PAGES for _, text in blocks(page) for words in commands(text)]


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_a_command_parses_and_names_files_that_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    rest = list(words)
    # Not isinstance: typer has classes of its own in place of click's.
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(click.Context(command), rest)
        assert command is not None, name
    context = command.make_context(words[0], rest)
    files = [word for word in words if word.endswith(".yaml") and "/" in word]
    assert all((ROOT / file).is_file() for file in files), files
    if words[0] in ("train", "launch"):
        load_config(RunConfig, ROOT / files[0], context.params["overrides"] or ())


GPU_BYTES = 80e9  # of an A100 or H100


def planned() -> dict[tuple[str, ...], list[list[str]]]:
    """Command lines that train on several GPUs, by what the dry run needs to know of them."""
    texts = [text for page in PAGES for _, text in blocks(page)]
    texts += re.findall(r"```\n(.*?)```", DOCKER.read_text(encoding="utf-8"), re.S)
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        given = dict(pairwise(words))
        gpus = given.get("--gpus-per-node", given.get("--nproc-per-node", "1"))
        verb = next((verb for verb in ("train", "launch") if verb in words and gpus != "1"), None)
        if verb is not None and ("--gpus-per-node" in words or "--gpus" in words):
            fields = [word for word in words if re.fullmatch(r"[\w.]+=\S+", word)]
            key = (given[verb], given.get("--nodes", "1"), gpus, *fields)
            found.setdefault(key, []).append(words)
    return found


@pytest.mark.parametrize("key", planned(), ids=" ".join)
def test_a_command_fits_the_gpus_and_the_shared_memory_that_it_asks_for(
    key: tuple[str, ...],
) -> None:
    run, nodes, gpus, *fields = key
    config = load_config(RunConfig, ROOT / run, fields)
    of_gpu, shared = needs(config, int(nodes), int(gpus))
    assert of_gpu < 0.9 * GPU_BYTES
    for words in planned()[key]:
        given = dict(pairwise(words))
        if "docker" in words:
            assert shared < int(given["--shm-size"].removesuffix("g")) * 1e9
        # In a pod the shared memory counts as memory.
        assert shared < 0.5 * int(given.get("--memory-gib", 2**20)) * 2**30


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train", "eval", "data_recipes"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.usefixtures("in_this_process", "forked_study")
@pytest.mark.parametrize("guide", ORDER)
def test_the_commands_of_a_guide_run_on_small_data(
    guide: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    done = 0
    for kind, text in blocks(ROOT / "docs" / f"{guide}.md"):
        for words in commands(text) if kind == "run" else ():
            verb = " ".join(words[:2]) if words[0] == "data" else words[0]
            small = [] if "--dry-run" in words else SMALL.get(verb, "").split()
            run([*words, *small])
            done += 1
    assert done > 0


def run(words: list[str]) -> None:
    if words[0] == "train":
        done = run_command(words, Path.cwd())
        assert done.returncode == 0, (words, done.stderr)
        return
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
