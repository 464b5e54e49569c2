"""The probes of an export are what open_clip and every decoder leave alone; those of the tests are odd."""

import io
import unicodedata

import ftfy
import numpy as np
import regex
from PIL import Image
from probe_cases import DIRTY_TEXTS, clean_texts, image_cases, upright

from mmalign.data.images import decode
from mmalign.export.probes import TEXTS, probe_images

# Scripts of living use in Unicode; `regex` knows which one a letter belongs to.
SCRIPTS = """
    Latin Greek Cyrillic Georgian Armenian Hebrew Arabic Devanagari Bengali Gurmukhi Gujarati Oriya
    Tamil Telugu Kannada Malayalam Sinhala Thai Lao Myanmar Khmer Tibetan Han Katakana Hangul Ethiopic
    Cherokee Yi Nko Ol_Chiki Adlam Tifinagh Chakma
"""


def scripts_in(texts: list[str]) -> int:
    everything = " ".join(texts)
    return sum(bool(regex.search(rf"\p{{{script}}}", everything)) for script in SCRIPTS.split())


def test_texts_are_of_many_scripts_and_of_all_lengths() -> None:
    assert scripts_in(list(TEXTS)) >= 15 and scripts_in(clean_texts()) >= 30
    for texts in (list(TEXTS), clean_texts()):
        lengths = [len(text) for text in texts]
        assert len(set(texts)) == len(texts)
        assert min(lengths) == 0 and 1 in lengths and sum(length > 3000 for length in lengths) >= 2


def test_clean_texts_are_what_open_clip_leaves_alone() -> None:
    for text in [*TEXTS, *clean_texts()]:
        assert unicodedata.is_normalized("NFC", text)
        assert text == " ".join(text.split()) == ftfy.fix_text(text)
    fixed = [" ".join(ftfy.fix_text(text).split()) for text in DIRTY_TEXTS]
    assert sum(a != b for a, b in zip(DIRTY_TEXTS, fixed, strict=True)) > len(DIRTY_TEXTS) / 2


def test_images_are_of_every_mode_orientation_and_format() -> None:
    for images, modes, turns in (
        (probe_images(), {"RGB", "L", "P"}, {6}),
        (
            [case.data for case in image_cases()],
            {"RGB", "L", "LA", "P", "1", "I;16", "CMYK", "RGBA"},
            set(range(1, 9)),
        ),
    ):
        opened = [Image.open(io.BytesIO(data)) for data in images]
        assert modes <= {image.mode for image in opened}
        assert turns <= {image.getexif().get(0x0112) for image in opened}
        assert {image.format for image in opened} == {"PNG", "JPEG", "WEBP"}
    assert probe_images() == probe_images()


def test_only_transparent_images_have_other_pixels_elsewhere() -> None:
    def differs(data: bytes) -> bool:
        (theirs,) = upright([data])
        return not np.array_equal(np.asarray(decode(data)), np.asarray(theirs.convert("RGB")))

    cases = image_cases()
    assert not any(map(differs, probe_images()))
    assert [case.name for case in cases if not case.is_transparent and differs(case.data)] == []
    assert sum(case.is_transparent and differs(case.data) for case in cases) >= 4
