"""Encoded bytes -> upright RGB pixels: in full, or a JPEG at a fraction of its size.

    bytes -> open_image: header read, limits checked -> upright_rgb -> RGB, every pixel
    size of a crop, wanted size -> reduction: 1, 2, 4 or 8
    opened image, reduction -> reduced_rgb: simplejpeg, else Pillow -> uint8 HWC

A JPEG stores its image as frequencies of blocks of 8 x 8 pixels. Leaving out the high ones decodes a smaller
image at once (libjpeg's scaled decoding); it equals the mean of neighbouring pixels to within a few of 255.
`benchmarks/decoders.py` measures it.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from mmalign.core.errors import UserError, raise_if_of_machine
from mmalign.data.image_formats import PILLOW_NAMES

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow gives the same pixels, slower
    simplejpeg = None

MAX_PIXELS = 50_000_000
MAX_DECODED_BYTES = 550_000_000
"""Memory that decoding one image may take at its peak: a worker decodes one at a time."""
_EIGHT_OF_SIXTEEN_BITS = tuple(value >> 8 for value in range(65536))
_ORIENTATION = 0x0112  # EXIF's tag; 1, unknown and absent mean upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndecodableImage(UserError):
    """An image that cannot be used; `reason` is a key of data/reasons.py."""

    def __init__(self, detail: str, reason: str = "does not decode") -> None:
        super().__init__(detail)
        self.detail, self.reason = detail, reason


@contextmanager
def undecodable_images() -> Iterator[None]:
    """What decoding raises becomes UndecodableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata: of no use to a user
            yield
    except (UndecodableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableImage(str(error), "too many pixels") from None
    except Exception as error:  # Pillow's parsers raise many kinds of errors on broken bytes
        raise_if_of_machine(error)
        raise UndecodableImage(f"does not decode as JPEG, PNG or WebP ({error})") from None


def open_image(data: bytes) -> Image.Image:
    """An image of which only the header was read."""
    image = Image.open(io.BytesIO(data), formats=PILLOW_NAMES)
    # Before a pixel is decoded: a few kilobytes can claim gigapixels.
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise UndecodableImage(f"{size} pixels, over {MAX_PIXELS}", "too many pixels")
    needed = image.width * image.height * _bytes_per_pixel(image)
    if needed > MAX_DECODED_BYTES:
        size = f"{image.width} x {image.height} pixels of {image.format}"
        detail = f"{size} take {needed} bytes to decode, over {MAX_DECODED_BYTES}"
        raise UndecodableImage(detail, "too many pixels")
    return image


def _bytes_per_pixel(image: Image.Image) -> int:
    """What `upright_rgb` takes at its peak, as measured: the decoder's buffers and the copies after it."""
    if image.format == "WEBP":  # decoded with an alpha channel, and with the frame before
        return 18
    return 13 if _has_alpha(image) else 11


def _has_alpha(image: Image.Image) -> bool:
    # A PNG without an alpha channel may still declare one colour transparent.
    return image.mode in ("RGBA", "LA", "P", "PA") or "transparency" in image.info


def decode(data: bytes) -> Image.Image:
    """An upright RGB image from JPEG, PNG or WebP bytes; transparent parts become white.

    Raises:
        UndecodableImage: another format, damaged, or more than MAX_PIXELS pixels.
    """
    with undecodable_images():
        return upright_rgb(open_image(data))


def reduction(width: float, height: float, size: int) -> int:
    """The largest factor that leaves both sides of a crop at least `size` pixels."""
    # libjpeg-turbo has vector code for these factors only.
    return next((n for n in (8, 4, 2) if min(width, height) >= n * size), 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after its EXIF rotation; no pixel is decoded."""
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def reduced_rgb(image: Image.Image, data: bytes, factor: int) -> np.ndarray:
    """(H, W, 3) uint8, upright, of the bytes that `image` was opened from.

    A JPEG has its sides divided by `factor` (1, 2, 4 or 8), rounded up; other formats keep theirs.
    """
    pixel_HWC = _simplejpeg(image, data, factor)
    if pixel_HWC is not None:
        return pixel_HWC
    image.draft("RGB", (image.width // factor, image.height // factor))
    return np.array(upright_rgb(image))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image after its EXIF rotation as RGB; transparent parts become white."""
    # Not by ImageOps.exif_transpose: it writes the EXIF anew, which fails if a tag has a wrong type.
    orientation = _orientation(image)
    if orientation is not None:
        image = image.transpose(_TURNS[orientation])
    transparency = image.info.get("transparency")
    if image.mode.startswith("I"):
        # A grey PNG of 16 bits, which Pillow's own conversion clips to 8. Its table takes less memory than
        # arrays do, and values below 0 and above 65535 as these.
        table = list(_EIGHT_OF_SIXTEEN_BITS)
        if transparency is not None:
            table[transparency] = 255
        image = image.convert("I").point(table, "L")
        image.info.pop("transparency", None)
        return image.convert("RGB")
    if isinstance(transparency, tuple) and max(transparency) > 255:
        # Likewise: of a PNG of 3 x 16 bits, Pillow cuts the pixels to 8 bits but not this colour.
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _simplejpeg(image: Image.Image, data: bytes, factor: int) -> np.ndarray | None:
    """The same pixels from simplejpeg (libjpeg-turbo, as in Pillow); None if Pillow has to decode."""
    plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    if simplejpeg is None or not plain or _orientation(image) is not None:
        return None
    width, height = (-(-side // factor) for side in image.size)
    try:
        # The header is read twice, for microseconds: the limits were checked on what Pillow read.
        if simplejpeg.decode_jpeg_header(data)[1::-1] != image.size:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, min_height=height, min_width=width))
    except ValueError:
        # It refuses every warning of libjpeg, harmless or not. Pillow decides about these images, so that
        # what is refused does not depend on what is installed.
        return None


def _orientation(image: Image.Image) -> int | None:
    """How EXIF says that an image is to be turned, a key of _TURNS; None: it is upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
        return orientation if orientation in _TURNS else None
    except Exception:  # EXIF may be anything, and the pixels are valid all the same
        return None
