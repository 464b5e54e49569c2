"""A pair before its image is read: what the reading process hands to those that write shards.

    row of a source -+-> LazyPair: captions, and where the image is --load--> Pair, its image checked
                     +-> BadRow: why the row cannot be used

Reading rows is fast and has an order; reading images is slow and has none. So a source yields lazy pairs,
and any process can load them.
"""

import hashlib
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmalign.core.batch import Pair
from mmalign.core.errors import UserError, printable, raise_if_of_machine
from mmalign.core.languages import is_language_code
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.reasons import REASONS
from mmalign.data.resize import Resize, resize
from mmalign.data.shards.manifest import OWN_CAPTIONS
from mmalign.data.shards.reader import MAX_IMAGE_BYTES, UnusableSample, captions_in
from mmalign.data.shards.scan import check_picture
from mmalign.data.shards.tar import member_name

_SPLIT = re.compile(r"[\w-]+")
# A split becomes a folder beside those that a build makes itself.
_RESERVED = ("tasks", "words", "withheld")


class BadRow(UserError):
    """A row that cannot be used; `reason` is a key of REASONS, to count by."""

    def __init__(self, reason: str, sentence: str) -> None:
        assert reason in REASONS, reason
        # What it quotes may hold half of a surrogate pair, which would have no bytes in a list of refusals.
        super().__init__(printable(sentence))
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # it is sent between processes
        return type(self), (self.reason, str(self))


class ImageBytes(Protocol):
    """Where the bytes of an image come from; sources have classes of their own."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class File:
    """A file of its own."""

    path: str
    # A build recognizes a lazy pair by its `repr`, which must change when the image does.
    size: int
    mtime_ns: int

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # whatever became of it since


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
    """Bytes that are already in memory."""

    data: bytes

    def read(self) -> bytes:
        return self.data

    def __repr__(self) -> str:
        return f"Encoded({hashlib.sha256(self.data).hexdigest()})"


@dataclass(frozen=True)
class LazyPair:
    """A pair whose image is not read yet."""

    pair: Pair  # with no image
    image: ImageBytes
    where: str  # file and line, for error messages
    description: str  # the image in these messages, for example `the image a.png`
    # A row that cannot be used is an error, whatever a recipe allows: a published test set with a smaller
    # pool is another, easier test.
    strict: bool = False

    def load(self, size: Resize | None = None) -> Pair:
        """The pair, its image in that size; a BadRow if it cannot be used, a UserError if it is strict."""
        try:
            self._check_texts()
            return replace(self.pair, image=self._read_image(size))
        except BadRow as bad:
            if self.strict:
                raise UserError(str(bad)) from None
            raise

    def _check_texts(self) -> None:
        # A shard must not hold what its reader would refuse. (sources/kinds.py checks names.)
        if (reason := member_name(f"{self.pair.key}.json".encode())[1]) is not None:
            problem = f"the key {self.pair.key[:100]!a}: {REASONS[reason]}"
            raise BadRow(reason, f"{self.where}: {problem}")
        for caption in self.pair.captions:
            if not is_language_code(caption.lang):
                problem = f"`{caption.lang}` is no BCP-47 language code"
                raise BadRow("language", f"{self.where}: {problem}")
        try:
            captions_in({"captions": [asdict(c) for c in self.pair.captions]}, OWN_CAPTIONS)
        except UnusableSample as error:
            raise BadRow(error.reason, f"{self.where}: {error}") from None

    def _read_image(self, size: Resize | None) -> bytes:
        subject = f"{self.where}: {self.description}"
        try:
            data = self.image.read()
        except OSError as error:
            raise_if_of_machine(error)
            raise BadRow("read error", f"{subject} cannot be read ({error.strerror})") from None
        # Checked here and not when the shard is read, so that the shard itself is valid.
        if len(data) > MAX_IMAGE_BYTES:
            raise BadRow("too large", f"{subject} has {len(data)} bytes, over {MAX_IMAGE_BYTES}")
        try:
            image = decode(data)
        except UndecodableImage as error:
            reason = "does not decode"
            try:  # the header may say why
                check_picture(data)
            except UnusableSample as unusable:
                reason = unusable.reason
            # Pillow names an object by its address, which differs from build to build.
            message = re.sub(r" at 0x[0-9a-f]+", "", str(error))
            raise BadRow(reason, f"{subject} {message}") from None
        return data if size is None else resize(image, data, size)


def check_split(split: Any, where: str) -> None:
    """Check that a split may become a folder; a BadRow if it may not."""
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or split in _RESERVED:
        raise BadRow(
            "split",
            f"{where}: the split `{split}` must be letters, digits, `-` and `_`, and none of "
            f"{', '.join(_RESERVED)}",
        )


def key_of(name: str) -> str:
    """A name as the key of a sample, without `.` and `/`, which have a meaning there."""
    return name.replace(".", "_").replace("/", "_")
