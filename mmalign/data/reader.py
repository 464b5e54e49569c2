"""Reading samples of shards by number, through the index: no tar is walked at run time.

    data set folder -> ShardSet: keys, pictures and languages of all samples in memory
    ShardSet.read(i) -> two ranged reads, checked -> Pair
                                                  -> UnusableSample: shard, key and reason

Only the members that the index names are touched, each under a cap, and nothing is unpacked. What is returned
is byte for byte what the index described (its crc32), or it is refused; rows of data sets that were built
before there were checksums are read without that check.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.batch import Caption, Pair
from mmalign.data import tar
from mmalign.data.shards import OWN_CAPTIONS, Manifest, Shard, read_manifest
from mmalign.errors import UserError

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

    Attributes:
        manifest: what the folder says it holds.
        keys: of the samples.
        languages: for each sample, the language of each caption, in the order of its member.
        picture_ids: (samples,) int64, equal where pictures are equal, in every data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._rows: list[tuple[int, dict[str, Any]]] = []
        for number, shard in enumerate(self.manifest.shards):
            rows = read_rows(folder, self.manifest, shard)
            self._rows += [(number, row) for row in rows]
        self.keys: list[str] = [row["key"] for _, row in self._rows]
        self.languages: list[tuple[str, ...]] = [tuple(row["langs"]) for _, row in self._rows]
        self.picture_ids = np.array([picture_id(row["picture"]) for _, row in self._rows], np.int64)
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker opens its own files.
        return {**self.__dict__, "_descriptors": {}}

    def read(self, index: int) -> Pair:
        """Sample `index` with its encoded image and all its captions.

        Raises:
            UnusableSample: a member cannot be read, is over its cap or not what the index says.
        """
        number, row = self._rows[index]
        try:
            return read_pair(self._descriptor(number), row, self.manifest)
        except UnusableSample as error:
            raise error.at(str(self.path_of(number)), row["key"]) from None

    def shard_of(self, index: int) -> str:
        """File name of the shard that holds sample `index`."""
        return self.manifest.shards[self._rows[index][0]].file

    def path_of(self, number: int) -> Path:
        """Where the tar of shard `number` lies."""
        return self.folder / self.manifest.shards[number].tar

    def _descriptor(self, number: int) -> int:
        if number not in self._descriptors:
            try:
                self._descriptors[number] = os.open(self.path_of(number), os.O_RDONLY)
            except OSError as error:
                raise UnusableSample("read error", str(error.strerror)) from None
        return self._descriptors[number]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}


def read_rows(folder: Path, manifest: Manifest, shard: Shard) -> list[dict[str, Any]]:
    """The index of one shard, a row a sample.

    Raises:
        UserError: the index is missing, or not the one that the manifest describes.
    """
    path = folder / shard.index
    mend = "make the data set again, or index its shards with `mmalign data index`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    facts = manifest.files.get(shard.index)
    if facts is not None and hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise UserError(f"{path}: damaged, its bytes are not those of the manifest; {mend}")
    try:
        # By bytes: a key may hold what text mode takes for a line end.
        rows = [json.loads(line) for line in data.splitlines()]
        for row in rows:
            row["key"], row["image"], row["picture"], row["langs"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: not an index of mmalign shards; {mend}") from None
    if len(rows) != shard.samples:
        raise UserError(f"{path}: has {len(rows)} samples, the manifest says {shard.samples}")
    return rows


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
