"""The image formats that mmalign reads: their names, first bytes and file suffixes.

The only list of its kind. A format that is added here is accepted by recipes, indexes, loaders, evaluation
and search alike.
"""

from dataclasses import dataclass

from mmalign.core.errors import UserError


@dataclass(frozen=True)
class ImageFormat:
    name: str  # as Pillow calls it
    magic: bytes  # its first bytes
    suffixes: tuple[str, ...]  # of file names; the first is the one that mmalign writes


IMAGE_FORMATS = (
    ImageFormat("JPEG", b"\xff\xd8\xff", ("jpg", "jpeg")),
    ImageFormat("PNG", b"\x89PNG", ("png",)),
    ImageFormat("WEBP", b"RIFF", ("webp",)),
)
PILLOW_NAMES = tuple(one.name for one in IMAGE_FORMATS)
WRITTEN_SUFFIXES = tuple(one.suffixes[0] for one in IMAGE_FORMATS)
READ_SUFFIXES = tuple(suffix for one in IMAGE_FORMATS for suffix in one.suffixes)


def image_suffix(data: bytes) -> str:
    """The suffix of an encoded image, for example `jpg`, by its first bytes."""
    for one in IMAGE_FORMATS:
        if data.startswith(one.magic):
            return one.suffixes[0]
    raise UserError("an image is neither JPEG, PNG nor WebP")
