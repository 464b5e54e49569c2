"""Outputs and streams that cannot be written: one sentence, and nothing is lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_set

from mmalign import cli
from mmalign.cli import train as train_verbs
from mmalign.cli.evaluate import note_command

ROOT = Path(__file__).parents[2]
SIZES = ("--nodes", "1", "--gpus-per-node", "0")


def run_main(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, str]:
    """Exit code and stderr of `mmalign <arguments>`."""
    monkeypatch.setattr(sys, "argv", ["mmalign", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


# FILE is a file in the place of a folder, FOLDER a folder in the place of a file. MISSING does not exist: a
# verb that looks for it has begun its work.
@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "build", "emoji_scenes", "--out", "FILE"],
        ["data", "index", "MISSING", "--out", "FILE"],
        ["data", "describe", "MISSING", "--out", "FILE/table.parquet"],
        ["data", "score", "MISSING", "--model", "MISSING", "--out", "FOLDER"],
        ["data", "select", "MISSING", "FILE"],
        ["data", "verify", "MISSING", "--json", "FILE/report.json"],
        ["data", "verify", "MISSING", "--json", "FOLDER"],
        ["data", "stats", "MISSING", "--json", "FILE/numbers.json"],
        ["data", "stats", "MISSING", "--picture", "FILE/chart.png"],
        ["train", "emoji_scenes", "--out", "FILE", "data.train=[{path: MISSING}]"],
        ["embed", "emoji_scenes", "model.image.name=MISSING", "--data", "FILE"],
        ["launch", "emoji_scenes", "--on", "MISSING", *SIZES, "--write", "FILE/job.sh"],
        ["launch", "emoji_scenes", "--on", "MISSING", *SIZES, "--write", "FOLDER"],
        ["eval", "emoji_scenes", "--model", "MISSING", "--out", "FILE"],
        ["eval", "faiss", "--model", "MISSING", "--out", "FILE"],
        ["eval", "xtreme_r", "--model", "MISSING", "--out", "FILE"],
        ["compare", "MISSING", "MISSING", "--out", "FILE/table.md"],
        ["report", "MISSING", "--out", "FILE/page.html"],
        ["report", "MISSING", "--out", "FOLDER"],
        ["index", "MISSING", "--data", "MISSING", "--factory", "Flat", "--out", "FILE"],
        ["search", "--model", "MISSING", "--data", "MISSING", "--cache", "FILE"],
        ["finetune", "emoji_category", "--model", "MISSING", "--out", "FILE"],
        ["study", "study_demo", "--out", "FILE"],
        ["export", "MISSING", "--out", "FILE/export"],
        ["export", "MISSING", "--out", "FILE"],
        ["demo", "--out", "FILE"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("of somebody else")
    Path("FOLDER").mkdir()
    code, message = run_main(arguments, monkeypatch, capsys)
    assert code == 1
    assert message.startswith(("mmalign: FILE", "mmalign: FOLDER")) and message.count("\n") == 1
    assert Path("FILE").read_text() == "of somebody else"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "FOLDER"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("model", "--push model: give the owner too"), ("me/model", "--push: you are not logged in")],
)
def test_a_push_that_cannot_be_made_is_refused_before_the_work(
    name: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, message = run_main(["export", str(tmp_path), "--push", name], monkeypatch, capsys)
    assert code == 1 and message.startswith(f"mmalign: {sentence}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("kind", ["python", "rust", "wrapped"])
def test_what_the_machine_refuses_later_is_one_sentence(
    number: int, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        error: Exception = OSError(number, os.strerror(number), "out/model.safetensors")
        if kind == "rust":  # as safetensors and tokenizers say it
            error = ValueError(f"I/O error: {os.strerror(number)} (os error {number})")
        if kind == "wrapped":
            raise RuntimeError("cannot be saved") from error
        raise error

    monkeypatch.setattr(train_verbs, "find_yaml", fail)
    code, message = run_main(["train", "emoji_scenes", "--dry-run"], monkeypatch, capsys)
    assert code == 1 and message.startswith("mmalign: ") and message.count("\n") == 1
    assert os.strerror(number) in message and "run the same command again" in message
    assert ("out/model.safetensors" in message) == (kind != "rust")


@pytest.mark.parametrize(
    "error",
    [
        OSError("1152 requested and 480 written"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["numpy", "torch"],
)
def test_less_written_than_given_is_a_full_disk(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(train_verbs, "find_yaml", fail)
    code, message = run_main(["train", "emoji_scenes", "--dry-run"], monkeypatch, capsys)
    assert code == 1 and message.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in message


def test_a_name_that_a_library_cannot_take_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_verbs, "find_yaml", lambda *_: "sortie-\udcc3\udca9".encode())
    code, message = run_main(["train", "emoji_scenes", "--dry-run"], monkeypatch, capsys)
    assert code == 1 and message.count("\n") == 1
    assert "sortie-\\udcc3\\udca9" in message and "PYTHONUTF8=1" in message


def test_any_other_error_is_a_bug_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    monkeypatch.setattr(train_verbs, "find_yaml", fail)
    monkeypatch.setattr(sys, "argv", ["mmalign", "train", "emoji_scenes"])
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_a_command_with_a_name_that_is_no_text_is_noted_and_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("")
    noted = tmp_path / "commands.txt"
    noted.write_text("mmalign train run.yaml\n")
    monkeypatch.setattr(sys, "argv", ["mmalign", "report", os.fsdecode(b"caf\xc3\xa9-\xff")])
    note_command(tmp_path)
    lines = noted.read_text(encoding="utf-8").splitlines()
    assert lines == ["mmalign train run.yaml", "mmalign report 'café-\\xff'"]


def test_a_run_of_somebody_else_does_not_spoil_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "commands.txt").mkdir()  # also root cannot write there
    note_command(tmp_path)
    assert "this command is not in its commands.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stream", "environment"),
    [
        (">&-", {}),
        (">&- 2>&-", {}),
        ("", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
    ids=["no stdout", "neither", "POSIX"],
)
def test_a_verb_finishes_whatever_its_streams_can_take(
    stream: str, environment: dict[str, str], tmp_path: Path
) -> None:
    make_set(tmp_path / "données", 4, lambda _: ("en",))
    command = f'"$0" -m mmalign data verify données --json found.json {stream}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "found.json").is_file()
    if environment:
        assert b"donn\\udcc3\\udca9es: complete" in done.stdout
