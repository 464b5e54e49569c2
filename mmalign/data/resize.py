"""Images that a build makes smaller: aspect kept, never larger, encoded as JPEG.

decoded image, its bytes -> larger than the limit? -> smaller JPEG, or the bytes as they are
"""

import io

import pydantic
from PIL import Image

from mmalign.core.config import Section


class Resize(Section):
    """Which images are made smaller. Training never sees more pixels than the image tower takes."""

    shortest: int | None = pydantic.Field(default=None, ge=16)
    """Pixels of the shorter side; an image that has no more stays as it is. `--resize N` sets it."""
    longest: int | None = pydantic.Field(default=None, ge=16)
    """Pixels of the longer side, likewise."""
    quality: int = pydantic.Field(default=90, ge=1, le=100)
    """Of the JPEG."""

    @pydantic.model_validator(mode="after")
    def _one(self) -> "Resize":
        if (self.shortest is None) == (self.longest is None):
            raise ValueError("give either `shortest` or `longest`")
        return self


def resize(image: Image.Image, data: bytes, config: Resize) -> bytes:
    """The bytes of an image within the limit.

    Args:
        image: upright, RGB, as `images.decode` makes it of `data`.
    """
    side = min(image.size) if config.shortest is not None else max(image.size)
    limit = config.shortest or config.longest or side
    if side <= limit:
        return data
    width, height = (max(1, round(length * limit / side)) for length in image.size)
    encoded = io.BytesIO()
    # As evaluation resizes. Chroma in full: captions name colours, and text in images is small.
    smaller = image.resize((width, height), Image.Resampling.BICUBIC)
    smaller.save(encoded, "JPEG", quality=config.quality, subsampling=0)
    return encoded.getvalue()
