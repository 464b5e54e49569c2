"""The image tower in transformers computes our vectors, from images of any mode, or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, files_of
from PIL import Image
from probe_cases import image_cases, opaque_images, upright
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.vision import preprocessor_config, vision_model
from mmalign.models.text_tower import save_pretrained


@torch.no_grad()
def vectors(folder: Path, projection: torch.nn.Linear, opened: list[Image.Image]) -> np.ndarray:
    model, facts = AutoModel.from_pretrained(str(folder), output_loading_info=True)
    assert not any(facts.values()), facts  # nothing is missing, nothing is left over
    processor: Any = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    pixels = torch.cat([processor(images=i, return_tensors="pt")["pixel_values"] for i in opened])
    return normalize(projection(model.eval()(pixel_values=pixels).pooler_output), dim=-1).numpy()


@pytest.mark.parametrize("name", ["resnet10t", "vit", "open_clip", "around_timm"])
def test_transformers_computes_the_same_from_images_of_any_mode(name: str, tmp_path: Path) -> None:
    encoder = build_encoder(name)
    model, projection = vision_model(encoder)
    for folder in (tmp_path / "one", tmp_path / "two"):
        save_pretrained(model, folder)
        write_json(
            folder / "preprocessor_config.json", preprocessor_config(encoder.model.image_tower)
        )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    # Transparent PNGs in RGBA are laid on white there too.
    encoded = [*opaque_images(), next(case.data for case in image_cases() if case.is_transparent)]
    ours = encoder.encode_images(encoded)
    np.testing.assert_allclose(
        vectors(tmp_path / "one", projection, upright(encoded)), ours, atol=1e-6
    )
    assert np.abs(ours[0] - ours[-2]).max() > 1e-3  # the tower does look at its input


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("averaged", "VisionTransformer.*its pooling is `avg`"),
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
