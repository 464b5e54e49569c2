"""Our weights become open_clip's and back, whatever an image network ends in."""

from typing import Any

import pytest
import torch
from tiny import MODEL, tiny_tokenizer

from mmalign.core.config import validate
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.external.open_clip import from_open_clip, to_open_clip, unfolded

OPEN_CLIP = {"kind": "open_clip", "name": "ViT-B-32", "image_size": 32}
VISIONS: dict[str, dict[str, Any]] = {
    "VisionTransformer": {"layers": 1, "width": 64, "patch_size": 16},
    # A ResNet of CLIP ends in attention with a bias.
    "ModifiedResNet": {"layers": [1, 1, 1, 1], "width": 8},
    "TimmModel": {
        **{"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"},
        "timm_model_pretrained": False,
    },
}


def build(vision: str, embedding: int, seed: int) -> DualEncoder:
    options = {
        "embed_dim": 24,
        "vision_cfg": VISIONS[vision],
        "text_cfg": {"layers": 1, "width": 64, "heads": 2},
    }
    tree = {**MODEL, "image": {**OPEN_CLIP, "options": options}, "embedding": embedding}
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = validate(ModelConfig, tree, "test")
    return build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id).eval()


@pytest.mark.parametrize("embedding", [16, 40])  # less and more than the width of 24
@pytest.mark.parametrize("vision", VISIONS)
def test_a_model_that_went_out_and_came_back_computes_the_same(vision: str, embedding: int) -> None:
    left, entered = build(vision, embedding, 1), build(vision, embedding, 2)
    assert type(left.image_tower.trunk).__name__ == vision
    state = to_open_clip(left)
    assert state["logit_scale"].shape == ()
    entered.load_state_dict(from_open_clip(state, entered))
    image_BCHW = torch.randn(3, 3, 32, 32)
    token_NL = torch.randint(5, 50, (3, 7))
    with torch.no_grad():
        one, other = (m(image_BCHW, token_NL, torch.ones_like(token_NL)) for m in (left, entered))
    for name in ("image_BD", "text_ND"):
        difference = (getattr(one, name) - getattr(other, name)).abs().max()
        assert difference <= 1e-6, name
    assert one.logit_scale.equal(other.logit_scale)


def test_what_has_no_place_keeps_its_name() -> None:
    model = build("VisionTransformer", 16, 1)
    state = {**to_open_clip(model), "visual.extra": torch.ones(1), "text.pooler": torch.ones(1)}
    del state["text.transformer.embeddings.LayerNorm.bias"]
    found = from_open_clip(state, model)
    assert found.keys() - model.state_dict().keys() == {"image_tower.trunk.extra", "text.pooler"}
    lost = "text_tower.trunk.embeddings.LayerNorm.bias"
    assert model.state_dict().keys() - found.keys() == {lost}


def test_a_bias_of_the_scores_that_only_one_side_knows() -> None:
    model = build("VisionTransformer", 16, 1)
    state = {**to_open_clip(model), "logit_bias": torch.tensor(-9.0)}
    assert "logit_bias" not in from_open_clip(state, model)
    model.logit_bias = torch.nn.Parameter(torch.tensor([-10.0]))
    assert from_open_clip(state, model)["logit_bias"].tolist() == [-9.0]
    del state["logit_bias"]
    assert from_open_clip(state, model)["logit_bias"].tolist() == [-10.0]


@pytest.mark.parametrize("width", [5, 12])
def test_a_folded_map_becomes_two(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*shape, generator=generator) for shape in ((8, 5), (5, 30), (width, 30))]
    map_DK, own_FK = draw[0] @ draw[1], draw[2]
    map_FK, weight_DF = unfolded(map_DK, own_FK)
    assert (map_FK.shape, weight_DF.shape) == ((width, 30), (8, width))
    torch.testing.assert_close(weight_DF @ map_FK, map_DK, rtol=1e-5, atol=1e-5)
    if width > 8:
        assert map_FK[8:].equal(own_FK[8:])
        assert (weight_DF @ map_FK).equal(map_DK)


def test_a_map_that_the_network_cannot_hold_is_left_to_the_check() -> None:
    too_rich_DK, own_FK = torch.randn(8, 30), torch.randn(5, 30)
    assert unfolded(too_rich_DK, own_FK)[1].shape == (8, 0)
    assert unfolded(torch.randn(8, 31), own_FK)[1].shape == (8, 0)
