"""Texts and pictures that tell two encoders apart: many scripts, odd lengths, the modes that Pillow writes.

    names of languages in many languages (CLDR) -> 200 clean texts -+
    hand-written                                -> DIRTY_TEXTS     -+-> write_probes: a folder
    random pixels of a fixed seed               -> 50 pictures     -+

An export is verified on these. Clean texts are NFC without doubled spaces, because open_clip mends texts
(ftfy, white space) before its tokenizer sees them; on the dirty ones it may differ, other libraries may not.
"""

import io
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from langcodes import Language
from PIL import Image

SEED = 6
# Languages whose names CLDR knows in a script of their own; several languages for the great scripts.
LANGUAGES = (
    "en de fr vi tr sw el ru uk kk ka hy he yi ar fa ur hi mr ne bn as pa gu or ta te kn ml si th "
    "lo my km bo dz zh ja ko am ti chr ii nqo sat ff-Adlm zgh ccp"
)
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
    "cafe\u0301 au lait",  # NFD: the accent is a character of its own
    "\u1112\u1161\u11ab\u1100\u1173\u11af",  # NFD: Korean as single letters
    "two  dogs   run",
    " a space before and behind ",
    "a tab\tand a\nnew line",
    "naÃ¯ve cafÃ©",  # UTF-8 that was read as Latin-1
    "👩\u200d💻 and 👨\u200d👩\u200d👧",  # joined by U+200D
    "می\u200cخواهم",  # U+200C inside a word
    "\u200fكلب\u200f \u200edog\u200e",  # marks of the direction
    "bell\x07 and escape\x1b[0m",
    "\ufeffbyte order mark",
    "no\u00a0break, thin\u2009space",
    "ＦＵＬＬ width, ﬁne ligature",
    "&lt;b&gt; &amp;amp;",
    "“curly” ‘quotes’",
)


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    Attributes:
        name: says what is odd about it; ends in the format's suffix.
        is_transparent: pixels would show what lies behind them. mmalign lays those on white and other
            libraries do not, so vectors are not compared on them.
    """

    name: str
    data: bytes
    is_transparent: bool = False


def probe_texts() -> list[str]:
    """200 clean texts in more than 30 scripts, from nothing to far beyond 512 tokens; always the same."""
    texts = list(PLAIN)
    for number, code in enumerate(LANGUAGES.split()):
        language = Language.get(code)
        names = [Language.get(other).display_name(language) for other in NAMED]
        first, second, third = (names[(number + k) % len(names)] for k in (0, 1, 3))
        # One word, a short phrase, a line, and for every sixth language what no tower takes in whole.
        repeats = 60 if number % 6 == 0 else 1
        texts += [language.autonym(), f"{first}, {second}", f"{third}: {' '.join(names)}"]
        texts.append(" ".join([*names, language.autonym()] * repeats))
    return [unicodedata.normalize("NFC", text) for text in texts]


def probe_images() -> list[bytes]:
    """50 odd pictures as PNG, JPEG and WebP; always the same."""
    return [picture.data for picture in probe_pictures()]


def probe_pictures() -> list[Picture]:
    """The 50 pictures with their names, and which of them are transparent."""
    rng = np.random.default_rng(SEED)
    return [*_modes(rng), *_jpegs(rng), *_turned(rng), *_sizes(rng), *_transparent(rng)]


def write_probes(folder: Path) -> None:
    """Write `texts.json` (clean texts, then dirty ones) and the opaque pictures, `000.png` and on."""
    texts = json.dumps([*probe_texts(), *DIRTY_TEXTS], ensure_ascii=False)
    (folder / "texts.json").write_text(texts, encoding="utf-8")
    opaque = [picture for picture in probe_pictures() if not picture.is_transparent]
    for number, picture in enumerate(opaque):
        (folder / f"{number:03}{Path(picture.name).suffix}").write_bytes(picture.data)


def read_texts(folder: Path) -> list[str]:
    """The texts that `write_probes` wrote."""
    texts: list[str] = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return texts


def _modes(rng: np.random.Generator) -> list[Picture]:
    """One picture a mode, without a transparent pixel."""
    image = _drawn(rng, 90, 70)
    grey = image.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (70, 90), np.uint16))
    clear = Image.new("L", image.size, 255)
    return [
        Picture("rgb.png", _encoded(image, "PNG")),
        Picture("l.png", _encoded(grey, "PNG")),
        Picture("la.png", _encoded(Image.merge("LA", (grey, clear)), "PNG")),
        Picture("rgba.png", _encoded(Image.merge("RGBA", (*image.split(), clear)), "PNG")),
        Picture("palette.png", _encoded(image.quantize(64), "PNG")),
        Picture("palette_of_two.png", _encoded(image.quantize(2), "PNG", bits=1)),
        Picture("one_bit.png", _encoded(image.convert("1"), "PNG")),
        Picture("sixteen_bit.png", _encoded(deep, "PNG")),
        Picture("rgb.webp", _encoded(image, "WEBP", quality=80)),
        Picture("lossless.webp", _encoded(image, "WEBP", lossless=True)),
        Picture("rgba.webp", _encoded(image.convert("RGBA"), "WEBP", lossless=True)),
        Picture("animated.webp", _encoded(image, "WEBP", save_all=True, append_images=[grey])),
    ]


def _jpegs(rng: np.random.Generator) -> list[Picture]:
    image = _drawn(rng, 150, 110)
    return [
        Picture("fine.jpg", _encoded(image, "JPEG", quality=97, subsampling=0)),
        Picture("coarse.jpg", _encoded(image, "JPEG", quality=20)),
        Picture("progressive.jpg", _encoded(image, "JPEG", progressive=True)),
        Picture("grey.jpg", _encoded(image.convert("L"), "JPEG")),
        Picture("grey_progressive.jpg", _encoded(image.convert("L"), "JPEG", progressive=True)),
        Picture("cmyk.jpg", _encoded(image.convert("CMYK"), "JPEG", quality=90)),
        Picture("cmyk_progressive.jpg", _encoded(image.convert("CMYK"), "JPEG", progressive=True)),
        Picture("large.jpg", _encoded(_drawn(rng, 1000, 760), "JPEG", quality=85)),
    ]


def _turned(rng: np.random.Generator) -> list[Picture]:
    """Pictures whose EXIF field says how they are to be turned (orientation, tag 0x0112)."""
    image, pictures = _drawn(rng, 96, 60), []
    kinds = [("JPEG", "jpg", image, turn) for turn in range(1, 9)]
    kinds += [("JPEG", "jpg", image.convert("L"), 6), ("PNG", "png", image, 8)]
    kinds += [("WEBP", "webp", image, 3), ("JPEG", "jpg", image.convert("CMYK"), 5)]
    for kind, suffix, turned, turn in kinds:
        exif = Image.Exif()
        exif[0x0112] = turn
        name = f"turned_{turn}_{turned.mode.lower()}.{suffix}"
        pictures.append(Picture(name, _encoded(turned, kind, exif=exif)))
    return pictures


def _sizes(rng: np.random.Generator) -> list[Picture]:
    sizes = [(1, 1), (2, 3), (1, 17), (17, 1), (3000, 20), (20, 3000)]
    sizes += [(32, 32), (64, 64), (224, 224), (640, 480)]
    pictures = [
        Picture(f"{width}x{height}.png", _encoded(_drawn(rng, width, height), "PNG"))
        for width, height in sizes
    ]
    for width, height in ((1, 1), (3000, 20), (255, 257)):
        data = _encoded(_drawn(rng, width, height), "JPEG")
        pictures.append(Picture(f"{width}x{height}.jpg", data))
    return pictures


def _transparent(rng: np.random.Generator) -> list[Picture]:
    image = _drawn(rng, 80, 64)
    alpha = _drawn(rng, 80, 64).convert("L")
    soft = Image.merge("RGBA", (*image.split(), alpha))
    palette = image.quantize(32)
    red, green, blue = _first_pixel(image)
    return [
        Picture("soft.png", _encoded(soft, "PNG"), True),
        Picture("soft_la.png", _encoded(Image.merge("LA", (alpha, alpha)), "PNG"), True),
        Picture("soft.webp", _encoded(soft, "WEBP", lossless=True), True),
        Picture(
            "soft_palette.png",
            _encoded(palette, "PNG", transparency=palette.getpixel((0, 0))),
            True,
        ),
        Picture("soft_colour.png", _encoded(image, "PNG", transparency=(red, green, blue)), True),
    ]


def _first_pixel(image: Image.Image) -> tuple[int, int, int]:
    red, green, blue = np.asarray(image)[0, 0].tolist()
    return red, green, blue


def _drawn(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft shapes and some noise: edges and flat places, as photographs have them."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-24, 25, soft.shape, np.int16)
    return Image.fromarray(np.clip(soft + noise, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
