"""From an opened picture to upright RGB pixels: whole, or a JPEG at a fraction of its size.

    picture (Pillow, header read) -> upright_rgb -> RGB, every pixel
    crop, wanted size -> reduction: 1, 2, 4 or 8
    picture, reduction -> reduced_rgb: simplejpeg, else Pillow -> uint8 HWC

A JPEG holds its picture as frequencies of blocks of 8 x 8 pixels. Leaving out the high ones decodes a smaller
picture at once (libjpeg's scaled decoding), which is the mean of neighbouring pixels to within a few of 255.
The factors 2, 4 and 8 are the fast ones; others have no vector code in libjpeg-turbo.

Both decoders are libjpeg-turbo and give the same pixels. simplejpeg takes what is free of warnings and has
the usual colours; Pillow judges the rest, so that what is refused does not hang on what is installed.
`benchmarks/decoders.py` has the figures.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow gives the same pixels, slower
    simplejpeg = None

_ORIENTATION = 0x0112  # EXIF's tag; 1, unknown and absent stand for upright
_TURNED = range(2, 9)
_ON_ITS_SIDE = range(5, 9)


def reduction(width: float, height: float, size: int) -> int:
    """The largest fast factor that leaves both sides of a crop at least `size` pixels."""
    return next((n for n in (8, 4, 2) if min(width, height) >= n * size), 1)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture after its EXIF rotation; no pixel is decoded."""
    width, height = picture.size
    return (height, width) if _orientation(picture) in _ON_ITS_SIDE else (width, height)


def reduced_rgb(picture: Image.Image, data: bytes, factor: int) -> np.ndarray:
    """(H, W, 3) uint8, upright, of the bytes that `picture` was opened from.

    Args:
        factor: 1, 2, 4 or 8: a JPEG has its sides divided by it, rounded up; other formats keep theirs.

    Raises:
        OSError, SyntaxError, ValueError: Pillow cannot decode it.
    """
    pixel_HWC = _simplejpeg(picture, data, factor)
    if pixel_HWC is not None:
        return pixel_HWC
    picture.draft("RGB", (picture.width // factor, picture.height // factor))
    return np.array(upright_rgb(picture))


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture after its EXIF rotation as RGB; transparency is laid on white."""
    picture = ImageOps.exif_transpose(picture)
    # A PNG without an alpha channel may still call one colour transparent.
    if picture.mode in ("RGBA", "LA", "P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _simplejpeg(picture: Image.Image, data: bytes, factor: int) -> np.ndarray | None:
    """The same pixels from simplejpeg; None where the picture is none for it."""
    plain = picture.format == "JPEG" and picture.mode in ("RGB", "L")
    if simplejpeg is None or not plain or _orientation(picture) in _TURNED:
        return None
    width, height = (-(-side // factor) for side in picture.size)
    try:
        # Twice the header, for microseconds: the limits were checked on Pillow's reading of it.
        if simplejpeg.decode_jpeg_header(data)[1::-1] != picture.size:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, min_height=height, min_width=width))
    except ValueError:  # a warning of libjpeg, harmless or not
        return None


def _orientation(picture: Image.Image) -> Any:
    """What EXIF says, which may be anything."""
    return picture.getexif().get(_ORIENTATION)
