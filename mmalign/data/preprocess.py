"""From encoded pictures to the image tower's input.

    bytes -> header checks -> decode (RGB, upright) -> crop -> resize -> uint8 HWC -> stacked, uint8 BCHW

Evaluation decodes in full and resizes in one plain step of Pillow (bicubic), so that every library whose
preprocessing is such a squash sees the same bytes and computes the same vectors. Training, where speed counts
and views are random anyway, decodes a JPEG no larger than the crop needs (decoders.py), cuts the crop out of
that and resizes with torch. A pixel then differs by about 1 of 255 in the mean.

Pixels stay bytes until the image tower normalises them: a worker hands over a quarter of the memory, and
the arithmetic is done once for a batch, on the tower's device. Limits are checked on the header, before a
pixel is decoded: a few kilobytes can claim gigapixels. Random crops and flips (training) draw from the
generator that the caller passes, never from global state.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.decoders import reduced_rgb, reduction, upright_rgb, upright_size
from mmalign.data.image_formats import PILLOW_NAMES

MAX_PIXELS = 50_000_000
PIXELS = "decoded in full, one bicubic step"
"""What evaluation sees of a picture; vectors that are kept on disk were made of the same, or are refused."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop, in pixels."""


class Augmentation(Section):
    """Random views for training. The default changes nothing."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Area of the random crop, as a share of the picture's (Inception crop, arXiv 1409.4842)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Width over height of the random crop, relative to the picture's own."""
    flip: bool = False
    """Mirror every second picture; wrong where captions tell left from right or pictures hold text."""

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> "Augmentation":
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"`{name}` must be [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError("`crop_scale` is a share of the area: at most 1")
        return self


class UndecodableImage(UserError):
    """An image that cannot be used; `reason` as data/shards/reader.py counts it."""

    reason = "does not decode"


class TooManyPixels(UndecodableImage):
    """An image whose header says that it is too large to be decoded."""

    reason = "too many pixels"


@contextmanager
def _undecodable() -> Iterator[None]:
    """What decoding raises becomes UndecodableImage."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UndecodableImage):
            raise
        raise UndecodableImage(f"does not decode as JPEG, PNG or WebP ({error})") from None


def _open(data: bytes) -> Image.Image:
    """A picture whose header is read and within the limits."""
    picture = Image.open(io.BytesIO(data), formats=PILLOW_NAMES)
    if picture.width * picture.height > MAX_PIXELS:
        raise TooManyPixels(f"{picture.width} x {picture.height} pixels, over {MAX_PIXELS}")
    return picture


def decode(data: bytes) -> Image.Image:
    """An upright RGB picture from JPEG, PNG or WebP bytes; transparency is laid on white.

    Raises:
        UndecodableImage: another format, damaged, or more than MAX_PIXELS pixels.
    """
    with _undecodable():
        return upright_rgb(_open(data))


@dataclass(frozen=True)
class Preprocess:
    """Encoded bytes -> (size, size, 3) uint8, RGB.

    Without a crop the whole picture is squeezed to the square: captions may speak of what stands at its edge,
    and a centre crop would cut that off.

    Attributes:
        size: height and width, in pixels.
        augmentation: how training looks at pictures, with its short cuts; None: evaluation, exact.
    """

    size: int
    augmentation: Augmentation | None = None

    def __call__(self, data: bytes, rng: np.random.Generator | None = None) -> Tensor:
        """Decode and prepare one picture; `rng` is needed where augmentation is on."""
        if self.augmentation is None:
            # What torchvision's and timm's resize of a Pillow picture come down to.
            square = decode(data).resize((self.size, self.size), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(square))
        return self._view(data, self.augmentation, rng)

    def _view(
        self, data: bytes, augmentation: Augmentation, rng: np.random.Generator | None
    ) -> Tensor:
        with _undecodable():
            picture = _open(data)
            width, height = upright_size(picture)
            box, flip = (0.0, 0.0, float(width), float(height)), False
            if rng is not None:
                box = random_crop(width, height, augmentation, rng)
                flip = augmentation.flip and bool(rng.integers(2))
            seen_HWC = see(picture, data, box, self.size)
        return seen_HWC.flip(1) if flip else seen_HWC


def see(picture: Image.Image, data: bytes, box: Box, size: int) -> Tensor:
    """(size, size, 3) uint8: a crop of a picture, which is decoded no larger than the crop needs.

    Args:
        picture: opened from `data`, not decoded.
        box: in pixels of the whole upright picture; rounded to pixels of what is decoded.

    Raises:
        OSError, SyntaxError, ValueError: the picture cannot be decoded.
    """
    left, top, right, bottom = box
    width, height = upright_size(picture)
    factor = reduction(right - left, bottom - top, size)
    pixel_HWC = torch.from_numpy(reduced_rgb(picture, data, factor))
    rows = _pixels(top / height, bottom / height, pixel_HWC.shape[0])
    columns = _pixels(left / width, right / width, pixel_HWC.shape[1])
    crop_1CHW = pixel_HWC[rows, columns].permute(2, 0, 1)[None]
    # Bytes in, bytes out: what Pillow computes, with vector code where torch has it.
    seen_1CHW = F.interpolate(crop_1CHW, (size, size), mode="bicubic", antialias=True)
    return seen_1CHW[0].permute(1, 2, 0)


def _pixels(first: float, last: float, count: int) -> slice:
    """The pixels between two shares of a side that has `count`; one at least."""
    start = min(round(first * count), count - 1)
    return slice(start, max(start + 1, round(last * count)))


def stack_pictures(pixels_HWC: Sequence[Tensor]) -> Tensor:
    """(B, 3, H, W) from B pictures of (H, W, 3), in the memory format channels-last, which costs nothing.

    In a loader's worker it lies in shared memory at once, so that it is not copied again on its way out.
    """
    image_BHWC: Tensor = default_collate(list(pixels_HWC))
    return image_BHWC.permute(0, 3, 1, 2)


def random_crop(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> Box:
    """A box inside the picture, of random area, shape and place."""
    area = rng.uniform(*augmentation.crop_scale)
    low, high = np.log(augmentation.crop_ratio)
    ratio = float(np.exp(rng.uniform(low, high))) if augmentation.crop_scale[0] < 1 else 1.0
    crop_width = min(1.0, (area * ratio) ** 0.5) * width
    crop_height = min(1.0, (area / ratio) ** 0.5) * height
    left = rng.uniform(0, width - crop_width) if crop_width < width else 0.0
    top = rng.uniform(0, height - crop_height) if crop_height < height else 0.0
    return left, top, left + crop_width, top + crop_height
