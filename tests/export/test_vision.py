"""The image tower in transformers computes our vectors, from pictures of any mode, or is refused."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel

from mmalign.core.errors import UserError
from mmalign.export.probes import probe_pictures
from mmalign.export.vision import vision_model, write_vision
from mmalign.models.encoder import Encoder

TOWERS = ("resnet10t", "vit", "open_clip", "around_timm")


@pytest.fixture(scope="module")
def encoders() -> Callable[[str], Encoder]:
    made: dict[str, Encoder] = {}

    def encoder(name: str) -> Encoder:
        return made.setdefault(name, build_encoder(name))

    return encoder


def as_others_open_them() -> tuple[list[bytes], list[Image.Image]]:
    """Opaque pictures, and what Pillow makes of them, in the modes that it finds; turned, if EXIF says so."""
    encoded = [picture.data for picture in probe_pictures() if not picture.is_transparent]
    opened = [Image.open(io.BytesIO(data)) for data in encoded]
    assert {"RGB", "RGBA", "L", "LA", "P", "1", "CMYK"} <= {image.mode for image in opened}
    return encoded, [ImageOps.exif_transpose(image) for image in opened]


@torch.no_grad()
def vectors(folder: Path, projection: torch.nn.Linear, opened: list[Image.Image]) -> np.ndarray:
    model, facts = AutoModel.from_pretrained(str(folder), output_loading_info=True)
    assert not any(facts.values()), facts  # nothing is missing, nothing is left over
    processor: Any = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    pixels = torch.cat([processor(images=i, return_tensors="pt")["pixel_values"] for i in opened])
    return normalize(projection(model.eval()(pixel_values=pixels).pooler_output), dim=-1).numpy()


@pytest.mark.parametrize("name", TOWERS)
def test_transformers_computes_the_same_from_pictures_of_any_mode(
    encoders: Callable[[str], Encoder], name: str, tmp_path: Path
) -> None:
    encoder = encoders(name)
    model, projection = vision_model(encoder)
    write_vision(model, encoder.model.image_tower, tmp_path)
    encoded, opened = as_others_open_them()
    ours = encoder.encode_images(encoded)
    np.testing.assert_allclose(vectors(tmp_path, projection, opened), ours, atol=1e-6)
    assert np.abs(ours[0] - ours[-1]).max() > 1e-3  # the tower does look at its input


def test_a_transparent_picture_is_laid_on_white_there_too(
    encoders: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = encoders("resnet10t")
    model, projection = vision_model(encoder)
    write_vision(model, encoder.model.image_tower, tmp_path)
    soft = next(p.data for p in probe_pictures() if p.is_transparent)
    found = vectors(tmp_path, projection, [Image.open(io.BytesIO(soft))])
    np.testing.assert_allclose(found, encoder.encode_images([soft]), atol=1e-6)


def test_the_same_tower_gives_the_same_bytes(
    encoders: Callable[[str], Encoder], tmp_path: Path
) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        encoder = encoders("open_clip")
        write_vision(vision_model(encoder)[0], encoder.model.image_tower, folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("averaged", "VisionTransformer.*vectors differ"),
        ("scaled", "VisionTransformer.*ls_1"),
        ("attention", "it is a ModifiedResNet"),
        ("perceptron", "TimmModel.*head is not one linear map"),
    ],
)
def test_what_is_not_the_same_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"model\.image: .*{reason}.*export to open_clip"
    ) as failure:
        vision_model(build_encoder(name))
    assert "\n" not in str(failure.value)
