"""Environments of peers, each made once beside the scripts: what they need, mmalign does not."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def make_environment(name: str, requirements: Sequence[str], borrow: bool = False) -> Path:
    """The interpreter of `.venv-<name>` beside this file, which is made if it is not there.

    Args:
        borrow: what the requirements do not bring is taken from the environment that runs this.
    """
    folder = Path(__file__).parent.absolute() / f".venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        sys.stderr.write(
            f"making {folder} with {', '.join(requirements)}: minutes, perhaps some GB\n"
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        if borrow:
            _borrow(folder, python)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "complete").touch()
    return python


def _borrow(folder: Path, python: Path) -> None:
    """Let the environment find the packages of this one behind its own."""
    borrowed = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(borrowed)]
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    (Path(own.stdout.strip()) / "borrowed.pth").write_text("\n".join(lines), encoding="utf-8")
