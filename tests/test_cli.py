"""The command line: fast help, an example per verb, and errors in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from shard_sets import make_set
from tiny import tiny_run
from typer.testing import CliRunner

from mmalign import cli
from mmalign.core.config import write_yaml

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "deepspeed",
    "faiss",
    "timm",
    "open_clip",
    "sklearn",
    "matplotlib",
)


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def mistake(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The last line on stderr of `mmalign <arguments>`, which must exit with code 1."""
    monkeypatch.setattr(sys, "argv", ["mmalign", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert re.fullmatch(r"mmalign: [^\n]+\n", shown.err)
    assert "Traceback" not in shown.out + shown.err
    return shown.err.removeprefix("mmalign: ").rstrip("\n")


def verbs() -> list[list[str]]:
    """The words of every command."""

    def below(command: typer.core.TyperCommand, words: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {})
        return [w for name, c in inner.items() for w in below(c, [*words, name])] or [words]

    return below(typer.main.get_command(cli.app), [])


def test_the_help_names_every_verb() -> None:
    done = python("-m", "mmalign", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for words in verbs():
        assert words[0] in done.stdout


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from mmalign import cli; sys.argv = ['mmalign', 'train', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = python("-c", code)
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("words", verbs(), ids=" ".join)
def test_every_verb_has_help_with_an_example_of_itself(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--help"])
    assert result.exit_code == 0
    assert f"Example: mmalign {' '.join(words)}" in " ".join(result.output.split())


def test_a_mistake_is_one_line_and_exit_code_1_for_a_shell_too(tmp_path: Path) -> None:
    done = python("-m", "mmalign", "data", "build", str(tmp_path / "nowhere.yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mmalign: {tmp_path}/nowhere.yaml: no such file\n"


@pytest.mark.parametrize(
    "arguments", [["export"], ["train"], ["data", "build"], ["eval", "x.yaml"], ["nonsense"]]
)
def test_a_call_that_lacks_something_is_a_usage_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert re.search(r"Missing|No such command", result.output)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["export", "RUN"], "RUN: nothing that can be exported: it is not a run (config.yaml)"),
        (["export", "RUN", "--dry-run"], "--public and --dry-run belong to a push"),
        (
            ["export", "RUN", "--format", "onnxx"],
            "--format onnxx: known are sentence-transformers, sentence-transformers-router,",
        ),
        (["report", "RUN"], "RUN: nothing was measured on it; use `mmalign eval SUITE"),
        (
            ["eval", "eval/emoji_scenes.yaml", "--model", "RUN"],
            "RUN: not a run folder, it has no config.yaml",
        ),
        (
            ["finetune", "train/finetune/emoji_category.yaml", "--model", "RUN"],
            "RUN: not a run folder, it has no config.yaml; say where with --out",
        ),
        (
            [
                *("finetune", "train/finetune/emoji_category.yaml", "--model", "RUN"),
                *("--out", "RUN.out", "task.folder=RUN"),
            ],
            "RUN: no such",
        ),
        (
            ["data", "build", "data_recipes/storybooks.yaml", "--out", "RUN"],
            "jsonl: `source.folders` is empty; name the folders with `--from FOLDER`",
        ),
        (
            ["data", "build", "data_recipes/storybooks.yaml", "--from", "RUN", "--out", "RUN.set"],
            "RUN: no such folder",
        ),
        (
            ["data", "build", "data_recipes/emoji_scenes.yaml", "--from", "RUN"],
            "data_recipes/emoji_scenes.yaml: unknown key `source.folders`; known here: captions_per_scene",
        ),
        (
            ["train", "train/emoji_scenes.yaml", "optimizer.l=1"],
            "train/emoji_scenes.yaml: unknown key `optimizer.l`; did you mean `lr`?",
        ),
        (
            ["train", "train/emoji_scenes.yaml", "lr"],
            "override `lr`: write it as `section.key=value`",
        ),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    absent = str(tmp_path / "absent")
    told = mistake([a.replace("RUN", absent) for a in arguments], monkeypatch, capsys)
    assert told.startswith(line.replace("RUN", absent))
    assert not Path(absent).exists()


@pytest.mark.parametrize("words", ["index", "data", "export"])
def test_a_verb_for_one_process_is_not_run_by_every_rank(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {
        "index": [str(tmp_path), "--data", str(tmp_path), "--factory", "Flat"],
        "data": ["stats", str(tmp_path)],
        "export": [str(tmp_path)],
    }
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = mistake([words, *rest[words]], monkeypatch, capsys)
    assert shown == f"mmalign {words}: runs in one process; leave torchrun out"


def test_folders_with_odd_names_reach_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "it's, a: [folder] #1"
    recipe = str(ROOT / "data_recipes/storybooks.yaml")
    arguments = ["data", "build", recipe, "--from", str(odd), "--out", str(tmp_path / "set")]
    assert mistake(arguments, monkeypatch, capsys).startswith(f"{odd}: no such folder")


def test_a_verb_does_its_work_and_notes_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run")
    make_set(tmp_path / "set", 6)
    suite = {"name": "small", "sets": [{"name": "s", "shards": str(tmp_path / "set")}]}
    (tmp_path / "suite.yaml").write_text(write_yaml(suite))
    arguments = ["eval", str(tmp_path / "suite.yaml"), "--model", str(run), "recall_at=[2]"]
    monkeypatch.setattr(sys, "argv", ["mmalign", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    shown = capsys.readouterr().out.splitlines()
    assert any(line.startswith("retrieval/s/mean/text_to_image/recall@2  ") for line in shown)
    assert shown[-1] == str(run / "eval" / "small" / "results.json")
    assert (run / "eval" / "small" / "results.json").is_file()
    assert (run / "commands.txt").read_text() == f"mmalign {' '.join(arguments)}\n".replace(
        "recall_at=[2]", "'recall_at=[2]'"
    )
