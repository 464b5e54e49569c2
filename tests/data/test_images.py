"""Decoding smaller: the same pixels from both decoders, the same refusals, upright whatever EXIF says."""

import ctypes
import errno
import io
import multiprocessing
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.data import images
from mmalign.data.images import (
    UndecodableImage,
    decode,
    open_image,
    reduced_rgb,
    reduction,
    upright_rgb,
    upright_size,
)
from mmalign.data.preprocess import Augmentation, Preprocess, see
from mmalign.data.shards.reader import UnusableSample
from mmalign.data.shards.scan import check_picture


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, image_format, **options)
    return encoded.getvalue()


def reduced(data: bytes, factor: int) -> np.ndarray:
    return reduced_rgb(Image.open(io.BytesIO(data)), data, factor)


@pytest.fixture
def without_simplejpeg() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "simplejpeg", None)
        yield patch


@pytest.mark.parametrize(
    ("sides", "factor"), [((99, 500), 1), ((200, 500), 2), ((399, 400), 2), ((900, 850), 8)]
)
def test_a_crop_keeps_the_pixels_that_are_wanted(sides: tuple[int, int], factor: int) -> None:
    assert reduction(*sides, size=100) == factor


JPEGS = {
    "colour": encode(noise(203, 155), quality=90),
    "full chroma": encode(noise(64, 41), quality=95, subsampling=0),
    "grey": encode(noise(120, 90).convert("L")),
    "progressive": encode(noise(100, 140), progressive=True),
    "CMYK": encode(noise(80, 60).convert("CMYK")),
}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", JPEGS)
def test_sides_are_divided_and_both_decoders_agree(
    name: str, factor: int, without_simplejpeg: pytest.MonkeyPatch
) -> None:
    data = JPEGS[name]
    width, height = Image.open(io.BytesIO(data)).size
    by_pillow = reduced(data, factor)
    assert by_pillow.shape == (-(-height // factor), -(-width // factor), 3)
    without_simplejpeg.undo()
    assert np.array_equal(reduced(data, factor), by_pillow)


def test_simplejpeg_takes_ordinary_jpegs_where_it_is_installed() -> None:
    pytest.importorskip("simplejpeg")
    for name, data in JPEGS.items():
        found = images._simplejpeg(Image.open(io.BytesIO(data)), data, 2)
        assert (found is None) == (name == "CMYK")


def outcome(data: bytes) -> np.ndarray | None:
    try:
        return reduced(data, 2)
    except (OSError, SyntaxError, ValueError):
        return None


def test_what_is_refused_does_not_hang_on_the_decoder(
    without_simplejpeg: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    whole = JPEGS["colour"]
    damaged = [whole[: int(n)] for n in rng.integers(len(whole) // 2, len(whole), 20)]
    for place in rng.integers(len(whole) // 4, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    damaged.append(whole + b"behind the end")
    by_pillow = [outcome(data) for data in damaged]
    without_simplejpeg.undo()
    for data, expected in zip(damaged, by_pillow, strict=True):
        found = outcome(data)
        assert (found is None) == (expected is None)
        assert found is None or np.array_equal(found, expected)
    assert 10 < sum(expected is None for expected in by_pillow) < len(damaged)


@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_picture_is_cropped_as_it_is_seen(orientation: int) -> None:
    stored = noise(320, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, exif=exif, quality=95)
    picture = Image.open(io.BytesIO(data))
    width, height = upright_size(picture)
    assert (width, height) == ((200, 320) if orientation in (5, 6, 7, 8) else (320, 200))
    box = (width / 2, 0.0, float(width), height / 2)  # the upper right quarter
    seen_HWC = see(picture, data, box, 16).numpy()

    turned = Image.open(io.BytesIO(data))
    how = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's number -> Pillow's transposition
    upright = turned.transpose(Image.Transpose(how[orientation])) if orientation in how else turned
    exact = upright.resize((16, 16), Image.Resampling.BICUBIC, box)
    assert np.abs(seen_HWC.astype(int) - np.asarray(exact, int)).mean() < 2


def test_other_formats_are_decoded_whole() -> None:
    picture = noise(60, 40)
    data = encode(picture, "PNG")
    assert np.array_equal(reduced(data, 4), np.asarray(picture))
    box = (10.0, 5.0, 50.0, 35.0)
    exact = picture.resize((20, 20), Image.Resampling.BICUBIC, box)
    seen_HWC = see(Image.open(io.BytesIO(data)), data, box, 20).numpy()
    # Pillow's boxed resize looks a little beyond the box, a crop cannot: only the rim may differ.
    difference = np.abs(seen_HWC.astype(int) - np.asarray(exact, int))
    assert difference[2:-2, 2:-2].max() <= 1


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def exif_block(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """An EXIF block of (tag, type, count, value) as written, right or wrong."""
    rows = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    head = b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries))
    return b"Exif\0\0" + head + rows + struct.pack(">I", 0) + tail


TURNED = (0x0112, 3, 1, 6 << 16)
WRONG_TYPES = [
    exif_block(
        TURNED, (0x0128, 5, 1, 38), tail=struct.pack(">II", 2, 1)
    ),  # ResolutionUnit, RATIONAL
    exif_block(TURNED, (0x0131, 3, 1, 7 << 16)),  # Software, a number
    exif_block(TURNED, (0x0100, 2, 4, 0x41414141)),  # ImageWidth, a text
    exif_block(TURNED, (0x9286, 12, 1, 4)),  # UserComment, DOUBLE
]


@pytest.mark.parametrize("exif", WRONG_TYPES)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_only_the_orientation_of_exif_is_read(exif: bytes, image_format: str) -> None:
    picture = noise(60, 40)
    straight = decode(encode(picture, image_format))
    data = encode(picture, image_format, exif=exif)
    assert same(decode(data), straight.transpose(Image.Transpose.ROTATE_270))
    for augmentation in (None, Augmentation()):
        assert Preprocess(8, augmentation)(data).shape == (8, 8, 3)
    check_picture(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"no TIFF", b"Exif\0\0no TIFF", b"Exif\0\0MM\0*\xff\xff\xff\xff", b""]
)
def test_a_picture_with_unreadable_exif_is_upright(image_format: str, exif: bytes) -> None:
    picture = noise(60, 40)
    data = encode(picture, image_format, exif=exif)
    assert same(decode(data), decode(encode(picture, image_format)))
    assert np.array_equal(reduced(data, 1), reduced(encode(picture, image_format), 1))


@pytest.mark.parametrize("error", [struct.error, TypeError, AttributeError, KeyError, IndexError])
def test_whatever_a_decoder_raises_makes_an_unusable_sample(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(noise(60, 40), "PNG")

    def fail(*_: object) -> None:
        raise error("odd")

    monkeypatch.setattr(Image.Image, "convert", fail)
    for see_it in (decode, Preprocess(8), Preprocess(8, Augmentation())):
        with pytest.raises(UndecodableImage, match="odd"):
            see_it(data)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp_HW = np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40)
    expected_HW = ramp_HW >> 8
    deep = Image.fromarray(ramp_HW)
    found_HWC = np.asarray(decode(encode(deep, "PNG")))
    assert np.array_equal(found_HWC, np.stack([expected_HW] * 3, 2))
    assert np.array_equal(reduced(encode(deep, "PNG"), 1), found_HWC)
    clear = int(ramp_HW[20, 0])
    for exif in ({}, {"exif": exif_block(TURNED)}):
        seen = decode(encode(deep, "PNG", transparency=clear, **exif))
        seen = seen.transpose(Image.Transpose.ROTATE_90) if exif else seen
        assert np.asarray(seen)[20, 0].tolist() == [255] * 3
        assert np.array_equal(np.asarray(seen)[30:], found_HWC[30:])
    wide = Image.fromarray(ramp_HW.astype(np.int32))  # as versions of Pillow open it
    assert np.array_equal(np.asarray(upright_rgb(wide)), found_HWC)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_the_machine_lacks_is_no_fault_of_an_image(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    for look in (check_picture, decode):
        with pytest.raises(type(error)):
            look(b"")


def flat(side: int, image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    """A large image of one colour: a few hundred bytes to some 100 kB."""
    encoded = io.BytesIO()
    Image.new(mode, (side, side)).save(encoded, image_format, **options)
    return encoded.getvalue()


def test_a_small_file_that_needs_much_memory_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = flat(6000, "WEBP", lossless=True, quality=0, method=0)
    assert len(data) < 3000

    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    for name in ("load", "convert", "draft", "transpose"):
        monkeypatch.setattr(Image.Image, name, fail)
    for see_it in (decode, Preprocess(8), Preprocess(8, Augmentation())):
        with pytest.raises(UndecodableImage, match="take 648000000 bytes to decode") as caught:
            see_it(data)
        assert caught.value.reason == "too many pixels"
    with pytest.raises(UnusableSample, match="648000000"):
        check_picture(data)


def peak_of_decoding(data: bytes, sent: Any) -> None:
    decode(flat(16, "PNG"))  # what is imported at a first use
    # A forked process inherits what its parent's heap keeps free, and the parent's peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    decode(data)
    sent.send(peak_memory() - before)


def peak_memory() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, glibc, fork")
@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("WEBP", "RGB", {"lossless": True, "quality": 0, "method": 0}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": bytes(16)}),
        ("PNG", "I;16", {}),
    ],
)
def test_decoding_takes_no_more_memory_than_is_expected(
    image_format: str, mode: str, options: dict[str, Any]
) -> None:
    data = flat(2500, image_format, mode, **options)
    context = multiprocessing.get_context("fork")
    received, sent = context.Pipe(duplex=False)
    child = context.Process(target=peak_of_decoding, args=(data, sent))
    child.start()
    assert received.poll(60), "the child ended without an answer"
    peak = received.recv()
    child.join()
    expected = 2500 * 2500 * images._bytes_per_pixel(open_image(data))
    assert 0.25 * expected < peak < 1.05 * expected + 4_000_000


def test_a_header_of_gigapixels_is_named_by_every_reader() -> None:
    png = bytearray(encode(noise(2, 2), "PNG"))
    png[16:24] = (20_000).to_bytes(4, "big") * 2  # its width and height, over Pillow's own limit
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    for look in (check_picture, decode):
        with pytest.raises((UnusableSample, UndecodableImage)) as caught:
            look(bytes(png))
        assert caught.value.reason == "too many pixels"
