"""From a folder in a publisher's layout to `Splits`.

    folder -> files whose path fits the layout -> (split, language) from the path -> examples

A layout is a regular expression of a file's path below the folder. Its groups are `split`, under
the publisher's name, and `lang`, in the publisher's code; a set without `lang` is in English.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.tables import Row
from mmalign.text.tasks.task import Splits

SPLIT = {
    "train": "train",
    "translated_train": "train",
    "in_domain_train": "train",
    "trn": "train",
    "TRAIN": "train",
    "dev": "dev",
    "val": "dev",
    "dev_2k": "dev",
    "dev_matched": "dev",
    "in_domain_dev": "dev",
    "trial": "dev",
    "TRIAL": "dev",
    "test": "test",
    "test_2k": "test",
    "test_annotated": "test",
    "TEST": "test",
    # Labelled sets of other domains or attacks that nobody tunes on: papers report them as tests.
    "dev_mismatched": "test",
    "out_of_domain_dev": "test",
    "evaluation": "test",
}
"""What publishers call their splits -> ours."""


class NoFiles(UserError):
    """A set that is not there at all; a suite may go on without it, which a broken file forbids."""


def matching(folder: Path, pattern: str, wanted: str) -> list[tuple[Path, re.Match[str]]]:
    """The files below `folder` whose relative path is `pattern`, in the order of their paths.

    Args:
        wanted: the names of these files in words, for the message.

    Raises:
        NoFiles: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise NoFiles(f"{folder}: no such task folder; download the set or give another folder")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    matches = ((path, re.fullmatch(pattern, path.relative_to(folder).as_posix())) for path in paths)
    found = [(path, match) for path, match in matches if match]
    if not found:
        raise NoFiles(f"{folder}: holds no file of this layout; looked for {wanted}")
    return found


def read_files(
    folder: Path,
    pattern: str,
    wanted: str,
    read: Callable[[Path, str, str], Iterable[Example]],
) -> Splits:
    """The examples of every file of the layout; `read` gets its path, our split and language.

    Raises:
        UserError: as `matching`; an empty file, or two files for one split and language.
    """
    splits: Splits = {}
    for path, match in matching(folder, pattern, wanted):
        groups = match.groupdict()
        split, lang = SPLIT[groups["split"]], bcp47(groups.get("lang") or "en")
        add(splits, split, lang, read(path, split, lang), path)
    return splits


def read_rows(
    folder: Path,
    pattern: str,
    wanted: str,
    rows: Callable[[Path], Iterator[Row]],
    make: Callable[[Row, str, str], Example | None],
) -> Splits:
    """As `read_files`, one example a row; `make` gets the row, our split and language.

    A row of which `make` makes None is left out.
    """

    def read(path: Path, split: str, lang: str) -> Iterator[Example]:
        made = (make(row, split, lang) for row in rows(path))
        return (example for example in made if example is not None)

    return read_files(folder, pattern, wanted, read)


def add(splits: Splits, split: str, lang: str, examples: Iterable[Example], path: Path) -> None:
    """Put the examples of a file into `splits`.

    Raises:
        UserError: there are none, or a file before it was for the same split and language.
    """
    if (split, lang) in splits:
        raise UserError(f"{path}: a second file for {split} in `{lang}`; keep one of them")
    splits[split, lang] = list(examples)
    if not splits[split, lang]:
        raise UserError(f"{path}: holds no examples; fill it or remove it")


def row_id(row: Row, split: str, column: str | None = None) -> str:
    """An id that says the same in every language: the split and the row's own id or number.

    Publishers count from the start again in each split, and a test example that shares its id with
    a training example would pass for one that was trained on.
    """
    return f"{split}-{row.number if column is None else row.name(column)}"
