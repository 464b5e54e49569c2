"""Untrusted tars: written with Python's tarfile, and byte by byte where tarfile would refuse."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from shard_sets import make_image

BLOCK = 512
Members = list[tuple[str, bytes]]


def sample(number: int, key: str | None = None, caption: str | None = None) -> Members:
    """The members of one sample as img2dataset writes them."""
    key = key or f"{number:09d}"
    caption = caption or f"caption {number} of a dog ñ 漢"
    facts = {
        "caption": caption,
        "key": key,
        "status": "success",
        "LANGUAGE": ("en", "sw")[number % 2],
    }
    return [
        (f"{key}.jpg", make_image(number, "JPEG")),
        (f"{key}.json", json.dumps(facts).encode()),
        (f"{key}.txt", caption.encode()),
    ]


def samples(count: int) -> Members:
    return [member for number in range(count) for member in sample(number)]


def tar_of(members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A complete tar of regular files."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tar_format) as writer:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return tar.getvalue()


def header(name: str | bytes, size: int = 0, kind: bytes = b"0", link: str = "") -> bytes:
    """One header block with a correct checksum, even if its fields are invalid."""
    raw = name.encode() if isinstance(name, str) else name
    fields = (raw, b"0000644", b"0000000", b"0000000", b"%011o" % size, b"00000000000")
    sizes = (100, 8, 8, 8, 12, 12)
    block = b"".join(f[:n].ljust(n, b"\0") for f, n in zip(fields, sizes, strict=True))
    block += b" " * 8 + kind + link.encode().ljust(100, b"\0") + b"ustar\x0000"
    block = block.ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name: str | bytes, data: bytes, kind: bytes = b"0") -> bytes:
    """One member: its header and its bytes, padded."""
    return header(name, len(data), kind) + data + bytes(-len(data) % BLOCK)


END = bytes(2 * BLOCK)


def pixel_bomb(side: int = 13_000) -> bytes:
    """A 1-bit PNG of side x side pixels in about 20 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    rows = zlib.compress(bytes((side // 8 + 2) * side), 9)
    size = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class RunsCode:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def write_many_members(path: Path, count: int) -> None:
    """A tar of empty images, each with its own key."""
    template = bytearray(header(f"{0:09d}.jpg"))
    plain = sum(template[:148]) + sum(template[156:]) + 8 * 0x20
    digits = sum(b"000000000")
    with path.open("wb") as file:
        for number in range(count):
            name = b"%09d" % number
            template[:9] = name
            template[148:156] = b"%06o\0 " % (plain - digits + sum(name))
            file.write(template)
        file.write(END)
