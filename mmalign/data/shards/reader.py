"""Reading samples of shards by number, through the index: no tar is walked at run time.

    data set folder -> manifest -> ShardSet: how many samples each shard has
    ShardSet.read(i) -> row of the shard's index (shard_index.py) -> two ranged reads, checked -> Pair
                                                                  -> UnusableSample: shard, key and reason

Only the members that the index names are touched, each under a cap, and nothing is unpacked. What is returned
is byte for byte what the index described (its crc32), or it is refused; rows of data sets that were built
before there were checksums are read without that check.
"""

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards import tar
from mmalign.data.shards.folder import open_folder
from mmalign.data.shards.manifest import OWN_CAPTIONS, Manifest
from mmalign.data.shards.open_files import OpenFiles
from mmalign.data.shards.shard_index import (
    MEND,
    languages_in,
    line_starts,
    read_index,
    read_row,
    read_rows,
)
from mmalign.data.storage.remote import RemoteConfig

MAX_IMAGE_BYTES = 50_000_000
MAX_JSON_BYTES = 2_000_000
MAX_TEXT_BYTES = 100_000  # of a .txt
MAX_CAPTION_CHARACTERS = 20_000
MAX_CAPTIONS = 1_000

REASONS = {
    **tar.REASONS,
    "read error": "the shard cannot be opened or read",
    "checksum": "a member's bytes are not those that were indexed",
    "index": "its row in the index is not of this format",
    "too large": "a member has more bytes than are allowed",
    "no image": "it has no picture member",
    "not an image": "its picture member is no JPEG, PNG or WebP",
    "does not decode": "its picture cannot be decoded",
    "too many pixels": "its picture has more pixels than are allowed",
    "no caption": "it has no caption, or only empty ones",
    "json": "its JSON does not parse, is nested too deeply or is no object",
    "not UTF-8": "its caption or its JSON is not UTF-8",
    "caption": "its captions are not of this format or hold a NUL",
    "caption too long": f"a caption has more than {MAX_CAPTION_CHARACTERS} characters",
    "language": "a caption has no language code",
    "duplicate suffix": "two of its members have the same suffix",
    "duplicate key": "its key stood in the shard before",
    "not adjacent": "members of other samples stand between its own",
    "beside damage": "damaged bytes stand directly behind its members",
    "fewer samples": "the shard has fewer samples than a file beside it says",
}
"""Why a sample, a member or a part of a shard is not used, and what that means."""


_DEFAULT = RemoteConfig()


class UnusableSample(UserError):
    """A sample that cannot be used.

    Attributes:
        reason: a key of REASONS, to count by.
        detail: what exactly, or "".
        shard, key: of the sample; "" until `at` names them.
    """

    def __init__(self, reason: str, detail: str = "", shard: str = "", key: str = "") -> None:
        assert reason in REASONS, reason
        self.reason, self.detail, self.shard, self.key = reason, detail, shard, key
        where = f"{shard}, sample `{key}`: " if shard else ""
        super().__init__(f"{where}{REASONS[reason]}" + (f" ({detail})" if detail else ""))

    def __reduce__(self) -> tuple[Any, ...]:  # it travels from a loader's worker to its rank
        return type(self), (self.reason, self.detail, self.shard, self.key)

    def at(self, shard: str, key: str) -> "UnusableSample":
        """The same with its place."""
        return UnusableSample(self.reason, self.detail, shard, key)


class ShardSet:
    """The samples of a data set, in the order of its shards.

    A shard's index is read when one of its samples is; what it takes in memory is 8 bytes a sample, for the
    shards that were used last.

    Attributes:
        folder: where its files are.
        manifest: what the folder says it holds.
        first: (shards + 1,) int64, number of the first sample of each shard, and of all samples.
        shards_at_hand: of so many shards a process remembers where the rows of the index begin.
        files: those that stay open; a shard has two.
    """

    def __init__(self, name: str | os.PathLike[str], remote: RemoteConfig = _DEFAULT) -> None:
        """Open a data set.

        Args:
            name: a folder, or a URL.
            remote: how the files at a URL are fetched and kept.

        Raises:
            UserError: no finished data set there, an empty one, or no way to it.
        """
        self.folder, self.manifest = open_folder(name, remote)
        self.first = np.cumsum([0, *(shard.samples for shard in self.manifest.shards)])
        self.files = OpenFiles(self.folder)
        self.shards_at_hand = 128
        self._starts: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self.first[-1])

    @cached_property
    def keys(self) -> list[str]:
        """Of all samples; reads every index, as the next two do."""
        return [row["key"] for row in self._rows()]

    @cached_property
    def languages(self) -> list[tuple[str, ...]]:
        """For each sample, the language of each caption, in the order of its member."""
        numbers = range(len(self.manifest.shards))
        return [langs for number in numbers for langs in self.languages_in(number)]

    @cached_property
    def picture_ids(self) -> np.ndarray:
        """(samples,) int64, equal where pictures are equal, in every data set."""
        return np.array([picture_id(row["picture"]) for row in self._rows()], np.int64)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for shard in self.manifest.shards:
            yield from read_rows(self.folder, self.manifest, shard)

    def languages_in(self, number: int) -> list[tuple[str, ...]]:
        """The languages of the samples of shard `number`."""
        return languages_in(self.folder, self.manifest, self.manifest.shards[number])

    def read(self, index: int) -> Pair:
        """Sample `index` with its encoded image and all its captions.

        Raises:
            UnusableSample: a member cannot be read, is over its cap or not what the index says.
            UserError: the shard's index is not the one that the manifest describes.
        """
        number, row = self._place(index)
        facts = self._row(number, row)
        try:
            tar = self.files.descriptor(self.manifest.shards[number].tar)
            return read_pair(tar, facts, self.manifest)
        except OSError as error:
            problem = UnusableSample("read error", str(error.strerror))
        except UnusableSample as error:
            problem = error
        raise problem.at(self.place_of(number), facts["key"])

    def shard_of(self, index: int) -> str:
        """File name of the shard that holds sample `index`."""
        return self.manifest.shards[self._place(index)[0]].file

    def place_of(self, number: int) -> str:
        """Where the tar of shard `number` lies, for messages."""
        return self.folder.place(self.manifest.shards[number].tar)

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Shards whose samples will be read soon."""
        shards = [self.manifest.shards[number] for number in numbers]
        self.folder.prefetch(name for shard in shards for name in (shard.index, shard.tar))

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the shard that holds a sample, and the sample's row in it."""
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        return number, index - int(self.first[number])

    def _row(self, number: int, row: int) -> dict[str, Any]:
        """A row of a shard's index."""
        starts_S, name = self._starts_of(number), self.manifest.shards[number].index
        try:
            return read_row(self.files.descriptor(name), starts_S, row, self.folder.place(name))
        except OSError as error:
            place = self.folder.place(name)
            raise UserError(f"{place}: cannot be read ({error.strerror}); {MEND}") from None

    def _starts_of(self, number: int) -> np.ndarray:
        """Where the rows of a shard's index begin."""
        if number in self._starts:
            self._starts.move_to_end(number)
            return self._starts[number]
        while len(self._starts) >= self.shards_at_hand:
            self._starts.popitem(last=False)
        shard = self.manifest.shards[number]
        data = read_index(self.folder, self.manifest, shard)
        self._starts[number] = line_starts(data, self.folder.place(shard.index), shard)
        return self._starts[number]

    def close(self) -> None:
        """Close its files; they are opened again where a sample is read."""
        self.files.close()


def read_pair(descriptor: int, row: dict[str, Any], manifest: Manifest) -> Pair:
    """The sample that an index row describes, from the open tar.

    Raises:
        UnusableSample: a member cannot be read, is over its cap or not what the index says. It does not name
            shard and key yet.
    """
    origin = manifest.captions
    suffix = origin.partition(":")[0]
    most = MAX_TEXT_BYTES if suffix == "txt" else MAX_JSON_BYTES
    data = _member(descriptor, row.get(suffix), most)
    content = decode_text(data) if suffix == "txt" else parse_json(data)
    found = captions_in(content, origin)
    if len(found) != len(row["langs"]):
        raise UnusableSample("caption", "another number of captions than the index says")
    facts = content if origin == OWN_CAPTIONS and isinstance(content, dict) else {}
    return Pair(
        key=row["key"],
        image=_member(descriptor, row["image"], MAX_IMAGE_BYTES),
        captions=tuple(
            Caption(lang, text) for lang, (text, _) in zip(row["langs"], found, strict=True)
        ),
        picture=row["picture"],
        split=str(facts.get("split") or manifest.split),
        source=str(facts.get("source") or manifest.name),
        license=str(facts.get("license") or "unknown"),
        attribution=facts.get("attribution"),
    )


def _member(descriptor: int, place: Any, most: int) -> bytes:
    """The bytes of a member that an index row places."""
    try:
        suffix, offset, size, *crc32 = place
        if size > most:
            raise UnusableSample("too large", f".{suffix}: {size} bytes, over {most}")
        data = os.pread(descriptor, size, offset)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UnusableSample("index") from None
    except OSError as error:
        raise UnusableSample("read error", str(error.strerror)) from None
    if len(data) != size:
        raise UnusableSample("cut off", f".{suffix}")
    if crc32 and zlib.crc32(data) != crc32[0]:
        raise UnusableSample("checksum", f".{suffix}")
    return data


def captions_in(content: str | dict[str, Any], origin: str) -> list[tuple[str, str | None]]:
    """The captions of a sample, each with its language where its member tells it.

    Args:
        content: what the `.txt` or `.json` member holds.
        origin: `txt`: all of it is one caption; `json:FIELD`: the field is a text, or a list of texts or of
            {"lang", "text"}.

    Raises:
        UnusableSample: a caption is not of this format.
    """
    value = content if isinstance(content, str) else content.get(origin.partition(":")[2])
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if len(entries) > MAX_CAPTIONS:
        raise UnusableSample("caption", f"{len(entries)} captions, over {MAX_CAPTIONS}")
    return [_caption(entry) for entry in entries]


def _caption(entry: Any) -> tuple[str, str | None]:
    text, lang = (
        (entry.get("text"), entry.get("lang")) if isinstance(entry, dict) else (entry, None)
    )
    if not isinstance(text, str) or not isinstance(lang, str | None) or "\0" in text:
        raise UnusableSample("caption")
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise UnusableSample("caption too long", f"{len(text)} characters")
    try:
        text.encode()  # JSON can spell half a character
    except UnicodeEncodeError:
        raise UnusableSample("not UTF-8") from None
    return text, lang


def parse_json(data: bytes) -> dict[str, Any]:
    """The object that a JSON member holds.

    Raises:
        UnusableSample: it is not UTF-8 or no such JSON.
    """
    try:
        tree = json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UnusableSample("json") from None
    if not isinstance(tree, dict):
        raise UnusableSample("json")
    return tree


def decode_text(data: bytes) -> str:
    """Bytes as UTF-8.

    Raises:
        UnusableSample: they are not.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnusableSample("not UTF-8") from None


def picture_id(picture: str) -> int:
    """A picture's identity as a signed 64-bit integer."""
    digest = hashlib.blake2b(picture.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
