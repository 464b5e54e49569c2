"""Both towers in transformers: exact where the first token stands for the text, refused elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, files_of, source_of
from probe_cases import odd_texts, opaque_images, upright
from tiny import TEXTS
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, VisionTextDualEncoderModel

from mmalign.core.errors import UserError
from mmalign.export.transformers import POOLER_SCALE, write_transformers
from mmalign.models.load import load_model


@pytest.mark.parametrize(
    ("image", "trunk", "changes"),
    [
        ("resnet10t", "bert", {}),
        ("vit", "xlm-roberta", {}),
        ("around_timm", "bert", {"text_projection": "none", "embedding": 32}),
    ],
)
@torch.no_grad()
def test_transformers_encodes_texts_and_images_as_we_do(
    image: str, trunk: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    source = source_of(build_encoder(image, trunk, "cls", temperature=0.05, **changes))
    encoder: Any = source.encoder
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_transformers(source, tmp_path / name)
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    (tmp_path / "one" / "lineage.json").write_text("{}")  # every export has one
    folder = str((tmp_path / "one").rename(tmp_path / "moved"))
    model, facts = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model.eval(), VisionTextDualEncoderModel)
    assert not any(facts.values()), facts  # nothing is missing, nothing is left over
    processor: Any = AutoProcessor.from_pretrained(folder, backend="pil")
    texts, encoded = odd_texts(), opaque_images()
    tokens = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    text_ND = normalize(model.get_text_features(**tokens).pooler_output, dim=-1).numpy()
    np.testing.assert_allclose(text_ND, encoder.encode_texts(texts), atol=1e-6)
    pixels = processor(images=upright(encoded), return_tensors="pt")
    image_BD = normalize(model.get_image_features(**pixels).pooler_output, dim=-1).numpy()
    np.testing.assert_allclose(image_BD, encoder.encode_images(encoded), atol=1e-6)

    # The temperature comes along.
    assert model.logit_scale.shape == () and model.logit_scale.exp().item() == pytest.approx(20)
    output = model(**tokens, **pixels)
    np.testing.assert_allclose(output.logits_per_text, 20 * text_ND @ image_BD.T, atol=1e-4)
    # Features are not scaled by the factor in the pooler.
    ours = source.tower.tokenize(TEXTS)
    found_ND = model.get_text_features(ours.token_NL, ours.mask_NL).pooler_output
    expected_ND = encoder.model.text_projection(source.tower.states(ours)[:, 0])
    torch.testing.assert_close(found_ND, expected_ND, rtol=1e-5, atol=1e-6)

    for name in (folder, f"transformers:{folder}"):
        loaded = load_model(name)
        assert loaded.facts["kind"] == "transformers"
        np.testing.assert_allclose(loaded.encode_texts(texts[::9]), text_ND[::9], atol=1e-6)
        np.testing.assert_allclose(loaded.encode_images(encoded[::9]), image_BD[::9], atol=1e-6)


def test_the_pooler_passes_on_every_state_that_a_norm_can_make() -> None:
    state_N = torch.cat([torch.logspace(-6, 8, 1000, base=2), torch.tensor([0.0, 256.0])])
    passed_on_N = torch.tanh(POOLER_SCALE * state_N) / POOLER_SCALE
    torch.testing.assert_close(passed_on_N, state_N, rtol=2.5e-7, atol=0)  # two steps of float32


@pytest.mark.parametrize(
    ("trunk", "pooling", "changes", "reason"),
    [
        ("bert", "mean", {}, r"model\.text\.pooling: .*pools the first token, not `mean`"),
        ("bert", "cls", {"text_projection": "mlp"}, r"model\.text_projection: .*one linear map"),
        ("distilbert", "cls", {}, r"model\.text: a `distilbert` model has no pooler"),
        ("mt5", "cls", {}, r"model\.text: a `mt5` model has no pooler"),
    ],
)
def test_what_it_cannot_hold_is_refused(
    trunk: str, pooling: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    source = source_of(build_encoder("resnet10t", trunk, pooling, **changes))
    with pytest.raises(UserError, match=reason) as failure:
        write_transformers(source, tmp_path)
    assert "export to sentence-transformers-router" in str(failure.value)
    assert list(tmp_path.iterdir()) == []
