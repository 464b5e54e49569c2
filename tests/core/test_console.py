"""What the command line prints, whatever terminal it prints to."""

import os
import subprocess
import sys
from pathlib import Path

from ranks import run_command

ROOT = Path(__file__).parents[2]
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MMALIGN = (sys.executable, "-m", "mmalign")


def mmalign(
    *arguments: str, after: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a shell, and `after` behind it."""
    quoted = " ".join(f"'{argument}'" for argument in (*MMALIGN, *arguments))
    return run("bash", "-c", f"{quoted} {after}", **environment)


def python(code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, "-c", code, *arguments, **environment)


def run(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        text=True,
        errors="surrogateescape",
    )


def test_a_terminal_that_is_not_utf_8_gets_escapes(tmp_path: Path) -> None:
    done = mmalign("data", "verify", "größe\x1b[31m", **POSIX)
    assert done.returncode == 1
    assert done.stderr.startswith("mmalign: gr\\") and done.stderr.isascii()
    assert "no such data set" in done.stderr and "\x1b" not in done.stderr
    code = (
        "import sys; from mmalign import cli; from mmalign.core.console import say\n"
        "cli.app = lambda: say('gr\\xf6\\xdfe \\udcff')\ncli.main()"  # a POSIX shell passes on ASCII
    )
    for environment in (POSIX, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}):
        done = python(code, **environment)
        assert done.returncode == 0, done.stderr
        assert "\\udcff" in done.stdout


def test_a_closed_or_full_output_ends_cleanly() -> None:
    for after in ("| true", ">&-", "> /dev/full"):
        done = mmalign("--version", after=after)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert "No space left on device" in done.stderr and done.returncode == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.json"
    code = (
        "import resource, sys; from pathlib import Path; from mmalign import cli\n"
        "from mmalign.core.commit import write_json\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "cli.app = lambda: write_json(Path(sys.argv[1]), 'x' * 1000)\ncli.main()"
    )
    done = python(code, str(target))
    assert done.returncode == 1
    assert done.stderr == (
        f"mmalign: {target}: File too large; raise the limit of a file's size with `ulimit -f unlimited`, "
        "or name another place, and run the same command again\n"
    )
    assert list(target.parent.iterdir()) == []


def test_outputs_are_refused_before_the_scan(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    missing = str(tmp_path / "no set")
    for option, verb in (("--json", "verify"), ("--json", "stats"), ("--picture", "stats")):
        arguments = ["data", verb, missing, option, str(tmp_path / "file" / "x.svg")]
        done = run_command(arguments, tmp_path)
        assert done.returncode == 1
        assert "x.svg: cannot be written (Not a directory" in done.stderr
