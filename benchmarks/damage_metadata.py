"""Valid pictures with broken metadata, for benchmarks/damage.py: EXIF, ICC, XMP, comments, PNG chunks.

    JPEG, PNG and WebP with all metadata of their formats -> the bytes of one to three blocks damaged, lengths
    (and, of PNG, most checksums) right -> tar -> index -> read -> decoded as training and evaluation do

A picture has to look as without its metadata, but for one of the eight turns that EXIF can say, or to be
refused by name.
"""

import io
import json
import random
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from mmalign.core.errors import UserError
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.preprocess import Augmentation, Preprocess
from mmalign.data.shards.foreign_tars import REFUSED
from mmalign.data.shards.index import index
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.shards.scan import Rules

Block = tuple[bytes, bytes]  # what names it (a marker, or a type) and its bytes
FORMATS = ("JPEG", "PNG", "WEBP")
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description/></rdf:RDF></x:xmpmeta>'


def make_exif(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)  # orientation
    exif[0x010F], exif[0x0132], exif[0x9286] = "maker", "2026:01:01 00:00:00", rng.randbytes(60)
    exif[0x011A], exif[0x0128] = 72.0, 2  # resolution
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (48.0, 12.0, 30.0)
    details = exif.get_ifd(0x8769)
    details[0x9000], details[0x927C], details[0x829A] = b"0232", rng.randbytes(200), 0.01
    return exif.tobytes()


def make_blocks(image_format: str, rng: random.Random) -> list[Block]:
    exif, icc = make_exif(rng), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if image_format == "JPEG":
        return [
            (b"\xe1", b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")),
            (b"\xe1", b"http://ns.adobe.com/xap/1.0/\0" + _XMP),
            (b"\xe2", b"ICC_PROFILE\0\1\1" + icc),
            (b"\xe2", b"MPF\0" + exif.removeprefix(b"Exif\0\0")),
            (
                b"\xed",
                b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", 8) + b"\x1c\2\x78\0\3abc",
            ),
            (b"\xfe", b"a comment"),
        ]
    if image_format == "PNG":
        packed = zlib.compress(icc)
        return [
            (b"eXIf", exif.removeprefix(b"Exif\0\0")),
            (b"iCCP", b"name\0\0" + packed),
            (b"tEXt", b"Comment\0a text"),
            (b"zTXt", b"Comment\0\0" + zlib.compress(b"a text " * 50)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP),
            (b"tIME", struct.pack(">HBBBBB", 2026, 1, 1, 0, 0, 0)),
            (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
            (b"gAMA", struct.pack(">I", 45455)),
            (b"cHRM", struct.pack(">8I", *[31270] * 8)),
        ]
    return [(b"ICCP", icc), (b"EXIF", exif), (b"XMP ", _XMP)]


def damage(block: Block, rng: random.Random) -> list[Block]:
    """One block in another form: other bytes, fewer, many more, none, or twice."""
    name, body = block
    changed, how = bytearray(body), rng.randrange(6)
    if how == 0:
        for _ in range(rng.randint(1, 16)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif how == 1:  # where lengths, counts and offsets stand
        at = rng.randrange(max(1, len(changed) - 4))
        changed[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
    elif how == 2:
        del changed[rng.randrange(len(changed)) :]
    elif how == 3:
        changed[rng.randrange(len(changed)) :] = rng.randbytes(rng.choice((10, 3000, 60_000)))
        del changed[65_000:]
    elif how == 4:
        changed = bytearray(rng.randbytes(len(changed)))
    else:
        return [block, (name, bytes(reversed(body)))]
    return [(name, bytes(changed))]


def assemble(
    image: Image.Image, image_format: str, blocks: list[Block], rng: random.Random
) -> bytes:
    """A file of this format whose pixels are those of the image, with these blocks."""
    encoded = io.BytesIO()
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 90}
    image.save(encoded, image_format, **options)
    data = encoded.getvalue()
    if image_format == "JPEG":
        parts = (b"\xff" + mark + struct.pack(">H", len(b) + 2) + b for mark, b in blocks)
        return data[:2] + b"".join(parts) + data[2:]
    if image_format == "PNG":
        chunks = []
        for kind, body in blocks:
            checksum = zlib.crc32(kind + body) ^ (rng.randrange(40) == 0)
            chunks.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))
        return data[:33] + b"".join(chunks) + data[33:]  # after IHDR
    flags = 0x20 | 0x08 | 0x04  # ICC, EXIF, XMP
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in image.size)
    head = b"VP8X" + struct.pack("<II", 10, flags) + size
    pixels = data[12:]
    wrapped = [kind + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for kind, b in blocks]
    icc = [one for one in wrapped if one.startswith(b"ICCP")]
    rest = [one for one in wrapped if not one.startswith(b"ICCP")]
    body = b"WEBP" + head + b"".join(icc) + pixels + b"".join(rest)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def looks_like(seen: Image.Image, image: Image.Image) -> bool:
    turns = [image, *(image.transpose(turn) for turn in Image.Transpose)]
    return any(
        seen.size == turned.size and np.array_equal(np.asarray(seen), np.asarray(turned))
        for turned in turns
    )


def run_case(folder: Path, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Counts of one shard with six pictures, and what crashed."""
    counts, crashes = Counter[str](cases=1), list[str]()
    plain: dict[str, Image.Image] = {}
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(6):
            key, image_format = f"{number:05d}", FORMATS[number % 3]
            drawn = Image.frombytes("RGB", (9, 7), rng.randbytes(189)).resize((48, 36))
            plain[key] = decode(assemble(drawn, image_format, [], rng))
            blocks = [[block] for block in make_blocks(image_format, rng)]
            for at in rng.sample(range(len(blocks)), rng.randint(1, min(3, len(blocks)))):
                blocks[at] = damage(blocks[at][0], rng)
            whole = [block for several in blocks for block in several]
            data = assemble(drawn, image_format, whole, rng)
            for suffix, body in ((image_format.lower(), data), ("txt", key.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    named = set()
    try:
        index(str(folder), Rules("txt", "en"))
        shards = ShardSet(folder)
    except UserError:
        shards = None
    except Exception as error:
        return counts + Counter(crashes=1), [repr(error)]
    refused = (folder / REFUSED).read_text(encoding="utf-8").splitlines()
    named |= {json.loads(line).get("key") for line in refused}
    delivered = set()
    for number, key in enumerate(shards.keys if shards else ()):
        try:
            pair = shards.read(number)
            for see in (Preprocess(16), Preprocess(16, Augmentation())):
                see(pair.image, np.random.default_rng(0))
            is_right = looks_like(decode(pair.image), plain[key])
            counts["wrong_pairs"] += not is_right or pair.captions[0].text != key
            delivered.add(key)
        except (UndecodableImage, UnusableSample):
            named.add(key)
        except Exception as error:
            crashes.append(f"{key}: {error!r}")
    counts["crashes"] += len(crashes)
    lost = plain.keys() - delivered
    counts["lost"], counts["unnamed_losses"] = len(lost), len(lost - named)
    if shards:
        shards.close()
    return counts, crashes
