"""The probes are as many and as odd as they say, and the same every time."""

import io
import unicodedata
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex
from PIL import Image, ImageOps

from mmalign.data.images import decode
from mmalign.export.probes import (
    DIRTY_TEXTS,
    Picture,
    probe_images,
    probe_pictures,
    probe_texts,
    read_texts,
    write_probes,
)

# Scripts of living use in Unicode; `regex` knows which one a letter belongs to.
SCRIPTS = """
    Latin Greek Cyrillic Georgian Armenian Hebrew Arabic Devanagari Bengali Gurmukhi Gujarati Oriya
    Tamil Telugu Kannada Malayalam Sinhala Thai Lao Myanmar Khmer Tibetan Han Katakana Hangul Ethiopic
    Cherokee Yi Nko Ol_Chiki Adlam Tifinagh Chakma
"""


def test_there_are_200_clean_texts_in_30_scripts() -> None:
    texts = probe_texts()
    assert len(texts) == len(set(texts)) == 200
    assert texts == probe_texts()
    everything = " ".join(texts)
    found = [script for script in SCRIPTS.split() if regex.search(rf"\p{{{script}}}", everything)]
    assert len(found) >= 30, sorted(set(SCRIPTS.split()) - set(found))


def test_texts_are_empty_short_and_far_too_long() -> None:
    lengths = [len(text) for text in probe_texts()]
    assert min(lengths) == 0 and lengths.count(1) >= 3
    assert sum(length > 3000 for length in lengths) >= 8
    assert sum(length < 200 for length in lengths) > 150


def test_clean_texts_are_what_open_clip_leaves_alone() -> None:
    for text in probe_texts():
        assert unicodedata.is_normalized("NFC", text)
        assert text == " ".join(text.split())
        assert ftfy.fix_text(text) == text
    mended = [" ".join(ftfy.fix_text(text).split()) for text in DIRTY_TEXTS]
    assert sum(a != b for a, b in zip(DIRTY_TEXTS, mended, strict=True)) > len(DIRTY_TEXTS) / 2


def test_there_are_50_pictures_of_every_mode() -> None:
    pictures = probe_pictures()
    assert len(pictures) == 50
    assert len({picture.name for picture in pictures}) == 50
    assert probe_images() == [picture.data for picture in pictures]
    opened = [Image.open(io.BytesIO(picture.data)) for picture in pictures]
    modes = {image.mode for image in opened}
    assert modes >= {"RGB", "L", "LA", "P", "1", "I;16", "CMYK", "RGBA"}
    assert {image.getexif().get(0x0112) for image in opened} >= set(range(1, 9))
    assert {image.size for image in opened} >= {(1, 1), (3000, 20), (20, 3000)}
    assert {image.format for image in opened} == {"PNG", "JPEG", "WEBP"}


def upright(data: bytes) -> np.ndarray:
    """As a user of another library opens a picture."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("picture", probe_pictures(), ids=lambda picture: picture.name)
def test_opaque_pictures_have_the_same_pixels_everywhere(picture: Picture) -> None:
    if not picture.is_transparent:
        assert np.array_equal(np.asarray(decode(picture.data)), upright(picture.data))


def test_transparent_pictures_show_their_background() -> None:
    transparent = [picture for picture in probe_pictures() if picture.is_transparent]
    differ = [
        not np.array_equal(np.asarray(decode(picture.data)), upright(picture.data))
        for picture in transparent
    ]
    assert sum(differ) >= 4


def test_written_probes_are_the_texts_and_the_opaque_pictures(tmp_path: Path) -> None:
    write_probes(tmp_path)
    assert read_texts(tmp_path) == [*probe_texts(), *DIRTY_TEXTS]
    written = [path.read_bytes() for path in sorted(tmp_path.glob("[0-9]*"))]
    assert written == [one.data for one in probe_pictures() if not one.is_transparent]
