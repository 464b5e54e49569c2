"""The lines of a word list, with their numbers for error messages.

file -> (number from 1, line without its end), blank lines left out
"""

from collections.abc import Iterator
from pathlib import Path

from mmalign.core.errors import UserError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank. Only a line feed ends a line, since texts may hold other separators.

    Raises:
        UserError: the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert it") from None
    numbered = enumerate(text.split("\n"), start=1)
    yield from ((number, line.removesuffix("\r")) for number, line in numbered if line.strip())


def check_folder(folder: Path, what: str) -> None:
    """Raises: UserError: no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `folder` must hold {what}")
