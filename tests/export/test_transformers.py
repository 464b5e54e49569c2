"""Both towers in transformers: exact where the first token speaks for the text, refused elsewhere."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, source_of
from PIL import Image, ImageOps
from tiny import TEXTS
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, VisionTextDualEncoderModel

from mmalign.core.errors import UserError
from mmalign.export.probes import DIRTY_TEXTS, probe_images, probe_pictures, probe_texts
from mmalign.export.source import Source
from mmalign.export.transformers import POOLER_SCALE, write_transformers
from mmalign.models.load import load_model

CASES = [
    ("resnet10t", "bert"),
    ("vit", "xlm-roberta"),
    ("open_clip", "bert"),
    ("around_timm", "xlm-roberta"),
]


def written(folder: Path, *case: Any, **changes: Any) -> Source:
    source = source_of(build_encoder(*case, **changes))
    folder.mkdir()
    write_transformers(source, folder)
    return source


@pytest.mark.parametrize(("image", "trunk"), CASES)
@torch.no_grad()
def test_transformers_encodes_texts_and_pictures_as_we_do(
    image: str, trunk: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "out", image, trunk, "cls")
    (tmp_path / "out").rename(tmp_path / "moved")
    model, facts = AutoModel.from_pretrained(str(tmp_path / "moved"), output_loading_info=True)
    assert isinstance(model.eval(), VisionTextDualEncoderModel)
    assert not any(facts.values()), facts  # nothing is missing, nothing is left over
    processor: Any = AutoProcessor.from_pretrained(str(tmp_path / "moved"), backend="pil")
    texts = [*probe_texts(), *DIRTY_TEXTS]
    tokens = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    text_ND = normalize(model.get_text_features(**tokens).pooler_output, dim=-1).numpy()
    assert source.encoder is not None
    np.testing.assert_allclose(text_ND, source.encoder.encode_texts(texts), atol=1e-6)

    encoded = [picture.data for picture in probe_pictures() if not picture.is_transparent]
    opened = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in encoded]
    pixels = processor(images=opened, return_tensors="pt")
    image_BD = normalize(model.get_image_features(**pixels).pooler_output, dim=-1).numpy()
    np.testing.assert_allclose(image_BD, source.encoder.encode_images(encoded), atol=1e-6)


@torch.no_grad()
def test_the_temperature_comes_along(tmp_path: Path) -> None:
    source = written(tmp_path / "out", "resnet10t", "bert", "cls", temperature=0.05)
    model = AutoModel.from_pretrained(str(tmp_path / "out")).eval()
    assert model.logit_scale.shape == () and model.logit_scale.exp().item() == pytest.approx(20)
    processor: Any = AutoProcessor.from_pretrained(str(tmp_path / "out"), backend="pil")
    images = probe_images()[:1]
    opened = [Image.open(io.BytesIO(data)) for data in images]
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    inputs = processor(text=list(TEXTS), images=opened, **options)
    assert source.encoder is not None
    cosine_NB = source.encoder.encode_texts(TEXTS) @ source.encoder.encode_images(images).T
    np.testing.assert_allclose(model(**inputs).logits_per_text, 20 * cosine_NB, atol=1e-4)


def test_features_are_not_scaled_by_the_trick_with_the_pooler(tmp_path: Path) -> None:
    source = written(tmp_path / "out", "resnet10t", "bert", "cls")
    model = AutoModel.from_pretrained(str(tmp_path / "out")).eval()
    tokens = source.tower.tokenize(TEXTS)
    with torch.no_grad():
        found_ND = model.get_text_features(tokens.token_NL, tokens.mask_NL).pooler_output
        state_NF = source.tower.states(tokens)[:, 0]
        assert source.tower.projection is not None
        torch.testing.assert_close(
            found_ND, source.tower.projection(state_NF), rtol=1e-5, atol=1e-6
        )


def test_the_pooler_hands_on_every_state_that_a_norm_can_make() -> None:
    state_N = torch.cat([torch.logspace(-6, 8, 1000, base=2), torch.tensor([0.0, 256.0])])
    handed_on_N = torch.tanh(POOLER_SCALE * state_N) / POOLER_SCALE
    torch.testing.assert_close(handed_on_N, state_N, rtol=2.5e-7, atol=0)  # two steps of float32


def test_it_is_read_back_as_the_same_encoder(tmp_path: Path) -> None:
    source = written(tmp_path / "out", "resnet10t", "xlm-roberta", "cls")
    assert source.encoder is not None
    for name in (str(tmp_path / "out"), f"transformers:{tmp_path / 'out'}"):
        found = load_model(name)
        assert found.facts["kind"] == "transformers"
        texts, images = probe_texts()[::5], probe_images()
        np.testing.assert_allclose(
            found.encode_texts(texts), source.encoder.encode_texts(texts), atol=1e-6
        )
        np.testing.assert_allclose(
            found.encode_images(images), source.encoder.encode_images(images), atol=1e-6
        )


def test_the_same_source_gives_the_same_bytes_without_a_word_on_where(tmp_path: Path) -> None:
    for place in ("one", "two"):
        written(tmp_path / place, "resnet10t", "bert", "cls")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("trunk", "pooling", "changes", "reason"),
    [
        ("bert", "mean", {}, r"model\.text\.pooling: .*cannot hold `mean` pooling"),
        ("bert", "last", {}, r"model\.text\.pooling: .*cannot hold `last` pooling"),
        ("bert", "cls", {"text_projection": "mlp"}, r"model\.text_projection: .*one linear map"),
        ("distilbert", "cls", {}, r"model\.text: a `distilbert` model has no pooler"),
        ("mt5", "cls", {}, r"model\.text: a `mt5` model has no pooler"),
    ],
)
def test_what_it_cannot_hold_is_refused(
    trunk: str, pooling: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as failure:
        written(tmp_path / "out", "resnet10t", trunk, pooling, **changes)
    assert "export to sentence-transformers-router" in str(failure.value)
    assert list((tmp_path / "out").iterdir()) == []
