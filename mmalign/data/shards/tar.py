"""A safe walk over the headers of a tar: which bytes are members, and what is damaged; nothing is unpacked.

    file -> header? -+-> valid: the member it describes                        -> Member
                     +-> else:  the bytes up to the next valid header, if any  -> Damage

Formats: ustar, pax and GNU (POSIX.1-2017, pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar
Format"). Python's tarfile stops silently at a zeroed block, takes a broken header after the first member for
the end, and reads extended headers of any size. Here every byte that does not belong to a member is reported,
and the walk continues after it. Links are reported, never followed; directories are left out.

Three things cannot be seen in a tar alone: bytes that changed inside a member, a cut exactly between two
members, and last members of less than 10 KB in all that became zeros (they look like the padding at the end).
Checksums and counts that are kept elsewhere find them.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from mmalign.data.names import fault_of

BLOCK = 512
RECORD = 20 * BLOCK  # common writers fill the last record with zeros
MAX_NAME_BYTES = 1024
MAX_EXTENDED_BYTES = 65_536  # of one pax or GNU header
MAX_EXTENDED = 8  # extended headers before one member
MAX_MEMBERS = 1_000_000

_ZEROS = bytes(BLOCK)
_MAGIC = b"ustar"
_MAGIC_AT = 257  # its offset in a header
_CHUNK = 2048 * BLOCK  # bytes that are searched at a time
# The type of a member, byte 156 of its header.
_FILES = b"0\x007"  # regular, its old spelling, contiguous
_WITHOUT_BYTES = {
    **dict.fromkeys(b"12", "link"),
    **dict.fromkeys(b"346", "device"),
    ord("5"): "directory",
}
_EXTENDED = b"xXgLK"


@dataclass(frozen=True)
class Member:
    """A member whose header is valid and whose bytes are in the file."""

    name: str  # without a leading `./`; shortened if it is too long
    start: int  # offset of its first header (a pax header comes before the member's own)
    offset: int  # of its bytes
    size: int
    problem: str | None = None  # why it must not be read, a key of REASONS

    @property
    def stop(self) -> int:
        """Where the next header should be: the end of the member's last block."""
        return _up(self.offset + self.size)


@dataclass(frozen=True)
class Damage:
    """The bytes `start` ... `stop - 1` do not belong to a member."""

    start: int
    stop: int
    reason: str  # a key of REASONS
    name: str | None = None  # of the member that was there, if its header says it


class HashedFile(FileIO):
    """A file that is hashed while it is read, also where positions are skipped: one pass over the disk."""

    def __init__(self, path: Path | int, closefd: bool = True) -> None:
        super().__init__(path, closefd=closefd)
        self._sha256 = hashlib.sha256()
        self._hashed = 0  # bytes from the beginning

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        size = max(0, os.fstat(self.fileno()).st_size - start) if size is None or size < 0 else size
        self._hash(start)
        data = os.pread(self.fileno(), size, start)
        if start <= self._hashed < start + len(data):
            self._sha256.update(memoryview(data)[self._hashed - start :])
            self._hashed = start + len(data)
        self.seek(start + len(data))
        return data

    def hexdigest(self) -> str:
        """The sha256 of the complete file."""
        self._hash(os.fstat(self.fileno()).st_size)
        return self._sha256.hexdigest()

    def _hash(self, stop: int) -> None:
        """Hash what lies before `stop`."""
        while self._hashed < stop:
            data = os.pread(self.fileno(), min(_CHUNK, stop - self._hashed), self._hashed)
            if not data:
                return
            self._sha256.update(data)
            self._hashed += len(data)


def walk(file: BinaryIO) -> Iterator[Member | Damage]:
    """Members and damage in the order of the file, until its last byte.

    The caller may move the file's position between two steps.
    """
    size = file.seek(0, os.SEEK_END)
    position = members = 0
    while position < size:
        if _read(file, position, BLOCK) == _ZEROS:
            stop = _end_of_zeros(file, position, size)
            if stop == size:
                # These zeros are the end mark, unless no common writer makes so few or so many.
                zeros = size - position
                if zeros < 2 * BLOCK:
                    yield Damage(position, size, "no end mark")
                elif zeros > 2 * BLOCK and (size % RECORD or zeros >= 2 * BLOCK + RECORD):
                    yield Damage(position, size, "zeros")
                return
            found: Member | Damage = Damage(position, _next_header(file, stop, size), "zeros")
        else:
            found = _member_at(file, position, size)
        if isinstance(found, Member):
            members += 1
            if members > MAX_MEMBERS:
                yield Damage(position, size, "too many members")
                return
            if found.problem != "directory":
                yield found
            end = found.offset + found.size
            if found.stop > end and _read(file, end, found.stop - end).strip(b"\0"):
                yield Damage(end, found.stop, "padding")
        else:
            yield found
        position = found.stop
    yield Damage(size, size, "no end mark")


def _parse(block: bytes) -> tuple[int, bytes, int] | None:
    """Type, name and size in a header block, None if it is not valid: no magic, another checksum, no size."""
    if len(block) < BLOCK or block[_MAGIC_AT : _MAGIC_AT + 5] != _MAGIC:
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    # The checksum's own field counts as eight spaces.
    if size is None or checksum != sum(block) - sum(block[148:156]) + 8 * 0x20:
        return None
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    if prefix and block[_MAGIC_AT + 5] == 0:  # GNU's own magic has times there
        name = prefix + b"/" + name
    return block[156], name, size


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 for larger numbers; None if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _member_at(file: BinaryIO, start: int, size: int) -> Member | Damage:
    position, fields, problem = start, dict[str, bytes](), None
    for _ in range(MAX_EXTENDED + 1):
        header = _parse(_read(file, position, BLOCK))
        if header is None:
            return Damage(start, _next_header(file, position + BLOCK, size), "bad header")
        kind, raw_name, length = header
        data = position + BLOCK
        if kind not in _EXTENDED:
            name, name_problem = member_name(fields.get("path", raw_name))
            if kind in _WITHOUT_BYTES:  # whatever the size says
                return Member(name, start, data, 0, _WITHOUT_BYTES[kind])
            length = int(fields.get("size", length))
            if data + length > size:
                return Damage(start, _next_header(file, data, size), "cut off", name)
            if kind not in _FILES or "sparse" in fields:
                return Member(name, start, data, length, "sparse")
            return Member(name, start, data, length, problem or name_problem)
        if data + length > size:
            break
        found = None
        if length <= MAX_EXTENDED_BYTES:
            found = _fields(kind, _read(file, data, length))
        if found is None:
            problem = "extended header"  # the name of the member after it is then not known
        fields |= found or {}
        position = _up(data + length)
    return Damage(start, _next_header(file, position + BLOCK, size), "extended header")


def member_name(raw: bytes) -> tuple[str, str | None]:
    """A member's name as text, and what is wrong with it."""
    if len(raw) > MAX_NAME_BYTES:
        return raw[:100].decode("utf-8", "replace"), "name too long"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace"), "name not UTF-8"
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/") or ".." in name.split("/") or fault_of(name):
        return name, "unsafe name"
    return name, None


def _fields(kind: int, body: bytes) -> dict[str, bytes] | None:
    """What an extended header says of the member after it: `path`, `size`, `sparse`; None: unreadable."""
    if kind == ord("L"):
        return {"path": body.split(b"\0")[0]}
    if kind in b"gK":  # for all members, or the target of a link: not needed here
        return {}
    fields, position = dict[str, bytes](), 0
    while position < len(body):
        # A record is "<its own length> <key>=<value>\n".
        digits, space, _ = body[position : position + 8].partition(b" ")
        if not space or not digits.isdigit():
            return None
        stop = position + int(digits)
        record = body[position + len(digits) + 1 : stop]
        key, equals, value = record[:-1].partition(b"=")
        if stop > len(body) or not record.endswith(b"\n") or not equals:
            return None
        if key == b"path" or (key == b"size" and len(value) < 20 and value.isdigit()):
            fields[key.decode()] = value
        elif key == b"size":
            return None
        elif key.startswith(b"GNU.sparse."):
            fields["sparse"] = value
        position = stop
    return fields


def _next_header(file: BinaryIO, position: int, size: int) -> int:
    """Offset of the next valid header at or after `position`, `size` if there is none."""
    for first in range(position, size, _CHUNK):
        chunk = _read(file, first, _CHUNK)
        at = chunk.find(_MAGIC)
        while at >= 0:
            begin = at - _MAGIC_AT
            if begin >= 0 and begin % BLOCK == 0 and _parse(chunk[begin : begin + BLOCK]):
                return first + begin
            at = chunk.find(_MAGIC, at + 1)
    return size


def _end_of_zeros(file: BinaryIO, position: int, size: int) -> int:
    """Offset of the first block with another byte than zero, `size` if there is none."""
    for first in range(position, size, _CHUNK):
        chunk = _read(file, first, _CHUNK)
        rest = chunk.lstrip(b"\0")
        if rest:
            return first + (len(chunk) - len(rest)) // BLOCK * BLOCK
    return size


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _up(position: int) -> int:
    return -(-position // BLOCK) * BLOCK
