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

Damaged shards are the matter of damage.py.

    python benchmarks/fuzz.py [--short] [--only pictures:17]
"""

import argparse
import contextlib
import csv
import faulthandler
import io
import json
import math
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from pyarrow import Table, parquet

from mmalign.core.config import load_config, validate
from mmalign.core.errors import UserError
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.index import index
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description="mutated pictures, captions and configuration files"
    )
    parser.add_argument("--short", action="store_true", help="1 %% of the cases")
    parser.add_argument("--only", help="a family, or one case as family:seed")
    options = parser.parse_args()
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
