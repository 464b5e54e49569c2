"""Mutated inputs, seeded: pictures, captions and metadata rows, configuration files.

    valid picture -> EXIF, ICC, XMP, chunks, frames or mode changed -> decode -> its pixels, or a refusal
    valid table   -> cells or bytes changed -> data build or data index -> its captions, or a refusal
    valid YAML    -> values, keys or bytes changed -> validation -> a configuration, or a refusal

Every outcome must be a sample that equals the unchanged one where the mutation does not touch it, a sample
that is counted by its reason, or a UserError. Other outcomes are counted, and named with their seed:

    tracebacks     any exception but a UserError
    hangs          a case that takes more than 20 seconds of the processor
    silent_losses  other pixels, other captions, rows that are neither delivered nor counted, numbers in a
                   configuration that are not finite

The last line is one JSON object with the figures.

With `--damage CASES` shards are damaged instead, and mmalign's reader is compared with webdataset's.
Six kinds: truncation, bit flips, zeroed bytes, splices with another shard, duplicated members, random bytes
over a header. In every second case the shard is indexed before the damage, and a reader has it open while it
is damaged; in the other cases it is damaged before `mmalign data index`. Shards have the layout of
img2dataset (keys begin with the number of the shard) and are written by Python's tarfile.

    crashes         any exception except a refusal
    wrong_pairs     an image and a caption that do not belong together, or bytes that were never there;
                    after indexing, also any byte that changed
    unnamed_losses  a sample of the shard that is not delivered, whose key is in no refusal, and of which
                    neither the bytes nor the position where they were removed are in a reported range

No reader can detect a byte of a member that changed before the first checksum; such samples are counted as
"changed". A splice that cuts both shards exactly between two members leaves a valid tar and cannot be
detected either, so it is not drawn. webdataset has no index; its losses count as silent if its handler was
not called for the shard.

    python benchmarks/fuzz.py [--short] [--only pictures:17]
    python benchmarks/fuzz.py --damage 1000 [--seed 0]
"""

import argparse
import contextlib
import csv
import faulthandler
import io
import json
import math
import os
import random
import re
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image, ImageCms
from pyarrow import Table, parquet

from mmalign.core.config import load_config, validate
from mmalign.core.errors import UserError
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.recipe import RecipeConfig, build
from mmalign.data.shards.index import REFUSED, index
from mmalign.data.shards.manifest import read_manifest
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.shards.scan import Rules
from mmalign.data.stream.image_features import plain_view
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.suite import SuiteConfig
from mmalign.study.config import StudyConfig
from mmalign.text.benchmark import BenchmarkConfig
from mmalign.text.jobs import read_job
from mmalign.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
SECONDS = 20
ROWS = 8  # of a table; half of them are mutated
TEXTS = (
    *(
        "",
        " ",
        "\t",
        "\ufeff",
        "\x00",
        "a\x00b",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "a,b",
        '"',
        '""',
        'a 32"',
    ),
    *(
        '"I love',
        "'",
        "\\",
        "\\n",
        "a\u2028b",
        "\u200b",
        "\u202eabc",
        "e\u0301" * 50,
        "🧑‍🚀",
        "漢字",
        "\x1b[31m",
    ),
    *(
        "\ud800",
        "a\udfffb",
        "x" * 30_000,
        "nan",
        "1e400",
        "null",
        "None",
        "[]",
        "{}",
        "=1+1",
        "<b>",
        "%s",
        "{x}",
    ),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**31,
        2**64,
        -(2**63) - 1,
        1e308,
        math.inf,
        -math.inf,
        math.nan,
    ),
    *(
        "",
        " ",
        "x",
        "\x00",
        "null",
        "1e-3",
        "../..",
        "x" * 5000,
        "ünïcode",
        [],
        [[]],
        {},
        {"x": 1},
        [None],
        ["x", 1],
    ),
)


class Hang(BaseException):
    """A case that took too long; no handler of `Exception` may stop it."""


class Silent(Exception):
    """An outcome that is wrong without a word."""


def expect(is_right: Any, words: str) -> None:
    if not is_right:
        raise Silent(words)


# Pictures


def exif_block(rng: random.Random) -> bytes:
    """A TIFF block of a few tags, some of a wrong type, count or offset."""
    order = rng.choice("<>")
    tags = [(0x0112, 3, 1, struct.pack(order + "HH", rng.randint(1, 8), 0))]
    for _ in range(rng.randrange(6)):
        tag = rng.choice(
            (0x0100, 0x010F, 0x0112, 0x011A, 0x0128, 0x0132, 0x8769, 0x8825, 0x9286, 0xA005, 0x927C)
        )
        kind, count = (
            rng.choice((1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 99)),
            rng.choice((0, 1, 2, 4, 2**31)),
        )
        tags.append(
            (
                tag,
                kind,
                count,
                struct.pack(order + "I", rng.choice((0, 8, 26, 38, 2**20, 2**32 - 1))),
            )
        )
    rng.shuffle(tags)
    body = struct.pack(order + "H", len(tags) + rng.choice((0, 0, 0, 5)))
    body += b"".join(
        struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in tags
    )
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + body
    return scramble(block + struct.pack(order + "II", 0, 2) + rng.randbytes(rng.randrange(40)), rng)


def scramble(data: bytes, rng: random.Random) -> bytes:
    """In half of the cases as it is, else with bytes changed, cut off or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 0, 0, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    return bytes(
        changed[: rng.randrange(1, len(changed) + 1)] if changed and rng.random() < 0.1 else changed
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, rng: random.Random) -> bytes:
    """Ancillary chunks of any content behind the header; the pixels stay."""
    kinds = (
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"eXIf",
        b"tIME",
        b"gAMA",
        b"cHRM",
        b"pHYs",
        b"sBIT",
        b"bKGD",
        b"hIST",
        b"iCCP",
    )
    chunks = b""
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice((*kinds, b"sRGB", b"sPLT", b"cICP", b"mDCv", b"prVt"))
        content = rng.randbytes(rng.choice((0, 1, 4, 9, 32, 300)))
        text = b"key\0" + rng.choice((b"", b"\0", b"\0\0\0\0")) + zlib.compress(b"x" * 99)
        chunks += png_chunk(kind, rng.choice((content, text)))
    return png[:33] + chunks + png[33:]


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


def sixteen_bits(pixel_HW: np.ndarray, rng: random.Random) -> bytes:
    """A grey PNG of 16 bits, in some cases with one grey level that is transparent."""
    height, width = pixel_HW.shape
    lines = b"".join(
        b"\0" + (257 * row.astype(">u2")).tobytes()
        for row in pixel_HW.astype(np.uint32).astype("u2")
    )
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    hole = png_chunk(b"tRNS", struct.pack(">H", 3)) if rng.random() < 0.3 else b""
    data = png_chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + header + hole + data + png_chunk(b"IEND", b"")


def mutated_picture(rng: random.Random) -> tuple[bytes, list[np.ndarray]]:
    """An encoded picture, and the pixels that it may have."""
    size = rng.randint(1, 40), rng.randint(1, 40)
    pixel_HWC = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3)
    image = Image.fromarray(pixel_HWC)
    kind = rng.choice(("JPEG", "PNG", "WEBP"))
    plain = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    what = rng.choice(("exif", "icc", "xmp", "chunks", "frames", "mode", "16 bits"))
    if what == "16 bits":
        data = sixteen_bits(pixel_HWC[..., 0], rng)
        return data, [np.repeat(pixel_HWC[..., :1], 3, 2)]
    if what == "frames":
        others = [
            Image.effect_noise(image.size, 99).convert("RGB") for _ in range(rng.randint(1, 3))
        ]
        kind = rng.choice(("PNG", "WEBP", "GIF"))
        options = {"lossless": True} if kind == "WEBP" else {}
        data = save(image, kind, save_all=True, append_images=others, **options)
        return data, [] if kind == "GIF" else [pixel_HWC]
    if what == "mode":
        kind = "PNG" if rng.random() < 0.7 else "JPEG"
        mode = rng.choice(("1", "L", "LA", "P", "RGBA") if kind == "PNG" else ("L", "CMYK"))
        changed = image.convert(mode)
        if mode == "RGBA":
            changed.putalpha(rng.choice((0, 128, 255)))
        data = save(
            changed, kind, **({"progressive": True, "quality": 95} if kind == "JPEG" else {})
        )
        shown = Image.open(io.BytesIO(data))
        if "A" in mode:
            shown = shown.convert("RGBA")
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        return data, [np.array(shown.convert("RGB"))]
    reference = np.array(Image.open(io.BytesIO(save(image, kind, **plain))).convert("RGB"))
    if what == "chunks":
        data = with_chunks(save(image, "PNG"), rng)
        return data, turned(pixel_HWC) if b"eXIf" in data else [pixel_HWC]
    if what == "exif":
        block = exif_block(rng) if rng.random() < 0.9 else rng.randbytes(rng.randrange(1, 60))
        prefix = b"Exif\0\0" if rng.random() < 0.8 or kind == "JPEG" else b""
        return save(image, kind, exif=prefix + block, **plain), turned(reference)
    if what == "icc":
        profile = ImageCms.ImageCmsProfile(
            ImageCms.createProfile(rng.choice(("sRGB", "LAB", "XYZ")))
        )
        block = scramble(profile.tobytes(), rng) or b"x"
        return save(image, kind, icc_profile=block, **plain), [reference]
    xmp = scramble(
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>',
        rng,
    )
    if kind == "PNG":
        return png_with_xmp(save(image, kind), xmp), turned(reference)
    return save(image, kind, xmp=xmp or b"x", **plain), turned(reference)


def png_with_xmp(png: bytes, xmp: bytes) -> bytes:
    return png[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + png[33:]


def turned(pixel_HWC: np.ndarray) -> list[np.ndarray]:
    """The pixels in all orientations: which one a mutated block asks for is not known."""
    both = (pixel_HWC, pixel_HWC[:, ::-1])
    return [np.rot90(one, quarters) for one in both for quarters in range(4)]


def picture(rng: random.Random, scratch: Path) -> None:
    data, right = mutated_picture(rng)
    try:
        pixel_HWC = np.array(decode(data))
        view = plain_view(8)(data, np.random.default_rng(0))
    except UndecodableImage:
        return
    expect(right, "a format that is not read was decoded")
    expect(tuple(view.shape) == (8, 8, 3), "the preprocessed picture has another shape")
    # JPEGs differ by rounding between decoders.
    near = (
        np.abs(pixel_HWC.astype(int) - one).max() <= 3
        for one in right
        if one.shape == pixel_HWC.shape
    )
    expect(any(near), "other pixels than those of the unchanged picture")


# Captions and metadata rows


def words(rng: random.Random) -> str:
    """A text that people's files hold, or a part of one."""
    return rng.choice(("", "a ", "red ball ")) + rng.choice(TEXTS) + rng.choice(("", " b", " dog"))


def as_file(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as the file's format holds them; what it cannot hold raises."""
    if path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = ({**row, "captions": [{"lang": row["lang"], "text": row["text"]}]} for row in rows)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)


def caption_rows(rng: random.Random, scratch: Path) -> None:
    """Eight rows, of which half have another text or field; in every fourth case bytes of the file change."""
    kind = rng.choice((".csv", ".tsv", ".parquet", ".jsonl", ".tar"))
    rows = [
        {"id": f"{n}", "image": f"{n}.png", "lang": "en", "text": f"caption {n}"}
        for n in range(ROWS)
    ]
    mutated = {
        n: rng.choice(("text", "text", "lang", "image", "id"))
        for n in rng.sample(range(ROWS), ROWS // 2)
    }
    for n, field in mutated.items():
        rows[n][field] = words(rng)
    for n in range(ROWS):
        (scratch / f"{n}.png").write_bytes(save(Image.new("RGB", (8, 8), (n, n, n)), "PNG"))
    raw = rng.random() < 0.25
    path = scratch / ("pairs.jsonl" if kind == ".jsonl" else f"c{kind}")
    try:
        write_tar(path, rows, scratch) if kind == ".tar" else as_file(path, rows)
    except (UnicodeError, csv.Error, ValueError):  # no file can hold this
        return
    if raw:
        path.write_bytes(scramble(path.read_bytes(), rng))
    delivered, refused = read_back(path, scratch)
    untouched = {f"caption {n}": n for n in range(ROWS) if n not in mutated and not raw}
    lost = untouched.keys() - delivered.keys()
    expect(
        len(lost) <= refused,
        f"{kind}: rows that were not changed are neither there nor counted: {sorted(lost)}",
    )
    for text, n in untouched.items():
        expect(delivered.get(text, n) == n, f"{kind}: `{text}` belongs to another picture")
    for n, field in mutated.items():
        text = rows[n]["text"]
        if field == "text" and not raw and text.strip():
            is_there = normal(text) in map(normal, delivered)
            expect(is_there or refused, f"{kind}: the caption {text[:40]!r} became another one")


def normal(text: str) -> str:
    """Without what a reader may take away: white space, and a byte order mark."""
    return " ".join(text.replace("\ufeff", " ").split())


def write_tar(path: Path, rows: list[dict[str, Any]], scratch: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n, row in enumerate(rows):
            facts = json.dumps(
                {"caption": row["text"], "lang": row["lang"], "id": row["id"]}
            ).encode()
            for suffix, data in (("png", (scratch / f"{n}.png").read_bytes()), ("json", facts)):
                info = tarfile.TarInfo(f"{n:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_back(path: Path, scratch: Path) -> tuple[dict[str, int], int]:
    """Caption -> picture of what is delivered, and how many rows were refused."""
    try:
        if path.suffix == ".tar":
            index(str(path), Rules("json:caption", "json:lang"), scratch / "out")
            folders = [scratch / "out"]
        else:
            source: dict[str, Any] = {"kind": "jsonl", "folders": [str(scratch)]}
            if path.suffix != ".jsonl":
                columns = {"text": "text", "language": "lang"}
                source = {**source, "kind": "table", "files": [path.name], "captions": columns}
            tree = {"name": "fuzz", "max_bad_fraction": 1.0, "source": source}
            build(validate(RecipeConfig, tree, "fuzz.yaml"), scratch / "out", processes=1)
            folders = [one for one in (scratch / "out").iterdir() if one.is_dir()]
    except UserError as error:
        expect(
            str(error) and "\n" not in str(error),
            f"a message of several lines: {str(error)[:200]!r}",
        )
        return {}, ROWS
    delivered, refused = {}, 0
    listed = scratch / "out" / "refused.jsonl"
    if listed.is_file():
        refused += len(listed.read_bytes().splitlines())
    for folder in folders:
        shards = ShardSet(folder)
        for number in range(len(shards)):
            try:
                pair = shards.read(number)
            except UnusableSample:
                refused += 1
                continue
            shade = decode(pair.image).getpixel((0, 0))[0]
            delivered.update({one.text: shade for one in pair.captions})
        shards.close()
    return delivered, refused


# Configuration files

CONFIGS: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    ("train/*.yaml", lambda path: load_config(RunConfig, path)),
    ("train/finetune/*.yaml", read_job),
    ("data_recipes/*.yaml", lambda path: load_config(RecipeConfig, path)),
    ("eval/study_*.yaml", lambda path: load_config(StudyConfig, path)),
    ("eval/faiss.yaml", lambda path: load_config(FaissConfig, path)),
    ("eval/[gx]*_[rx].yaml", lambda path: load_config(BenchmarkConfig, path)),
    ("eval/[bfilmswx]*[a-qs-z0-9].yaml", lambda path: load_config(SuiteConfig, path)),
)


def config_file(rng: random.Random, scratch: Path) -> None:
    pattern, read = rng.choice(CONFIGS)
    path = rng.choice(sorted(ROOT.glob(pattern)))
    lines = path.read_text(encoding="utf-8").splitlines()
    settings = [n for n, line in enumerate(lines) if ":" in line.partition("#")[0]]
    for _ in range(rng.randint(1, 2)):
        n = rng.choice(settings)
        key, _, value = lines[n].partition(":")
        new = rng.choice(VALUES)
        as_yaml = (
            {math.inf: ".inf", -math.inf: "-.inf"}.get(new) if isinstance(new, float) else None
        )
        as_yaml = as_yaml or (".nan" if new != new else json.dumps(new))
        lines[n] = rng.choice(
            (
                *[f"{key}: {as_yaml}"] * 16,
                *(
                    f"{key}s:{value}",
                    f"{key}",
                    "",
                    f"{lines[n]}\n{lines[n]}",
                    f"{key}: &a [*a]",
                    f"{key}: &a {{b: *a}}",
                ),
                *(
                    f"\t{lines[n]}",
                    f"{key}: !!python/name:os.system {value}",
                    f"{key}: *none",
                    f"{key}: '",
                    f" {lines[n]}",
                ),
                *(
                    f"{key}: 2001-99-99",
                    f"{key}: 0o9",
                    f"{key}: 1_0",
                    f"{key}:\n  <<: {{x: 1}}",
                    f"? {key}\n:{value}",
                ),
            )
        )
    data = "\n".join(lines).encode()
    target = scratch / path.name
    target.write_bytes(scramble(data, rng) if rng.random() < 0.3 else data)
    try:
        config = read(target)
    except UserError as error:
        expect(
            str(error) and "\n" not in str(error),
            f"a message of several lines: {str(error)[:200]!r}",
        )
        return
    expect(is_finite(config.model_dump()), "a number that is not finite was accepted")


def is_finite(tree: Any) -> bool:
    if isinstance(tree, dict | list | tuple):
        return all(map(is_finite, tree.values() if isinstance(tree, dict) else tree))
    return not isinstance(tree, float) or math.isfinite(tree)


FAMILIES: dict[str, tuple[int, int, Callable[[random.Random, Path], None]]] = {
    # cases, mutated things in a case
    "pictures": (20_000, 1, picture),
    "captions": (1_250, ROWS // 2, caption_rows),
    "configs": (2_000, 1, config_file),
}


def run_case(family: str, seed: int) -> str | None:
    """None, or the kind of the fault and where it was raised."""

    def stop(*_: Any) -> None:
        raise Hang

    # Seconds of the processor: on a busy machine a case may wait.
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # A lock that is never released uses none, and a loop in C sees no signal: the process ends.
    faulthandler.dump_traceback_later(60 * SECONDS, exit=True)
    fault: BaseException | None = None
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                FAMILIES[family][2](random.Random(f"{family} {seed}"), Path(name))
        except (Exception, Hang) as error:
            fault = error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
    if fault is None or isinstance(fault, Hang):
        return fault and "hangs"
    if isinstance(fault, Silent):
        return f"silent_losses {fault}"
    stack = traceback.extract_tb(fault.__traceback__, limit=-40)
    place = [one for one in stack if "/mmalign/" in one.filename][-1:] or stack[-1:]
    where = f"{type(fault).__name__} at {Path(place[0].filename).name}:{place[0].lineno}"
    # Names and numbers differ from case to case.
    message = re.sub(r"/\S+|\d+", "_", str(fault))
    return f"tracebacks {where}: {message[:80]!r}"


# Damaged shards

SAMPLES = 12
BLOCK = 512
RULES = Rules("txt", "en")
Delivered = dict[str, tuple[bytes, str]]


@dataclass(frozen=True)
class Member:
    """A member of an undamaged shard: its bytes are at `offset`, its header is at `start`."""

    key: str
    suffix: str
    start: int
    offset: int
    size: int

    @property
    def stop(self) -> int:
        return self.offset + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Shard:
    """An undamaged shard and its contents."""

    data: bytes
    members: list[Member]
    pairs: Delivered

    @property
    def boundaries(self) -> set[int]:
        return {m.start for m in self.members} | {m.stop for m in self.members}


@dataclass(frozen=True)
class Damaged:
    """A corrupted shard in pieces: their positions in the undamaged shard (None: from elsewhere) and their
    bytes."""

    pieces: list[tuple[int | None, bytes]]

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where bytes of the undamaged shard are now, and the positions where bytes were removed."""
        position, kept, behind = 0, 0, 0
        for origin, data in self.pieces:
            if origin is not None:
                if kept < stop and origin > start:
                    yield position, position
                first, last = max(start, origin), min(stop, origin + len(data))
                if first < last:
                    yield position + first - origin, position + last - origin
                kept = origin + len(data)
                behind = position + len(data)
            position += len(data)
        if kept < stop:
            yield behind, behind


def make_shard(number: int, rng: random.Random) -> Shard:
    """Twelve images of noise, so that no two members have the same size or bytes."""
    tar, pairs = io.BytesIO(), Delivered()
    members = []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for place in range(SAMPLES):
            key = f"{number:05d}{place:04d}"
            size = (rng.randrange(104, 136), rng.randrange(104, 136))
            picture = io.BytesIO()
            Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(
                picture, "JPEG", quality=90
            )
            text = f"caption of {key} " + "".join(
                rng.choices("abcdefgh éü漢字", k=rng.randrange(40, 400))
            )
            pairs[key] = picture.getvalue(), text
            facts = json.dumps({"key": key, "caption": text, "status": "success"})
            for suffix, data in (
                ("jpg", picture.getvalue()),
                ("json", facts.encode()),
                ("txt", text.encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                start = tar.tell()
                writer.addfile(info, io.BytesIO(data))
                members.append(Member(key, suffix, start, start + BLOCK, len(data)))
    return Shard(tar.getvalue(), members, pairs)


def truncate(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    return Damaged([(0, shard.data[: rng.randrange(1, shard.members[-1].stop)])])


def flip_bits(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    data = bytearray(shard.data)
    for _ in range(rng.randint(1, 16)):
        data[rng.randrange(shard.members[-1].stop)] ^= 1 << rng.randrange(8)
    return Damaged([(0, bytes(data))])


def zero(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Up to 64 KiB of zeros; in half of the cases complete blocks."""
    unit = rng.choice((1, BLOCK))
    start = rng.randrange(shard.members[-1].stop) // unit * unit
    count = min(rng.randint(1, 128 * BLOCK) // unit * unit + unit, len(shard.data) - start)
    return Damaged([(0, shard.data[:start] + bytes(count) + shard.data[start + count :])])


def splice(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Continue with another shard, or insert a part of it; in half of the cases cut at block boundaries."""
    unit = rng.choice((1, BLOCK))
    while True:
        cut, entry = (rng.randrange(len(s.data)) // unit * unit for s in (shard, other))
        if cut not in shard.boundaries or entry not in other.boundaries:
            break
    if rng.random() < 0.5:
        return Damaged([(0, shard.data[:cut]), (None, other.data[entry:])])
    part = other.data[entry : entry + rng.randint(1, 64) * unit]
    return Damaged([(0, shard.data[:cut]), (None, part), (cut, shard.data[cut:])])


def duplicate(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Repeat one to six members, between any two members."""
    first = rng.randrange(len(shard.members))
    last = min(first + rng.randint(1, 6), len(shard.members)) - 1
    copy = shard.data[shard.members[first].start : shard.members[last].stop]
    at = rng.choice(sorted(shard.boundaries))
    return Damaged([(0, shard.data[:at]), (None, copy), (at, shard.data[at:])])


def break_header(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    start = rng.choice(shard.members).start + rng.randrange(BLOCK)
    noise = rng.randbytes(rng.choice((1, 2, 8, 64, BLOCK)))
    return Damaged([(0, shard.data[:start] + noise + shard.data[start + len(noise) :])])


KINDS: dict[str, Callable[[Shard, Shard, random.Random], Damaged]] = {
    "truncation": truncate,
    "bit flips": flip_bits,
    "zeros": zero,
    "splices": splice,
    "duplicated members": duplicate,
    "bad headers": break_header,
}


@dataclass(frozen=True)
class Outcome:
    """What a reader returned for one damaged shard.

    Attributes:
        delivered: pairs with their keys, in order.
        keys, ranges: reported keys of samples and byte ranges of the shard.
        spoke: whether it reported anything at all.
        crash: an exception that is not a refusal.
    """

    delivered: list[tuple[str, tuple[bytes, str]]]
    keys: set[str]
    ranges: list[tuple[int, int]]
    spoke: bool
    crash: str | None = None


def read_all(shards: ShardSet) -> tuple[list[tuple[str, tuple[bytes, str]]], set[str]]:
    """(what is delivered, keys that are refused)"""
    delivered, refused = [], set()
    for number, key in enumerate(shards.keys):
        try:
            pair = shards.read(number)
            delivered.append((key, (pair.image, pair.captions[0].text)))
        except UnusableSample as error:
            refused.add(error.key)
    shards.close()
    return delivered, refused


def read_indexed(folder: Path, shard: Shard, damaged: Damaged) -> Outcome:
    """mmalign, on a shard that is damaged while a reader has it open."""
    path = folder / "00000.tar"
    path.write_bytes(shard.data)
    index(str(folder), RULES)
    shards = ShardSet(folder)
    shards.read(0)  # opens the file
    with path.open("r+b") as file:
        file.truncate(file.write(damaged.data))
    delivered, refused = read_all(shards)
    if len(damaged.data) != len(shard.data):
        try:
            read_manifest(folder)
            return Outcome(delivered, refused, [], True, "another size went unseen")
        except UserError:
            pass
    return Outcome(delivered, refused, [], bool(refused))


def read_unindexed(folder: Path, damaged: Damaged) -> Outcome:
    """mmalign, on a shard that is damaged before it is indexed."""
    (folder / "00000.tar").write_bytes(damaged.data)
    delivered, refused = [], set[str]()
    try:
        index(str(folder), RULES)
        delivered, refused = read_all(ShardSet(folder))
    except UserError:  # no sample could be used
        pass
    lines = [json.loads(line) for line in (folder / REFUSED).read_text("utf-8").splitlines()]
    keys = {line["key"] for line in lines if "key" in line} | refused
    ranges = [(line["start"], line["stop"]) for line in lines]
    return Outcome(delivered, keys, ranges, bool(lines))


def read_mmalign(folder: Path, shard: Shard, damaged: Damaged, indexed: bool) -> Outcome:
    try:
        return read_indexed(folder, shard, damaged) if indexed else read_unindexed(folder, damaged)
    except Exception as error:  # crashes are counted
        return Outcome([], set(), [], False, repr(error))


def read_webdataset(folder: Path, damaged: Damaged) -> Outcome:
    """webdataset's reader with a handler that records every error and continues."""
    path = folder / "peer.tar"
    path.write_bytes(damaged.data)
    complaints: list[BaseException] = []

    def note(error: BaseException) -> bool:
        complaints.append(error)
        return True

    delivered = []
    crash = None
    try:
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, handler=note):
            if "jpg" in sample and "txt" in sample:
                text = sample["txt"].decode("utf-8", "replace")
                delivered.append((sample["__key__"], (sample["jpg"], text)))
    except Exception as error:
        crash = repr(error)
    return Outcome(delivered, set(), [], bool(complaints), crash)


def stands_there(shard: Shard, damaged: Damaged, key: str, pair: tuple[bytes, str]) -> bool:
    """Whether the pair equals the current bytes at the positions of the sample's members."""
    data = damaged.data
    for suffix, held in (("jpg", pair[0]), ("txt", pair[1].encode())):
        member = next(m for m in shard.members if (m.key, m.suffix) == (key, suffix))
        places = list(damaged.places(member.offset, member.offset + member.size))
        if len(places) != 1 or data[places[0][0] : places[0][1]] != held:
            return False
    return True


def is_named(shard: Shard, damaged: Damaged, key: str, outcome: Outcome) -> bool:
    """Whether the key of a lost sample, or a current or former position of its bytes, is reported."""
    if key in outcome.keys:
        return True
    own = [m for m in shard.members if m.key == key]
    return any(
        start <= last and first <= stop
        for first, last in damaged.places(own[0].start, own[-1].stop)
        for start, stop in outcome.ranges
    )


def judge(
    shard: Shard, other: Shard, damaged: Damaged, outcome: Outcome, indexed: bool
) -> Counter[str]:
    """Counts of what happened to the samples of one case."""
    counts = Counter(cases=1, crashes=int(outcome.crash is not None))
    truth = shard.pairs if indexed else shard.pairs | other.pairs
    whole = set()
    for key, pair in outcome.delivered:
        if truth.get(key) == pair:
            whole.add(key)
        elif not indexed and key in shard.pairs and stands_there(shard, damaged, key, pair):
            counts["changed"] += 1
            whole.add(key)
        else:
            counts["wrong_pairs"] += 1
    lost = [key for key in shard.pairs if key not in whole]
    counts["lost"] = len(lost)
    counts["unnamed_losses"] = sum(not is_named(shard, damaged, key, outcome) for key in lost)
    counts["silent"] = 0 if outcome.spoke else len(lost)
    return counts


def run(cases: int, seed: int) -> dict[str, dict[str, Counter[str]]]:
    """Counts by reader and kind of damage."""
    rng = random.Random(seed)
    shards = [make_shard(number, rng) for number in range(8)]
    total = {
        reader: {kind: Counter[str]() for kind in KINDS} for reader in ("mmalign", "webdataset")
    }
    with tempfile.TemporaryDirectory() as scratch:
        for case in range(cases):
            kind = list(KINDS)[case % len(KINDS)]
            indexed = case // len(KINDS) % 2 == 1
            shard, other = rng.sample(shards, 2)
            damaged = KINDS[kind](shard, other, rng)
            folder = Path(scratch) / str(case)
            folder.mkdir()
            ours = read_mmalign(folder, shard, damaged, indexed)
            if ours.crash is not None:
                sys.stdout.write(f"case {case}, {kind}: {ours.crash}\n")
            peer = read_webdataset(folder, damaged)
            for reader, outcome in (("mmalign", ours), ("webdataset", peer)):
                total[reader][kind] += judge(shard, other, damaged, outcome, indexed)
            for path in folder.rglob("*"):
                if path.is_file():
                    os.truncate(path, 0)
    return total


def compare_readers(cases: int, seed: int) -> None:
    """A table, and as the last line one JSON object with mmalign's figures."""
    total = run(cases, seed)
    columns = ("cases", "crashes", "wrong_pairs", "changed", "lost", "silent")
    heads = ("cases", "crashes", "wrong", "changed", "lost", "lost silently")
    write(f"{'':<32}" + "".join(f"{head:>15}" for head in heads) + "\n")
    for reader, kinds in total.items():
        for kind, counts in kinds.items():
            cells = "".join(f"{counts[column]:>15}" for column in columns)
            write(f"{reader + ', ' + kind:<32}{cells}\n")
    ours = sum(total["mmalign"].values(), Counter[str]())
    figures = ("cases", "crashes", "wrong_pairs", "unnamed_losses")
    write(json.dumps({name: ours[name] for name in figures}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="mutated pictures, captions and configuration files"
    )
    parser.add_argument("--short", action="store_true", help="1 %% of the cases")
    parser.add_argument("--only", help="a family, or one case as family:seed")
    parser.add_argument("--damage", type=int, metavar="CASES", help="damage so many shards instead")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    options = parser.parse_args()
    if options.damage:
        compare_readers(options.damage, options.seed)
        return
    warnings.simplefilter("ignore")
    figures = dict.fromkeys((*FAMILIES, "tracebacks", "hangs", "silent_losses"), 0)
    only, _, one = (options.only or "").partition(":")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for family, (cases, of_case, _) in FAMILIES.items():
        if only not in ("", family):
            continue
        faults: Counter[str] = Counter()
        first: dict[str, int] = {}
        for seed in (
            [int(one)] if one else range(math.ceil(cases / 100) if options.short else cases)
        ):
            figures[family] += of_case
            if fault := run_case(family, seed):
                figures[fault.partition(" ")[0]] += 1
                faults[fault] += 1
                if first.setdefault(fault, seed) == seed:
                    write(f"{family}:{seed}  {fault}\n")
        for fault, count in faults.most_common():
            write(f"{family}: {count} x {fault}\n")
    write(json.dumps(figures) + "\n")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
