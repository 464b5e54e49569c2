"""A safe walk over the headers of a tar: what lies where, and what is damaged, with nothing unpacked.

    file -> header? -+-> valid: the member it describes                        -> Member
                     +-> else:  the bytes up to the next valid header, if any  -> Damage

Formats: ustar, pax and GNU (POSIX.1-2017, pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar
Format"). Python's tarfile trusts what it reads: it stops without a word at a zeroed block, takes a broken
header behind the first member for the end, holds every member in memory and reads extended headers of any
size. Here whatever is no member is named with its bytes, and the walk goes on behind it. Memory does not grow
with the number of members. Links are named, never followed; directories are left out.

Three things cannot be seen in a tar alone: bytes that changed inside a member, a splice that cuts exactly
between two members, and last members of less than 10 KB in all that became zeros (they look like the padding
at the end). Checksums and counts that are kept elsewhere catch them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
RECORD = 20 * BLOCK  # common writers fill the last record with zeros
MAX_NAME_BYTES = 1024
MAX_EXTENDED_BYTES = 65_536  # of one pax or GNU header
MAX_EXTENDED = 8  # extended headers before one member
MAX_MEMBERS = 1_000_000

REASONS = {
    "bad header": "no valid tar header stands where one must",
    "cut off": "the shard ends before the member does",
    "zeros": "zeros stand where members should",
    "padding": "the bytes behind a member are not zero, so its size or its end is damaged",
    "no end mark": "the shard ends without the end mark of a tar: it may be cut off",
    "too many members": f"the shard has more than {MAX_MEMBERS} members",
    "extended header": "a pax or GNU header is damaged or too large",
    "link": "a member is a link",
    "device": "a member is a device",
    "sparse": "a member is a sparse file or of an unknown type",
    "unsafe name": "a member's name is absolute, holds `..` or a control character",
    "name too long": f"a member's name has more than {MAX_NAME_BYTES} bytes",
    "name not UTF-8": "a member's name is not UTF-8",
}
"""Why something in a tar is not used, and what that means."""

_ZEROS = bytes(BLOCK)
_MAGIC = b"ustar"
_MAGIC_AT = 257
_CHUNK = 2048 * BLOCK
_FILES = b"0\x007"  # regular, its old spelling, contiguous
_PROBLEMS = {**dict.fromkeys(b"12", "link"), **dict.fromkeys(b"346", "device")}
_DIRECTORY = ord("5")
_EXTENDED = b"xXgLK"


@dataclass(frozen=True)
class Member:
    """A member whose header is valid and whose bytes lie in the file.

    Attributes:
        name: as written, without a leading `./`; shortened where it is too long.
        start: where its first header stands (a pax header comes before the member's own).
        offset, size: its bytes.
        problem: why it must not be read, a key of REASONS; None where it may.
    """

    name: str
    start: int
    offset: int
    size: int
    problem: str | None = None

    @property
    def stop(self) -> int:
        """Where the next header should stand."""
        return _up(self.offset + self.size)


@dataclass(frozen=True)
class Damage:
    """The bytes `start` ... `stop - 1` are no member.

    Attributes:
        reason: a key of REASONS.
        name: of the member that stood there, where its header tells.
    """

    start: int
    stop: int
    reason: str
    name: str | None = None


def walk(file: BinaryIO) -> Iterator[Member | Damage]:
    """Members and damage in the order of the file, until its last byte.

    The caller may move the file's position between two steps.
    """
    size = file.seek(0, os.SEEK_END)
    position = members = 0
    while position < size:
        found = _at(file, position, size)
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
        elif found.reason == "end":
            yield from _judge_end(found.start, size)
            return
        else:
            yield found
        position = found.stop
    yield Damage(size, size, "no end mark")


def _at(file: BinaryIO, position: int, size: int) -> Member | Damage:
    """What stands at `position`; damage with the reason `end` where only zeros follow."""
    if _read(file, position, BLOCK) == _ZEROS:
        stop = _end_of_zeros(file, position, size)
        if stop == size:
            return Damage(position, size, "end")
        return Damage(position, _next_header(file, stop, size), "zeros")
    return _member_at(file, position, size)


def _judge_end(start: int, size: int) -> Iterator[Damage]:
    """Zeros up to the file's end are its end mark, unless no common writer would make so few or so many."""
    zeros = size - start
    if zeros < 2 * BLOCK:
        yield Damage(start, size, "no end mark")
    elif zeros > 2 * BLOCK and (size % RECORD or zeros >= 2 * BLOCK + RECORD):
        yield Damage(start, size, "zeros")


@dataclass(frozen=True)
class _Header:
    """The fields of one header block that matter here."""

    kind: int
    name: bytes
    size: int


def _parse(block: bytes) -> _Header | None:
    """A header block, None where it is none: no magic, another checksum, no size."""
    if len(block) < BLOCK or block[_MAGIC_AT : _MAGIC_AT + 5] != _MAGIC:
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    # The checksum's own field counts as eight spaces.
    if size is None or checksum != sum(block) - sum(block[148:156]) + 8 * 0x20:
        return None
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    if prefix and block[_MAGIC_AT + 5] == 0:  # GNU's own magic has times there
        name = prefix + b"/" + name
    return _Header(block[156], name, size)


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 where they would not do; None where neither stands there."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _member_at(file: BinaryIO, start: int, size: int) -> Member | Damage:
    """The member whose headers begin at `start`."""
    position, fields, problem = start, dict[str, bytes](), None
    for _ in range(MAX_EXTENDED + 1):
        header = _parse(_read(file, position, BLOCK))
        if header is None:
            return Damage(start, _next_header(file, position + BLOCK, size), "bad header")
        data = position + BLOCK
        if header.kind not in _EXTENDED:
            return _member(file, start, data, header, fields, problem, size)
        if data + header.size > size:
            break
        found = None
        if header.size <= MAX_EXTENDED_BYTES:
            found = _fields(header.kind, _read(file, data, header.size))
        if found is None:
            problem = "extended header"  # and so nobody knows the name of the member behind it
        fields |= found or {}
        position = _up(data + header.size)
    return Damage(start, _next_header(file, position + BLOCK, size), "extended header")


def _member(
    file: BinaryIO,
    start: int,
    data: int,
    header: _Header,
    fields: dict[str, bytes],
    problem: str | None,
    size: int,
) -> Member | Damage:
    """A member from its own header and the fields of the extended ones before it."""
    name, name_problem = _name(fields.get("path", header.name))
    problem = problem or name_problem
    length = int(fields["size"]) if "size" in fields else header.size
    if header.kind == _DIRECTORY:
        return Member(name, start, data, 0, "directory")
    if header.kind in _PROBLEMS:  # they have no bytes, whatever the size says
        return Member(name, start, data, 0, _PROBLEMS[header.kind])
    if header.kind not in _FILES or "sparse" in fields:
        problem = "sparse"
    if data + length > size:
        return Damage(start, _next_header(file, data, size), "cut off", name)
    return Member(name, start, data, length, problem)


def _name(raw: bytes) -> tuple[str, str | None]:
    """A member's name for people, and what is wrong with it."""
    if len(raw) > MAX_NAME_BYTES:
        return raw[:100].decode("utf-8", "replace"), "name too long"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace"), "name not UTF-8"
    while name.startswith("./"):
        name = name[2:]
    if name.startswith("/") or ".." in name.split("/") or any(ord(c) < 32 for c in name):
        return name, "unsafe name"
    return name, None


def _fields(kind: int, body: bytes) -> dict[str, bytes] | None:
    """What an extended header says of the member behind it: `path`, `size`, `sparse`; None: unreadable."""
    if kind == ord("L"):
        return {"path": body.split(b"\0")[0]}
    if kind in b"gK":  # for all members, or of a link: nothing that is needed here
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
    """Where the next valid header stands at or behind `position`, `size` where none does."""
    for first in range(position, size, _CHUNK):
        chunk = _read(file, first, _CHUNK)
        at = chunk.find(_MAGIC)
        while at >= 0:
            place = at - _MAGIC_AT
            if place >= 0 and place % BLOCK == 0 and _parse(chunk[place : place + BLOCK]):
                return first + place
            at = chunk.find(_MAGIC, at + 1)
    return size


def _end_of_zeros(file: BinaryIO, position: int, size: int) -> int:
    """Where the block stands that is the first with another byte than zero, `size` where none is."""
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
    """The end of the block that `position` lies in."""
    return -(-position // BLOCK) * BLOCK
