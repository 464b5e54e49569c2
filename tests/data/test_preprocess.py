"""Preprocessing: every picture becomes upright RGB of the right size, limits hold before decoding."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.core.config import validate
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.preprocess import Augmentation, Preprocess, random_crop, stack_images

PREPROCESS = Preprocess(size=8)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, image_format, **options)
    return encoded.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image_format = "JPEG" if mode == "CMYK" else "PNG"
    picture = decode(encode(Image.new("RGB", (9, 5), "white").convert(mode), image_format))
    assert picture.mode == "RGB"
    assert np.asarray(picture).min() >= 250


def test_transparency_is_white_and_exif_is_obeyed() -> None:
    clear = encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")
    assert np.asarray(decode(clear)).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned = encode(Image.new("RGB", (4, 8)), "JPEG", exif=exif)
    assert decode(turned).size == (8, 4)


def test_pictures_stay_bytes_of_the_wanted_size() -> None:
    orange = PREPROCESS(encode(Image.new("RGB", (20, 10), (255, 128, 0)), "PNG"))
    assert orange.dtype == torch.uint8
    assert orange.shape == (8, 8, 3)
    assert orange.unique(dim=0).unique(dim=1).flatten().tolist() == [255, 128, 0]


@pytest.mark.parametrize(("image_format", "size"), [("PNG", (40, 30)), ("JPEG", (640, 480))])
def test_evaluation_sees_what_one_plain_resize_gives(
    image_format: str, size: tuple[int, int]
) -> None:
    noise = Image.effect_noise((80, 60), 90).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    data = encode(noise, image_format)
    square = Image.open(io.BytesIO(data)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(PREPROCESS(data).numpy(), np.asarray(square))


def test_training_may_decode_a_jpeg_smaller_and_stays_close() -> None:
    noise = Image.effect_noise((80, 60), 40).convert("RGB").resize((640, 480))
    data = encode(noise, "JPEG")
    exact = PREPROCESS(data).float()
    quick = Preprocess(8, Augmentation())(data, np.random.default_rng(0)).float()
    assert 0 < (quick - exact).abs().mean() < 3


def test_training_without_a_crop_sees_what_evaluation_sees() -> None:
    data = encode(Image.effect_noise((40, 30), 90).convert("RGB"), "PNG")
    view = Preprocess(8, Augmentation())(data, np.random.default_rng(0))
    assert (view.int() - PREPROCESS(data).int()).abs().max() <= 1


def test_a_flipped_view_is_the_mirrored_one() -> None:
    data = encode(Image.effect_noise((40, 30), 90).convert("RGB"), "PNG")
    preprocess = Preprocess(8, Augmentation(flip=True))
    straight, seeds = PREPROCESS(data).int(), range(20)
    views = [preprocess(data, np.random.default_rng(seed)).int() for seed in seeds]
    flipped = [view for view in views if (view - straight).abs().max() > 1]
    assert 0 < len(flipped) < len(seeds)
    assert all((view.flip(1) - straight).abs().max() <= 1 for view in flipped)


@pytest.mark.parametrize("part", [0.5, 0.99])
def test_training_refuses_what_evaluation_refuses(part: float) -> None:
    whole = encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    for preprocess in (PREPROCESS, Preprocess(8, Augmentation())):
        with pytest.raises(UndecodableImage):
            preprocess(whole[: int(part * len(whole))])


def test_a_batch_of_pictures_is_channels_last() -> None:
    noise = encode(Image.effect_noise((20, 10), 90).convert("RGB"), "PNG")
    pixels_HWC = PREPROCESS(noise)
    image_BCHW = stack_images([pixels_HWC, pixels_HWC])
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert image_BCHW[1].equal(pixels_HWC.permute(2, 0, 1))


@pytest.mark.parametrize("data", [b"", b"not an image", b"GIF89a" + bytes(20)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="does not decode as JPEG, PNG or WebP"):
        decode(data)


def test_a_damaged_jpeg_is_refused() -> None:
    whole = encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    with pytest.raises(UndecodableImage):
        decode(whole[: len(whole) // 2])


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10)))
    with pytest.raises(UndecodableImage, match="13000 x 13000 pixels"):
        decode(bomb)


def test_random_crops_stay_inside_and_follow_the_generator() -> None:
    augmentation = validate(Augmentation, {"crop_scale": [0.3, 0.9], "flip": True}, "test")
    areas = []
    for seed in range(200):
        left, top, right, bottom = random_crop(40, 30, augmentation, np.random.default_rng(seed))
        assert 0 <= left < right <= 40.0001
        assert 0 <= top < bottom <= 30.0001
        areas.append((right - left) * (bottom - top) / 1200)
    assert 0.29 < min(areas) < 0.4
    assert 0.8 < max(areas) < 0.91
    preprocess = Preprocess(8, augmentation)
    data = encode(Image.effect_noise((40, 30), 90).convert("RGB"), "PNG")
    one, again, other = (preprocess(data, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.equal(again)
    assert not one.equal(other)
