"""Texts and images that test whether two encoders agree: many scripts and lengths, every mode of Pillow.

    names of languages in many languages (CLDR) -> clean texts -+-> odd_texts
    written by hand                             -> DIRTY_TEXTS -+
    random pixels of a fixed seed               -> 50 images     -> opaque_images, and the transparent ones

Clean texts are NFC without double spaces, because open_clip normalises texts (ftfy, white space) before its
tokenizer. On dirty texts open_clip may differ; other libraries must not.
"""

import io
import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from langcodes import Language
from PIL import Image, ImageOps

# Languages whose names CLDR has in their own script; several languages for widespread scripts.
LANGUAGES = """
    en de fr vi tr sw el ru uk kk ka hy he yi ar fa ur hi mr ne bn as pa gu or ta te kn ml si th
    lo my km bo dz zh ja ko am ti chr ii nqo sat ff-Adlm zgh ccp
"""
NAMED = ("en", "ja", "ar", "sw", "ru", "hi", "zh", "el", "ko", "th", "ka", "am")
PLAIN = (
    "",
    "a",
    "7",
    "0123456789 1,000.5",
    "🦊",
    "🍎 🦊 🚗",
    "two dogs and a red ball",
    "A.B-C_D/E",
)
DIRTY_TEXTS = (
    "cafe\u0301 au lait",  # NFD: the accent is a separate character
    "\u1112\u1161\u11ab\u1100\u1173\u11af",  # NFD: Korean as single letters
    "two  dogs   run",
    " a space before and behind ",
    "a tab\tand a\nnew line",
    "naÃ¯ve cafÃ©",  # UTF-8 decoded as Latin-1
    "👩\u200d💻 and 👨\u200d👩\u200d👧",  # joined by U+200D
    "می\u200cخواهم",  # U+200C inside a word
    "\u200fكلب\u200f \u200edog\u200e",  # direction marks
    "bell\x07 and escape\x1b[0m",
    "\ufeffbyte order mark",
    "no\u00a0break, thin\u2009space",
    "ＦＵＬＬ width, ﬁne ligature",
    "&lt;b&gt; &amp;amp;",
    "“curly” ‘quotes’",
)


class Case(NamedTuple):
    """An encoded image; libraries put transparent ones on different backgrounds."""

    name: str
    data: bytes
    is_transparent: bool = False


@cache
def clean_texts() -> list[str]:
    """Texts in more than 30 scripts, from empty to far more than 512 tokens; deterministic."""
    texts = list(PLAIN)
    for number, code in enumerate(LANGUAGES.split()):
        language = Language.get(code)
        names = [Language.get(other).display_name(language) for other in NAMED]
        # For every sixth language a text that every tower truncates.
        repeats = 60 if number % 6 == 0 else 1
        texts += [language.autonym(), f"{names[number % 12]}, {names[(number + 1) % 12]}"]
        texts.append(" ".join([*names, language.autonym()] * repeats))
    return [unicodedata.normalize("NFC", text) for text in texts]


def odd_texts() -> list[str]:
    """Clean texts, then dirty ones."""
    return [*clean_texts(), *DIRTY_TEXTS]


def opaque_images() -> list[bytes]:
    return [case.data for case in image_cases() if not case.is_transparent]


def upright(encoded: list[bytes]) -> list[Image.Image]:
    """Images as opened by a user of another library: in any mode, rotated by their EXIF orientation."""
    return [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in encoded]


@cache
def image_cases() -> list[Case]:
    """50 images of every mode, format, orientation and shape; deterministic."""
    rng = np.random.default_rng(6)
    image = _drawn(rng, 90, 70)
    grey, clear = image.convert("L"), Image.new("L", image.size, 255)
    deep = Image.fromarray(rng.integers(0, 65536, (70, 90), np.uint16))
    cmyk, palette = image.convert("CMYK"), image.quantize(32)
    la, rgba = Image.merge("LA", (grey, clear)), Image.merge("RGBA", (*image.split(), clear))
    soft, soft_la = Image.merge("RGBA", (*image.split(), grey)), Image.merge("LA", (grey, grey))
    first = tuple(np.asarray(image)[0, 0].tolist())
    kept: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("rgb", image, "PNG", {}),
        ("l", grey, "PNG", {}),
        ("la", la, "PNG", {}),
        ("rgba", rgba, "PNG", {}),
        ("palette", image.quantize(64), "PNG", {}),
        ("palette_of_two", image.quantize(2), "PNG", {"bits": 1}),
        ("one_bit", image.convert("1"), "PNG", {}),
        ("lossy", image, "WEBP", {"quality": 80}),
        ("lossless", image, "WEBP", {"lossless": True}),
        ("rgba_webp", image.convert("RGBA"), "WEBP", {"lossless": True}),
        ("animated", image, "WEBP", {"save_all": True, "append_images": [grey]}),
        ("fine", image, "JPEG", {"quality": 97, "subsampling": 0}),
        ("coarse", image, "JPEG", {"quality": 20}),
        ("progressive", image, "JPEG", {"progressive": True}),
        ("grey", grey, "JPEG", {}),
        ("grey_progressive", grey, "JPEG", {"progressive": True}),
        ("cmyk", cmyk, "JPEG", {"quality": 90}),
        ("cmyk_progressive", cmyk, "JPEG", {"progressive": True}),
        ("large", _drawn(rng, 1000, 760), "JPEG", {"quality": 85}),
    ]
    turns = [(image, "JPEG", turn) for turn in range(1, 9)]
    turns += [(grey, "JPEG", 6), (image, "PNG", 8), (image, "WEBP", 3), (cmyk, "JPEG", 5)]
    for one, kind, turn in turns:
        exif = Image.Exif()
        exif[0x0112] = turn  # orientation
        kept.append((f"turned_{turn}_{one.mode}_{kind}", one, kind, {"exif": exif}))
    sizes = [(1, 1), (2, 3), (1, 17), (17, 1), (3000, 20), (20, 3000), (32, 32), (64, 64)]
    for width, height in [*sizes, (224, 224), (640, 480)]:
        kept.append((f"{width}x{height}", _drawn(rng, width, height), "PNG", {}))
    for width, height in ((1, 1), (3000, 20), (255, 257)):
        kept.append((f"{width}x{height}_jpeg", _drawn(rng, width, height), "JPEG", {}))
    transparent: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("soft", soft, "PNG", {}),
        ("soft_la", soft_la, "PNG", {}),
        ("soft_webp", soft, "WEBP", {"lossless": True}),
        ("soft_palette", palette, "PNG", {"transparency": palette.getpixel((0, 0))}),
        # Other libraries take what Pillow's conversion leaves of 16 bits, which is nearly white.
        ("sixteen_bit", deep, "PNG", {}),
        ("soft_colour", image, "PNG", {"transparency": first}),
    ]
    return [Case(name, encoded(*rest)) for name, *rest in kept] + [
        Case(name, encoded(*rest), True) for name, *rest in transparent
    ]


def _drawn(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft shapes and some noise, with edges and flat areas like photographs."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-24, 25, soft.shape, np.int16)
    return Image.fromarray(np.clip(soft + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
