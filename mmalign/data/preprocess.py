"""From encoded pictures to the image tower's input.

    bytes -> header checks -> decode (RGB, upright) -> crop -> resize -> uint8 HWC -> stacked, uint8 BCHW

Evaluation decodes in full and resizes in one plain step of Pillow (bicubic), so that every library whose
preprocessing is such a squash sees the same bytes and computes the same vectors. Training, where speed counts
and views are random anyway, takes short cuts: a JPEG is decoded smaller, and a large picture is first shrunk
by whole factors. A pixel then differs by 1 or 2 of 255 in the mean.

Pixels stay bytes until the image tower normalises them: a worker hands over a quarter of the memory, and
the arithmetic is done once for a batch, on the tower's device. Limits are checked on the header, before a
pixel is decoded: a few kilobytes can claim gigapixels. Random crops and flips (training) draw from the
generator that the caller passes, never from global state.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydantic
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmalign.config import Section
from mmalign.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
PIXELS = "decoded in full, one bicubic step"
"""What evaluation sees of a picture; vectors that are kept on disk were made of the same, or are refused."""


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
    """An image that cannot be used, with the reason."""


def decode(data: bytes, least: int | None = None) -> Image.Image:
    """An upright RGB picture from JPEG, PNG or WebP bytes; transparency is laid on white.

    Args:
        least: a JPEG may be decoded smaller (JPEG's own scaling, much faster) as long as both sides keep
            this many pixels.

    Raises:
        UndecodableImage: another format, damaged, or more than MAX_PIXELS pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableImage(f"{image.width} x {image.height} pixels, over {MAX_PIXELS}")
        if least is not None:
            image.draft("RGB", (least, least))
        image = ImageOps.exif_transpose(image)
        # A PNG without an alpha channel may still call one colour transparent.
        if image.mode in ("RGBA", "LA", "P", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UndecodableImage):
            raise
        raise UndecodableImage(f"does not decode as JPEG, PNG or WebP ({error})") from None


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
        # Twice the wanted size leaves the resize enough to work with, also inside a crop.
        image = decode(data, least=2 * self.size)
        box = (0.0, 0.0, float(image.width), float(image.height))
        flip = False
        if rng is not None:
            box = random_crop(image.width, image.height, augmentation, rng)
            flip = augmentation.flip and bool(rng.integers(2))
        if image.size != (self.size, self.size) or box != (0, 0, *image.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box, 2.0)
        pixel_HWC = np.asarray(image)
        return torch.from_numpy((pixel_HWC[:, ::-1] if flip else pixel_HWC).copy())


def stack_pictures(pixels_HWC: Sequence[Tensor]) -> Tensor:
    """(B, 3, H, W) from B pictures of (H, W, 3), in the memory format channels-last, which costs nothing."""
    return torch.stack(list(pixels_HWC)).permute(0, 3, 1, 2)


def random_crop(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A crop box (left, top, right, bottom) inside the picture, of random area, shape and place."""
    area = rng.uniform(*augmentation.crop_scale)
    low, high = np.log(augmentation.crop_ratio)
    ratio = float(np.exp(rng.uniform(low, high))) if augmentation.crop_scale[0] < 1 else 1.0
    crop_width = min(1.0, (area * ratio) ** 0.5) * width
    crop_height = min(1.0, (area / ratio) ** 0.5) * height
    left = rng.uniform(0, width - crop_width) if crop_width < width else 0.0
    top = rng.uniform(0, height - crop_height) if crop_height < height else 0.0
    return left, top, left + crop_width, top + crop_height
