"""Reading samples of shards by number, through the index: no tar is walked at run time.

    data set folder -> manifest -> ShardSet: how many samples each shard has
    ShardSet.read(i) -> row of the shard's index (shard_index.py) -> two ranged reads, checked -> Pair
                                                                  -> UnusableSample: shard, key and reason

The reads are of a local file, or of one at a URL as long as the shard is not downloaded.

Only the members that the index names are read, each under a size limit, and nothing is unpacked. What is
returned is byte for byte what the index described (its crc32), or it is refused.
"""

import errno
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError, printable, raise_if_of_machine
from mmalign.data.reasons import REASONS
from mmalign.data.shards.folder import (
    LocalFolder,
    OpenFiles,
    Recent,
    open_files,
    open_folder,
    opened,
)
from mmalign.data.shards.manifest import OWN_CAPTIONS, Manifest, Shard
from mmalign.data.shards.shard_index import languages_in, read_row, read_rows, row_starts
from mmalign.data.storage.remote import RemoteConfig

MAX_IMAGE_BYTES = 50_000_000
MAX_JSON_BYTES = 2_000_000
MAX_TEXT_BYTES = 100_000  # of a .txt
MAX_CAPTION_CHARACTERS = 20_000
MAX_CAPTIONS = 1_000


MOST_BETWEEN = 65_536  # bytes between the members of a sample that one request may fetch with them

RETRY_WAITS = (0.1, 1.0, 5.0)
"""Seconds before another try to read what the machine failed to read."""
_DEFAULT = RemoteConfig()
_SHA256 = re.compile(r"[0-9a-f]{64}")
ReadBytes = Callable[[int, int], bytes]
"""Of a number of bytes and an offset: the bytes of a tar there."""


class UnusableSample(UserError):
    """A sample that cannot be used; `reason` is a key of REASONS, to count by.

    `shard` and `key` are "" where `ShardSet.read` has not named them yet.
    """

    def __init__(self, reason: str, detail: str = "", shard: str = "", key: str = "") -> None:
        self.reason, self.detail, self.shard, self.key = reason, detail, shard, key
        where = f"{shard}, sample `{key}`: " if shard else ""
        super().__init__(
            printable(f"{where}{REASONS[reason]}" + (f" ({detail})" if detail else ""))
        )

    def __reduce__(self) -> tuple[Any, ...]:  # it is sent from a loader's worker to its rank
        return type(self), (self.reason, self.detail, self.shard, self.key)


class ShardSet:
    """The samples of the data set in a folder or at a URL, in the order of its shards.

    Any number of threads may read.

    Args:
        files: where descriptors are kept, if several data sets share them.
        as_of: sha256 of a manifest; where the set had it before shards were appended, these are left out.

    Raises:
        UserError: no finished data set there, an empty one, or no way to reach it.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        remote: RemoteConfig = _DEFAULT,
        check_files: bool = True,
        files: OpenFiles | None = None,
        as_of: str | None = None,
    ) -> None:
        self.folder, manifest = open_folder(name, remote, check_files)
        self.manifest = manifest if as_of is None else manifest.as_of(as_of) or manifest
        # (shards + 1,) int64, number of the first sample of each shard, and of all samples
        self.first = np.concatenate([[0], self.manifest.columns.sample_S]).cumsum()
        # Neither refers back to this object, so that descriptors are closed as soon as it is gone.
        self.files = files or open_files()
        # Where the rows of a shard's index begin, by number of the shard: 8 bytes per sample.
        self.starts: Recent[int, np.ndarray] = Recent(
            partial(row_starts, self.folder, self.manifest), 128
        )

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
        """(samples,) int64, equal where images are equal, in every data set."""
        return np.array([picture_id(row["picture"]) for row in self._rows()], np.int64)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for shard in self.manifest.shards:
            yield from read_rows(self.folder, self.manifest, shard)

    def languages_in(self, number: int) -> list[tuple[str, ...]]:
        return languages_in(self.folder, self.manifest, self.manifest.shards[number])

    def read(self, index: int, with_image: bool = True) -> Pair:
        """Sample `index` with its encoded image, or b"" in its place, and all its captions.

        Raises:
            UnusableSample: a member cannot be read, is too large or not what the index says.
            UserError: the shard's index is not the one that the manifest describes, or the shard cannot be
                read, also when it was tried again. This is never counted as a bad sample: which samples a
                run sees must not depend on the machine.
            OSError: likewise, but it is the machine that lacks something (descriptors, a disk that works).
        """
        number, row = self.locate(index)
        for wait in RETRY_WAITS:
            try:
                return self._read(number, row, with_image)
            except OSError:
                self.files.close()  # a network disk may have other files of these names now (ESTALE)
                time.sleep(wait)
        try:
            return self._read(number, row, with_image)
        except OSError as error:
            raise_if_of_machine(error)
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}), also when tried again; `mmalign data "
                "verify` says more"
            ) from None

    def _read(self, number: int, row: int, with_image: bool) -> Pair:
        shard, starts_S = self.manifest.shards[number], self.starts[number]
        with opened(self.folder, shard.index, self.files) as descriptor:
            facts = read_row(descriptor, starts_S, row, self.folder.location(shard.index))
        try:
            with opened(self.folder, shard.tar, self.files, wait=False) as descriptor:
                if descriptor is not None:
                    return read_pair(
                        partial(os.pread, descriptor), facts, self.manifest, with_image
                    )
            if (pair := self._read_range(shard, facts, with_image)) is not None:
                return pair
            with opened(self.folder, shard.tar, self.files) as descriptor:
                return read_pair(partial(os.pread, descriptor), facts, self.manifest, with_image)
        except UnusableSample as error:
            tar = self.folder.location(shard.tar)
            raise UnusableSample(error.reason, error.detail, tar, facts["key"]) from None
        except OSError as error:
            error.filename = error.filename or self.folder.location(shard.tar)
            raise

    def _read_range(self, shard: Shard, row: dict[str, Any], with_image: bool) -> Pair | None:
        """A sample of a shard at a URL, by one request; None if the complete shard has to decide."""
        assert not isinstance(self.folder, LocalFolder)
        extent = sample_extent(row, self.manifest, with_image)
        if extent is None:
            return None
        first, size = extent
        data = self.folder.fetch_range(shard.tar, first, size)
        if data is None:
            return None

        def read(count: int, offset: int) -> bytes:
            return data[offset - first : offset - first + count]

        try:
            return read_pair(read, row, self.manifest, with_image)
        except UnusableSample:
            # Bytes may change on their way. Only a shard whose sha256 is right says that a sample is damaged.
            return None

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the shard that holds sample `index`, and the sample's row in it."""
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        return number, index - int(self.first[number])

    def prefetch(self, numbers: Iterable[int], by_range: bool = False) -> None:
        """Announce shards that will be read; `by_range`: so few samples that the tars are not downloaded."""
        shards = [self.manifest.shards[number] for number in numbers]
        names = ((s.index,) if by_range else (s.index, s.tar) for s in shards)
        self.folder.prefetch(chain.from_iterable(names), [s.tar for s in shards if by_range])

    def close(self) -> None:
        self.files.close()


def sample_extent(
    row: dict[str, Any], manifest: Manifest, with_image: bool = True
) -> tuple[int, int] | None:
    """First byte and number of bytes of a sample's members in its tar.

    None if they are far apart, too large, without checksums (in indexes of 0.1.0), or the row is invalid.
    """
    try:
        suffix = manifest.captions.partition(":")[0]
        members = [row[name] for name in (suffix, *(["image"] if with_image else []))]
        bounds = [(int(offset), int(offset) + int(size)) for _, offset, size, _crc32 in members]
    except (KeyError, TypeError, ValueError):
        return None
    first, last = min(start for start, _ in bounds), max(stop for _, stop in bounds)
    size = sum(stop - start for start, stop in bounds)
    is_close = last - first <= size + MOST_BETWEEN and size <= MAX_IMAGE_BYTES + MAX_JSON_BYTES
    return (first, last - first) if is_close and first >= 0 else None


def read_pair(
    read: ReadBytes, row: dict[str, Any], manifest: Manifest, with_image: bool = True
) -> Pair:
    """The sample that an index row describes, from its tar; errors as `ShardSet.read`."""
    origin = manifest.captions
    suffix = origin.partition(":")[0]
    most = MAX_TEXT_BYTES if suffix == "txt" else MAX_JSON_BYTES
    content = parse_member(suffix, _read_member(read, row.get(suffix), most))
    found, fields = captions_in(content, origin), caption_fields(content, origin)
    if "captions" in row:  # numbers of those that were chosen (`mmalign data select`)
        try:
            found = [found[number] for number in row["captions"]]
            fields = [fields[number] for number in row["captions"]]
        except (IndexError, TypeError):
            raise UnusableSample("index") from None
    # Languages come from the index, because the rules that found them may not be repeatable.
    if len(found) != len(row["langs"]):
        raise UnusableSample("caption", "another number of captions than the index says")
    # The fields of a JSON that others wrote may have other meanings.
    facts = content if origin == OWN_CAPTIONS and isinstance(content, dict) else {}
    return Pair(
        key=row["key"],
        image=_read_member(read, row["image"], MAX_IMAGE_BYTES) if with_image else b"",
        captions=tuple(
            Caption(lang, text, field)
            for lang, (text, _), field in zip(row["langs"], found, fields, strict=True)
        ),
        picture=row["picture"],
        split=str(facts.get("split") or manifest.split),
        source=str(facts.get("source") or manifest.name),
        license=str(facts.get("license") or "unknown"),
        attribution=facts.get("attribution"),
    )


def _read_member(read: ReadBytes, extent: Any, most: int) -> bytes:
    """The bytes of a member; `extent` is what an index row says of it."""
    try:
        suffix, offset, size, *crc32 = extent
        if size > most:
            raise UnusableSample("too large", f".{suffix}: {size} bytes, over {most}")
        data = read(size, offset)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError):  # the row was written by somebody else
        raise UnusableSample("index") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # which an offset that no file has gives
            raise
        raise UnusableSample("read error", str(error.strerror)) from None
    if len(data) != size:
        raise UnusableSample("cut off", f".{suffix}")
    # Data sets that were built before there were checksums are read without that check.
    if crc32 and zlib.crc32(data) != crc32[0]:
        raise UnusableSample("checksum", f".{suffix}")
    return data


def captions_in(content: str | dict[str, Any], origin: str) -> list[tuple[str, str | None]]:
    """The captions of a sample, each with its language if its member says it.

    Args:
        content: what the `.txt` or `.json` member holds.
        origin: `txt`: all of it is one caption; `json:FIELD` or `json:FIELD,FIELD`: the field is a text, or
            a list of texts or of {"lang", "text"}.

    Raises:
        UnusableSample: a caption does not have this format.
    """
    entries = _entries(content, origin)
    if len(entries) > MAX_CAPTIONS:
        raise UnusableSample("caption", f"{len(entries)} captions, over {MAX_CAPTIONS}")
    return [_caption(entry) for _, entry in entries]


def caption_fields(content: str | dict[str, Any], origin: str) -> list[str]:
    """The field of each of `captions_in`: of the JSON if `origin` has several, or what the caption says."""
    return [field for field, _ in _entries(content, origin)]


def _entries(content: str | dict[str, Any], origin: str) -> list[tuple[str, Any]]:
    if isinstance(content, str):
        return [("", content)]
    whole = origin.partition(":")[2]
    names = whole.split(",") if whole not in content else [whole]
    found = []
    for name in names:
        value = content.get(name)
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            said = entry.get("field") if isinstance(entry, dict) else None
            field = name if len(names) > 1 else said if isinstance(said, str) else ""
            # Of several fields some may be empty.
            if len(names) == 1 or not isinstance(entry, str) or entry.strip():
                found.append((field, entry))
    return found


def _caption(entry: Any) -> tuple[str, str | None]:
    fields = entry if isinstance(entry, dict) else {"text": entry}
    text, lang = fields.get("text"), fields.get("lang")
    if not isinstance(text, str) or not isinstance(lang, str | None) or "\0" in text:
        raise UnusableSample("caption")
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise UnusableSample("caption too long", f"{len(text)} characters")
    if not is_utf8(text):
        raise UnusableSample("not UTF-8")
    return text, lang


def is_utf8(text: str) -> bool:
    """Whether a text has bytes: JSON, and names of files, can hold half of a surrogate pair."""
    return re.search("[\ud800-\udfff]", text) is None


def parse_member(suffix: str, data: bytes) -> str | dict[str, Any]:
    """What a `txt` or `json` member holds: a text, or an object."""
    try:
        text = data.decode("utf-8-sig")  # editors put a byte order mark before a text
        content = text if suffix == "txt" else json.loads(text)
    except UnicodeDecodeError:
        raise UnusableSample("not UTF-8") from None
    except (ValueError, RecursionError):
        raise UnusableSample("json") from None
    if not isinstance(content, str if suffix == "txt" else dict):
        raise UnusableSample("json")
    return content


def picture_id(picture: str) -> int:
    """64 bits for an identity (`picture` of an index)."""
    # Half of a surrogate pair is in indexes of older versions only.
    digest = hashlib.blake2b(picture.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def is_content_hash(picture: str) -> bool:
    """Whether an identity is the sha256 of an image, which holds in every data set."""
    return _SHA256.fullmatch(picture) is not None
