"""Speed of JPEG decoders on one thread, from bytes to a 224 px crop, and their pixel difference to Pillow.

    JPEG bytes -> decode, in full or scaled -> centre crop (90 % of the area) -> 224 x 224, bicubic, uint8

    pillow                 full decode, boxed resize: equal to the usual transforms, and the reference
    pillow draft           JPEG's own scaling by 2, 4 or 8 as far as the crop allows; boxed resize
    pillow draft + torch   the same, cut and resized by torch's uint8 resize
    torchvision            `decode_jpeg` (it does not scale), torch's resize
    simplejpeg + pillow    simplejpeg's scaled decode, boxed resize
    simplejpeg + torch     the same, torch's resize: as in `mmalign.data.images`
    mmalign                `see`, with header and checks

Without simplejpeg its rows are left out. The decoders take turns. A figure is the median over the rounds, in
processor seconds, so that other work on the machine has less influence. The difference is the mean absolute
difference, of 255.

Prints a table and, as the last line, one JSON object.

    python benchmarks/decoders.py [--pictures 48] [--rounds 5] [--shards DIR] [--large-shards DIR]

Without folders of tars, noise images with the file size of photographs are generated (loader.py).
"""

import argparse
import io
import json
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from loader import SIDES, SIZE, centre_box, make_pictures
from PIL import Image

Decoder = Callable[[bytes], np.ndarray]


def factor_of(width: int, height: int) -> int:
    from mmalign.data.images import reduction

    left, top, right, bottom = centre_box(width, height)
    return reduction(right - left, bottom - top, SIZE)


def by_pillow(picture: Image.Image) -> np.ndarray:
    box = centre_box(*picture.size)
    rgb = picture.convert("RGB")
    return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box))


def by_torch(pixel_HWC: torch.Tensor) -> np.ndarray:
    height, width, _ = pixel_HWC.shape
    left, top, right, bottom = map(round, centre_box(width, height))
    crop_1CHW = pixel_HWC[top:bottom, left:right].permute(2, 0, 1)[None]
    seen_1CHW = F.interpolate(crop_1CHW, (SIZE, SIZE), mode="bicubic", antialias=True)
    return seen_1CHW[0].permute(1, 2, 0).numpy()


def pillow(data: bytes) -> np.ndarray:
    return by_pillow(Image.open(io.BytesIO(data)))


def _draft(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    factor = factor_of(*picture.size)
    picture.draft("RGB", (picture.width // factor, picture.height // factor))
    return picture


def pillow_draft(data: bytes) -> np.ndarray:
    return by_pillow(_draft(data))


def pillow_draft_torch(data: bytes) -> np.ndarray:
    return by_torch(torch.from_numpy(np.array(_draft(data).convert("RGB"))))


def torchvision_torch(data: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    pixel_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return by_torch(pixel_CHW.permute(1, 2, 0))


def _simplejpeg(data: bytes) -> np.ndarray:
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    factor = factor_of(width, height)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    return np.asarray(simplejpeg.decode_jpeg(data, **least))


def simplejpeg_pillow(data: bytes) -> np.ndarray:
    return by_pillow(Image.fromarray(_simplejpeg(data)))


def simplejpeg_torch(data: bytes) -> np.ndarray:
    return by_torch(torch.from_numpy(_simplejpeg(data)))


def mmalign(data: bytes) -> np.ndarray:
    from mmalign.data.preprocess import see

    picture = Image.open(io.BytesIO(data))
    return see(picture, data, centre_box(*picture.size), SIZE).numpy()


DECODERS: dict[str, Decoder] = {
    "pillow": pillow,
    "pillow draft": pillow_draft,
    "pillow draft + torch": pillow_draft_torch,
    "torchvision": torchvision_torch,
    "simplejpeg + pillow": simplejpeg_pillow,
    "simplejpeg + torch": simplejpeg_torch,
    "mmalign": mmalign,
}


def works(decoder: Decoder, data: bytes) -> bool:
    try:
        decoder(data)
    except ImportError:
        return False
    return True


def measure(pictures: list[bytes], rounds: int) -> dict[str, dict[str, float]]:
    """Images per second, and the difference to Pillow, of each available decoder."""
    exact = [pillow(data).astype(np.int16) for data in pictures]
    there = {name: decoder for name, decoder in DECODERS.items() if works(decoder, pictures[0])}
    seconds: dict[str, list[float]] = {name: [] for name in there}
    difference: dict[str, float] = {}
    for _ in range(rounds):
        for name, decoder in there.items():
            clock = time.process_time()
            found = [decoder(data) for data in pictures]
            seconds[name].append(time.process_time() - clock)
            difference[name] = float(
                np.mean([np.abs(a - b).mean() for a, b in zip(found, exact, strict=True)])
            )
    return {
        name: {
            "per_second": len(pictures) / statistics.median(seconds[name]),
            "difference": difference[name],
        }
        for name in there
    }


def read_pictures(folder: Path, count: int) -> list[bytes]:
    """The first JPEGs of the first tar."""
    with tarfile.open(min(folder.glob("*.tar"))) as tar:
        named = (member for member in tar if member.name.endswith((".jpg", ".jpeg")))
        files = (tar.extractfile(member) for member in islice(named, count))
        return [file.read() for file in files if file is not None]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=Path, help="folder of tars with JPEGs of 640 px")
    parser.add_argument("--large-shards", type=Path, help="folder of tars with JPEGs of 1,280 px")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    found = {}
    for side, folder in zip(SIDES, (options.shards, options.large_shards), strict=True):
        given = read_pictures(folder, options.pictures) if folder else make_pictures(side)
        pictures = given[: options.pictures]
        kilobytes = sum(map(len, pictures)) / len(pictures) / 1000
        sys.stdout.write(
            f"{f'{side} px, {kilobytes:.0f} kB':<24}{'per second':>12}{'difference':>12}\n"
        )
        found[str(side)] = measure(pictures, options.rounds)
        for name, figures in found[str(side)].items():
            row = f"{name:<24}{figures['per_second']:>12.0f}{figures['difference']:>12.2f}"
            sys.stdout.write(row + "\n")
    rounded = {
        side: {name: {k: round(v, 2) for k, v in row.items()} for name, row in rows.items()}
        for side, rows in found.items()
    }
    sys.stdout.write(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
