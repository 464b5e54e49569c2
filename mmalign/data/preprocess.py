"""From encoded images to the image tower's input.

    bytes -> images.py: RGB, upright -> crop -> resize -> uint8 HWC -> stacked, uint8 BCHW

Evaluation decodes in full and resizes in one step of Pillow (bicubic), so that every library whose
preprocessing is such a resize sees the same bytes and computes the same embeddings. Training, where speed
counts and views are random, decodes a JPEG no larger than the crop needs, crops that and resizes with
torch. A pixel then differs by about 1 of 255 on average.

Pixels stay bytes until the image tower normalizes them: a worker hands over a quarter of the memory, and
the arithmetic is done once per batch, on the tower's device. Random crops and flips (training) use the
generator that the caller passes, never global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from mmalign.core.config import Section
from mmalign.data.images import (
    decode,
    open_image,
    reduced_rgb,
    reduction,
    undecodable_images,
    upright_size,
)

PIXELS = "decoded in full, one bicubic step"
"""What evaluation sees of an image. Stored embeddings record it, and those of another kind are refused."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop, in pixels."""


class Augmentation(Section):
    """Random views for training. The default changes nothing."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Area of the random crop, as a fraction of the image's (Inception crop, arXiv 1409.4842)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Width over height of the random crop, relative to the image's own."""
    flip: bool = False
    """Mirror half of the images; wrong if captions say left and right, or images contain text."""

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> "Augmentation":
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"`{name}` must be [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError("`crop_scale` is a fraction of the area: at most 1")
        return self


@dataclass(frozen=True)
class Preprocess:
    """Encoded bytes -> (size, size, 3) uint8, RGB."""

    size: int  # height and width, in pixels
    # How training sees images, with its faster decoding; None: evaluation, exact.
    augmentation: Augmentation | None = None

    def __call__(self, data: bytes, rng: np.random.Generator | None = None) -> Tensor:
        """Decode and prepare one image; `rng` is needed if augmentation is on.

        Raises:
            UndecodableImage: another format, damaged, or too many pixels.
        """
        # Without a crop the entire image is resized to the square: captions may mention what is at its edge.
        if self.augmentation is None:
            # Equal to the resize of torchvision and timm for Pillow images.
            square = decode(data).resize((self.size, self.size), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(square))
        with undecodable_images():
            image = open_image(data)
            width, height = upright_size(image)
            box, flip = (0.0, 0.0, float(width), float(height)), False
            if rng is not None:
                box = random_crop(width, height, self.augmentation, rng)
                flip = self.augmentation.flip and bool(rng.integers(2))
            view_HWC = see(image, data, box, self.size)
        return view_HWC.flip(1) if flip else view_HWC


def see(image: Image.Image, data: bytes, box: Box, size: int) -> Tensor:
    """(size, size, 3) uint8: a crop of an image, which is decoded no larger than the crop needs.

    `image` was opened from `data`; `box` is in pixels of the full upright image.
    """
    left, top, right, bottom = box
    width, height = upright_size(image)
    factor = reduction(right - left, bottom - top, size)
    pixel_HWC = torch.from_numpy(reduced_rgb(image, data, factor))
    rows = _pixels(top / height, bottom / height, pixel_HWC.shape[0])
    columns = _pixels(left / width, right / width, pixel_HWC.shape[1])
    crop_1CHW = pixel_HWC[rows, columns].permute(2, 0, 1)[None]
    # uint8 in and out: the same values as Pillow's, with vector code where torch has it.
    view_1CHW = F.interpolate(crop_1CHW, (size, size), mode="bicubic", antialias=True)
    return view_1CHW[0].permute(1, 2, 0)


def _pixels(first: float, last: float, count: int) -> slice:
    """The pixels between two fractions of a side that has `count`; at least one."""
    start = min(round(first * count), count - 1)
    return slice(start, max(start + 1, round(last * count)))


def stack_images(pixels_HWC: Sequence[Tensor]) -> Tensor:
    """(B, 3, H, W) from B images of (H, W, 3), in the memory format channels-last: a view, no copy."""
    # In a loader's worker, default_collate writes to shared memory, so the batch is sent without a copy.
    image_BHWC: Tensor = default_collate(list(pixels_HWC))
    return image_BHWC.permute(0, 3, 1, 2)


def random_crop(
    width: int, height: int, augmentation: Augmentation, rng: np.random.Generator
) -> Box:
    """A box inside the image, of random area, shape and position."""
    area = rng.uniform(*augmentation.crop_scale)
    low, high = np.log(augmentation.crop_ratio)
    ratio = float(np.exp(rng.uniform(low, high))) if augmentation.crop_scale[0] < 1 else 1.0
    crop_width = min(1.0, (area * ratio) ** 0.5) * width
    crop_height = min(1.0, (area / ratio) ** 0.5) * height
    left = rng.uniform(0, width - crop_width) if crop_width < width else 0.0
    top = rng.uniform(0, height - crop_height) if crop_height < height else 0.0
    return left, top, left + crop_width, top + crop_height
