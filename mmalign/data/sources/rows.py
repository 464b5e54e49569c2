"""What sources share: their folders, finding files, reading lines, and the images of published sets.

folders --find_file, find_image--> paths ---+
text and JSON files --read_*--> values -----+-> Row (one per image of a published set) --> LazyPair

Rows are untrusted and name files. They reach regular files of limited size in the source's folders
alone. A link may lead into one of the folders, or to the blobs of the hub's cache that a folder is in.
"""

import gzip
import json
import os
import stat
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

import pydantic

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError, printable, raise_if_of_machine
from mmalign.data.names import fault_of
from mmalign.data.shards.lazy_pair import BadRow, Encoded, File, LazyPair, key_of
from mmalign.data.shards.reader import MAX_IMAGE_BYTES

T = TypeVar("T")


class FolderSource(Section):
    """A source that reads folders. (`kind` comes first, as in the recipes of older manifests.)"""

    kind: str
    folders: tuple[str, ...] = ()
    """Read in this order; `mmalign data build --from FOLDER` sets them."""
    # Not a part of the recipe: the same images make the same data set.
    allow_outside: bool = pydantic.Field(default=False, exclude=True)
    """Whether rows and links may lead out of the folders; `mmalign data build --allow-outside` sets it."""

    @abstractmethod
    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        """Every row, always in the same order; only a source that draws its samples needs the seed.

        Raises:
            UserError: a folder, a file or a column is missing, or a file is not of the source's format.
        """

    def paths(self) -> list[Path]:
        """The folders, of which there must be one, and which must exist."""
        if not self.folders:
            sentence = "`source.folders` is empty; name the folders with `--from FOLDER`"
            raise UserError(f"{self.kind}: {sentence}")
        for folder in self.folders:
            # It becomes a part of the recipe and of the source of each sample.
            if fault := fault_of(folder):
                raise UserError(
                    f"{printable(folder)}: the name holds {fault[1]}; rename the folder"
                )
            if not Path(folder).is_dir():
                raise UserError(f"{folder}: no such folder; name another with `--from FOLDER`")
        return [Path(folder) for folder in self.folders]

    def prefixed(self) -> Iterator[tuple[str, Path]]:
        """Each folder with what its keys begin with: several folders may use equal keys."""
        folders = self.paths()
        for number, folder in enumerate(folders):
            yield (f"{number}-" if len(folders) > 1 else "", folder)

    # Publishers distribute captions and images apart, so each file is looked for in every folder.

    def find_file(self, *names: str) -> Path:
        """The first file of one of these names below one of the folders."""
        folders = self.paths()
        for path in (folder / name for name in names for folder in folders):
            if path.is_file():
                return self.inside(path)
        listed = ", ".join(self.folders)
        raise UserError(
            f"{listed}: no `{names[0]}` there; name the folder that holds it with `--from FOLDER`"
        )

    def inside(self, path: Path) -> Path:
        """The path of a file with rows; a UserError if it leads out of the folders."""
        if not self.allow_outside and _leads_outside(path, self.folders):
            raise UserError(
                f"{path}: leads out of {', '.join(self.folders)}; name the folder of the file with `--from`, "
                "or give --allow-outside"
            )
        return path

    def find_image(
        self, name: str, where: str, subfolders: Sequence[str] = (), home: str | None = None
    ) -> File:
        """The image `name`, which the line `where` names, in a folder itself or in its subfolders.

        Args:
            home: the only folder to look in; None: all.

        Raises:
            BadRow: there is no such regular file, it is outside, or it is too large.
        """
        homes = self.folders if home is None else (home,)
        for path in (Path(one, sub, name) for one in homes for sub in ("", *subfolders)):
            try:
                facts = path.stat()
            except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
                raise_if_of_machine(error)
                continue
            if not stat.S_ISREG(facts.st_mode):
                continue
            is_named_outside = Path(name).is_absolute() or ".." in Path(name).parts
            if not self.allow_outside and (is_named_outside or _leads_outside(path, self.folders)):
                raise BadRow(
                    "outside",
                    f"{where}: the image `{name}` is outside of {', '.join(self.folders)}; if that is right, "
                    "give --allow-outside",
                )
            if facts.st_size > MAX_IMAGE_BYTES:
                size = f"{facts.st_size} bytes, over {MAX_IMAGE_BYTES}"
                raise BadRow("too large", f"{where}: the image `{name}` has {size}")
            return File(str(path), facts.st_size, facts.st_mtime_ns)
        below = f" nor in a subfolder {' or '.join(subfolders)}" if subfolders else ""
        raise BadRow(
            "missing",
            f"{where}: the image `{name}` is not in {', '.join(homes)}{below}; name its folder with "
            "`--from FOLDER`",
        )


@dataclass(frozen=True)
class Row:
    """One image of a published set."""

    name: str  # of its file, or its id; also its identity: equal names are equal images in all sets
    image: File | bytes
    # (language, text) in the publisher's order: the first-caption protocol keeps the first of a language.
    captions: Sequence[tuple[str, str]]
    where: str  # file and line, for error messages
    split: str = "test"
    attribution: str | None = None


class PublishedSet(FolderSource):
    """A set that is complete or an error: results on a pool that lacks images compare with nothing."""

    license: ClassVar[str]  # as every sample of a shard states it

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The images in the publisher's order."""

    def read(self, seed: int) -> Iterator[LazyPair]:
        seen: set[tuple[str, str]] = set()
        for row in self.rows():
            name, split, made_by = row.name, row.split, row.attribution
            key = key_of(name)
            if (split, key) in seen:
                raise UserError(f"{row.where}: the image `{name}` is in an earlier line too")
            seen.add((split, key))
            # Two of the sets contain blank captions.
            captions = tuple(
                Caption(lang, text.strip()) for lang, text in row.captions if text.strip()
            )
            pair = Pair(key, b"", captions, name, split, self.kind, self.license, made_by)
            image = Encoded(row.image) if isinstance(row.image, bytes) else row.image
            yield LazyPair(pair, image, row.where, f"the image `{name}`", strict=True)


def _leads_outside(path: Path, folders: tuple[str, ...]) -> bool:
    real = os.path.realpath(path)
    return not any(real.startswith(root + os.sep) for root in _roots(folders))


@lru_cache(maxsize=8)
def _roots(folders: tuple[str, ...]) -> tuple[str, ...]:
    roots = [os.path.realpath(folder) for folder in folders]
    # The hub's cache: <repository>/snapshots/<commit>/<file> is a link to <repository>/blobs/<hash>.
    homes = (root.rpartition("/snapshots/")[0] for root in roots)
    return (*roots, *(f"{home}/blobs" for home in homes if home))


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is read; a `.gz` is unpacked. What cannot be read is a UserError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); get the file again") from None


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a UTF-8 text file, plain or `.gz`."""
    with open_file(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 ({error}); get the file again") from None
    # Not splitlines: captions contain other separators, such as U+2028.
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    # Line n describes image n, so no line can be left out.
    if "" in lines:
        raise UserError(f"{path}, line {lines.index('') + 1}: is blank; get the file again")
    return lines


def numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file and line, line) of every line that is not blank; bytes, so that one may be invalid UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}, line {number}", line


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow("json", f"{where}: not valid JSON ({error}); fix or remove it") from None
    if not isinstance(row, dict):
        raise BadRow("json", f"{where}: must be a JSON object")
    return row


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every line that is not blank."""
    return ((where, json_object(line, where)) for where, line in numbered_lines(path))


def text_field(row: dict[str, Any], name: str, where: str, may_be_empty: bool = False) -> str:
    """A field that must be a text."""
    value = row.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise BadRow("row", f"{where}: `{name}` must be a text")
    return value


def texts_field(row: dict[str, Any], name: str, where: str) -> list[str]:
    """A field that must be a list of texts."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRow("row", f"{where}: `{name}` must be a list of texts")
    return value


def attempt(make: Callable[..., T], *arguments: Any) -> T | BadRow:
    """What `make` returns, or the BadRow that it raises."""
    try:
        return make(*arguments)
    except BadRow as bad:
        return bad
