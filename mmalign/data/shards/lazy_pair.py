"""A pair before its picture is read: what the reading process hands to those that write shards.

    row of a source -+-> Draft: captions, and where the picture lies --load--> Pair, its picture checked
                     +-> BadRow: why the row cannot be used

Reading rows is quick and has an order; pictures are slow and have none. So a source yields drafts, and any
process can finish them. What a draft says of itself (its `repr`) changes when its picture does.
"""

import hashlib
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmalign.core.batch import Pair
from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.data.preprocess import UndecodableImage, decode
from mmalign.data.shards import reader
from mmalign.data.shards.manifest import OWN_CAPTIONS
from mmalign.data.shards.reader import MAX_IMAGE_BYTES, UnusableSample, captions_in
from mmalign.data.shards.scan import check_picture

REASONS = {
    **reader.REASONS,
    "row": "it is not of the format of its source",
    "missing": "its picture is not there",
    "split": "its split cannot be told, or is no name of a split",
    "status": "its picture is not in the shard that its metadata name",
}
"""Why a row of a source is not used, and what that means."""


# A split becomes a folder beside those that a build makes itself.
_SPLIT = re.compile(r"[\w-]+")
_RESERVED = ("tasks", "words", "withheld")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class BadRow(UserError):
    """A row that cannot be used.

    Attributes:
        reason: a key of REASONS, to count by.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        assert reason in REASONS, reason
        super().__init__(sentence)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # it travels between processes
        return type(self), (self.reason, str(self))


class Picture(Protocol):
    """Where the bytes of a picture come from."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class File:
    """A file of its own."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "File":
        stat = path.stat()
        return cls(str(path), stat.st_size, stat.st_mtime_ns)

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class Part:
    """Bytes of a larger file, such as a member of a tar."""

    path: str
    offset: int
    size: int
    crc32: int

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if zlib.crc32(data) != self.crc32:
            raise OSError(None, "it changed while it was read")
        return data


@dataclass(frozen=True)
class Encoded:
    """Bytes that are at hand."""

    data: bytes

    def read(self) -> bytes:
        return self.data

    def __repr__(self) -> str:
        return f"Encoded({hashlib.sha256(self.data).hexdigest()})"


@dataclass(frozen=True)
class LazyPair:
    """A pair whose picture is not read yet.

    Attributes:
        pair: the pair with no image.
        where: file and line, for the sentence about a mistake.
        description: the picture in that sentence, for example `the image a.png`.
        strict: a row that cannot be used is an error, whatever a recipe allows: in a published test set a
            smaller pool would be another, easier test.
    """

    pair: Pair
    image: Picture
    where: str
    description: str
    strict: bool = False

    def load(self) -> Pair:
        """The pair with its picture.

        Raises:
            BadRow: the picture cannot be read or used, or a caption is not of the format.
            UserError: the same of a strict draft.
        """
        try:
            self._check_captions()
            return replace(self.pair, image=self._read_image())
        except BadRow as bad:
            if self.strict:
                raise UserError(str(bad)) from None
            raise

    def _check_captions(self) -> None:
        """A shard must not hold what its reader would refuse."""
        for caption in self.pair.captions:
            if not is_language_code(caption.lang):
                raise BadRow(
                    "language", f"{self.where}: `{caption.lang}` is no BCP-47 language code"
                )
        try:
            captions_in({"captions": [asdict(c) for c in self.pair.captions]}, OWN_CAPTIONS)
        except UnusableSample as error:
            raise BadRow(error.reason, f"{self.where}: {error}") from None

    def _read_image(self) -> bytes:
        subject = f"{self.where}: {self.description}"
        try:
            data = self.image.read()
        except OSError as error:
            raise BadRow("read error", f"{subject} cannot be read ({error.strerror})") from None
        if len(data) > MAX_IMAGE_BYTES:
            raise BadRow("too large", f"{subject} has {len(data)} bytes, over {MAX_IMAGE_BYTES}")
        try:
            decode(data)
        except UndecodableImage as error:
            # Pillow names an object by its address, which differs from build to build.
            told = _ADDRESS.sub("", str(error))
            raise BadRow(_reason(data), f"{subject} {told}") from None
        return data


def check_split(split: Any, where: str) -> None:
    """Whether a split may become a folder.

    Raises:
        BadRow: it may not.
    """
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or split in _RESERVED:
        raise BadRow(
            "split",
            f"{where}: the split `{split}` must be letters, digits, `-` and `_`, and none of "
            f"{', '.join(_RESERVED)}",
        )


def key_of(name: str) -> str:
    """A name as the key of a sample, in which `.` and `/` have a meaning."""
    return name.replace(".", "_").replace("/", "_")


def _reason(data: bytes) -> str:
    """Why a picture does not decode, as far as its header tells."""
    try:
        check_picture(data)
    except UnusableSample as error:
        return error.reason
    return "does not decode"
