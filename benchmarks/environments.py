"""Virtual environments of other libraries, whose requirements mmalign does not have; each is created once."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def make_environment(name: str, requirements: Sequence[str], borrow: bool = False) -> Path:
    """The interpreter of `.venv-<name>` next to this file, which is created if it does not exist.

    Args:
        borrow: packages that are not installed there are taken from the current environment.
    """
    folder = Path(__file__).parent.absolute() / f".venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        sys.stderr.write(
            f"creating {folder} with {', '.join(requirements)}: takes minutes and up to some GB\n"
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        if borrow:
            _borrow(folder, python)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "complete").touch()
    return python


def _borrow(folder: Path, python: Path) -> None:
    """Add the packages of the current environment after its own."""
    borrowed = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(borrowed)]
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    (Path(own.stdout.strip()) / "borrowed.pth").write_text("\n".join(lines), encoding="utf-8")
