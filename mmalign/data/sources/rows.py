"""What sources share: their folders, finding files, reading lines, and rows that become lazy pairs.

    folders --find_file, find_image--> paths ---+
    text and JSON files --read_*--> values -----+-> Row (one per image of a published set) --> LazyPair

Publishers distribute captions and images apart, so a reader looks for each file in every folder that it was
given. Blank captions, which two of the published sets contain, are left out; everything else that is missing
or invalid is an error: results on a pool that lacks images compare with nothing.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import Encoded, File, LazyPair, key_of


class FolderSource(Section):
    """A source that reads folders. (`kind` comes first, as in the recipes of older manifests.)"""

    kind: str
    folders: tuple[str, ...] = ()
    """Read in this order; `mmalign data build --from FOLDER` sets them."""

    def paths(self) -> list[Path]:
        """The folders, of which there must be one, and which must exist.

        Raises:
            UserError: there is none, or one does not exist.
        """
        if not self.folders:
            sentence = "`source.folders` is empty; name the folders with `--from FOLDER`"
            raise UserError(f"{self.kind}: {sentence}")
        for folder in self.folders:
            if not Path(folder).is_dir():
                raise UserError(f"{folder}: no such folder; name another with `--from FOLDER`")
        return [Path(folder) for folder in self.folders]


@dataclass(frozen=True)
class Row:
    """One image of a published set.

    Attributes:
        name: of its file, or its id; also its identity, so equal names are equal images in all sets.
        image: path of the image, or its encoded bytes.
        captions: (language, text) in the publisher's order; the first one of a language is what the
            first-caption protocol keeps.
        where: file and line, for error messages.
    """

    name: str
    image: Path | bytes
    captions: Sequence[tuple[str, str]]
    where: str
    split: str = "test"
    attribution: str | None = None


def lazy_pairs(rows: Iterable[Row], source: str, license: str) -> Iterator[LazyPair]:
    """One lazy pair per row, in order.

    Raises:
        UserError: a split contains an image twice.
    """
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = key_of(row.name)
        if (row.split, key) in seen:
            raise UserError(f"{row.where}: the image `{row.name}` is in an earlier line too")
        seen.add((row.split, key))
        captions = tuple(Caption(lang, text.strip()) for lang, text in row.captions if text.strip())
        pair = Pair(key, b"", captions, row.name, row.split, source, license, row.attribution)
        image = Encoded(row.image) if isinstance(row.image, bytes) else File.of(row.image)
        yield LazyPair(pair, image, row.where, f"the image `{row.name}`", strict=True)


def find_file(folders: Sequence[Path], *names: str) -> Path:
    """The first file of one of these names below one of the folders.

    Raises:
        UserError: there is none.
    """
    for path in (folder / name for name in names for folder in folders):
        if path.is_file():
            return path
    listed = ", ".join(map(str, folders))
    raise UserError(
        f"{listed}: no `{names[0]}` there; name the folder that holds it with `--from FOLDER`"
    )


def find_image(folders: Sequence[Path], subfolders: Sequence[str], name: str, where: str) -> Path:
    """The image `name` in a folder itself or in its subfolders.

    Raises:
        UserError: there is none; `where` is the line that names it.
    """
    for path in (folder / sub / name for folder in folders for sub in ("", *subfolders)):
        if path.is_file():
            return path
    raise UserError(
        f"{where}: the image `{name}` is neither in {', '.join(map(str, folders))} nor in a subfolder "
        f"{' or '.join(subfolders)}; name its folder with `--from FOLDER`"
    )


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a UTF-8 text file, plain or `.gz`.

    Raises:
        UserError: not UTF-8, or a blank line: if line n describes image n, no line can be left out.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is no readable UTF-8 text ({error}); get the file again"
        ) from None
    # Not splitlines: captions contain other separators, such as U+2028.
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if "" in lines:
        raise UserError(f"{path}, line {lines.index('') + 1}: is blank; get the file again")
    return lines


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every line that is not blank.

    Raises:
        UserError: a line is not a JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({error}); get the file again") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: must be a JSON object")
            yield where, row


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """A field that must be a text; it may be blank."""
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` must be a text")
    return value


def texts_field(row: dict[str, Any], name: str, where: str) -> list[str]:
    """A field that must be a list of texts."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: `{name}` must be a list of texts")
    return value
