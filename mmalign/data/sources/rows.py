"""What the readers of published sets share: finding files, reading lines, and rows that become drafts.

    folders --find_file, find_picture--> paths -+
    text and JSON files --read_*--> values -----+-> Row (a reader's) --drafts_of--> Draft

Publishers give captions and pictures apart, so a reader looks for each file in every folder that it was
given. Blank captions, which two of the sets hold, are left out; everything else that is missing or broken
is an error: a pool that lacks pictures gives numbers that compare with nothing.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import Encoded, File, LazyPair, key_of

FLICKR30K = ("flickr30k-images", "flickr30k_images", "images")
"""Subfolders in which copies of Flickr30k's pictures are found."""


@dataclass(frozen=True)
class Row:
    """One picture of a published set.

    Attributes:
        name: of its file, or its id; also its identity, so the picture of a name is the same in all sets.
        image: where the picture lies, or its encoded bytes.
        captions: (language, text) in the publisher's order; the first one of a language is what the
            first-caption protocol keeps.
        where: file and line, for the sentence about a mistake.
    """

    name: str
    image: Path | bytes
    captions: Sequence[tuple[str, str]]
    where: str
    split: str = "test"
    attribution: str | None = None


def drafts_of(rows: Iterable[Row], source: str, license: str) -> Iterator[LazyPair]:
    """One draft a row, in order.

    Raises:
        UserError: a picture stands twice in a split.
    """
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = key_of(row.name)
        if (row.split, key) in seen:
            raise UserError(f"{row.where}: the picture `{row.name}` stands in an earlier line too")
        seen.add((row.split, key))
        pair = Pair(
            key=key,
            image=b"",
            captions=tuple(
                Caption(lang, text.strip()) for lang, text in row.captions if text.strip()
            ),
            picture=row.name,
            split=row.split,
            source=source,
            license=license,
            attribution=row.attribution,
        )
        image = Encoded(row.image) if isinstance(row.image, bytes) else File.of(row.image)
        yield LazyPair(pair, image, row.where, f"the picture `{row.name}`", strict=True)


def source_folders(kind: str, folders: Sequence[str]) -> list[Path]:
    """The folders of a source, which must be named and exist."""
    if not folders:
        raise UserError(f"{kind}: `source.folders` is empty; name the folders with `--from FOLDER`")
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder; name another with `--from FOLDER`")
    return [Path(folder) for folder in folders]


def find_file(folders: Sequence[Path], *names: str) -> Path:
    """The first file of one of these names below one of the folders.

    Raises:
        UserError: there is none.
    """
    for path in (folder / name for name in names for folder in folders):
        if path.is_file():
            return path
    raise UserError(
        f"{_listed(folders)}: no `{names[0]}` there; name the folder that holds it with `--from FOLDER`"
    )


def find_picture(folders: Sequence[Path], places: Sequence[str], name: str, where: str) -> Path:
    """The picture `name` in a folder itself or in its subfolders `places`.

    Raises:
        UserError: there is none; the sentence begins with `where`, who asked for it.
    """
    for path in (folder / place / name for folder in folders for place in ("", *places)):
        if path.is_file():
            return path
    raise UserError(
        f"{where}: the picture `{name}` is neither in {_listed(folders)} nor in a subfolder "
        f"{' or '.join(places)}; name its folder with `--from FOLDER`"
    )


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a UTF-8 text file, plain or `.gz`; only line feeds part lines.

    Raises:
        UserError: not UTF-8, or a blank line: where line n means picture n, no line can be left out.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is no readable UTF-8 text ({error}); get the file again"
        ) from None
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if "" in lines:
        raise UserError(f"{path}, line {lines.index('') + 1}: is blank; get the file again")
    return lines


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every line that is not blank.

    Raises:
        UserError: a line is no JSON object.
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
    """A field that must be a text; a blank one is one."""
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
