"""Towers from timm, open_clip and transformers, built small with the same classes as the big ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.image_tower import OpenClipTower, TimmTower, build_image_tower
from mmalign.models.length_buckets import BUCKETS
from mmalign.models.text_tower import TextTowerConfig, build_text_tower, save_pretrained

BERT = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "xlm-roberta", "modernbert"), BERT),
    "mt5": {"num_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8},
    "m2m_100": {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    },
}
WIDTH_NAME = {"mt5": "d_model", "m2m_100": "d_model"}


def text_config(model_type: str, **fields: Any) -> TextTowerConfig:
    architecture = {
        "model_type": model_type,
        WIDTH_NAME.get(model_type, "hidden_size"): 16,
        **ARCHITECTURES[model_type],
    }
    return validate(TextTowerConfig, {"architecture": architecture, **fields}, "test")


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [*((name, "mean") for name in ARCHITECTURES), ("bert", "cls"), ("bert", "last")],
)
def test_text_features_do_not_depend_on_the_padding(model_type: str, pooling: str) -> None:
    tower = build_text_tower(text_config(model_type, pooling=pooling), 50, padding_id=1).eval()
    token_NL = torch.tensor([[5, 6, 7], [8, 9, 1]])
    mask_NL = torch.tensor([[1, 1, 1], [1, 1, 0]])
    padded = torch.nn.functional.pad(token_NL, (0, 4), value=1)
    with torch.no_grad():
        short = tower(token_NL, mask_NL)
        long = tower(padded, torch.nn.functional.pad(mask_NL, (0, 4)))
        alone = tower(token_NL[1:, :2], mask_NL[1:, :2])
    assert short.shape == (2, tower.width) == (2, 16)
    assert torch.allclose(short, long, atol=1e-5)
    assert torch.allclose(short[1:], alone, atol=1e-5)
    assert not any("pooler" in name or "decoder" in name for name, _ in tower.named_parameters())


@pytest.mark.parametrize("captions", [1, 8])
def test_captions_of_like_length_share_a_pass_and_nothing_else_changes(captions: int) -> None:
    tower = build_text_tower(text_config("bert"), 40, 0).double().eval()
    token_NL = torch.randint(5, 40, (captions, 12))
    length_N = [1 + 5 * n % 12 for n in range(captions)]
    mask_NL = (torch.arange(12) < torch.tensor(length_N)[:, None]).long()
    seen: list[int] = []
    tower.trunk.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    gradients = []
    for lengths in ((), length_N):
        tower.zero_grad()
        feature_NF = tower(token_NL, mask_NL, lengths)
        (feature_NF * torch.arange(feature_NF.numel()).view_as(feature_NF)).sum().backward()
        gradients.append([feature_NF, *(p.grad for p in tower.parameters() if p.grad is not None)])
    assert len(seen) == 1 + BUCKETS  # whole, then the buckets, also of a single caption
    assert sum(seen[1:]) < seen[0] or captions < 3
    for whole, bucketed in zip(*gradients, strict=True):
        assert torch.allclose(whole, bucketed, rtol=1e-10, atol=1e-9)


def test_a_saved_text_model_is_loaded_by_its_folder(tmp_path: Path) -> None:
    built = build_text_tower(text_config("xlm-roberta"), 50, padding_id=1)
    built.trunk.save_pretrained(tmp_path)
    config = validate(TextTowerConfig, {"pretrained": str(tmp_path)}, "test")
    loaded = build_text_tower(config, 50, padding_id=1)
    for (name, a), (_, b) in zip(built.named_parameters(), loaded.named_parameters(), strict=True):
        assert a.equal(b), name
    with pytest.raises(UserError, match="do not belong together"):
        build_text_tower(config, 51, padding_id=1)


def test_what_a_pretrained_model_holds_may_be_written_down(tmp_path: Path) -> None:
    built = build_text_tower(text_config("m2m_100"), 50, padding_id=1)
    built.trunk.save_pretrained(tmp_path)
    said = {"model_type": "m2m_100", "vocab_size": 50, "pad_token_id": 1, "d_model": 16}
    tree = {"pretrained": str(tmp_path), "architecture": said}
    loaded = build_text_tower(validate(TextTowerConfig, tree, "test"), 50, padding_id=1)
    assert loaded.width == 16
    tree["architecture"] = said | {"encoder_layers": 2}
    with pytest.raises(UserError, match=r"encoder_layers: is 2, but `.*` has 1;"):
        build_text_tower(validate(TextTowerConfig, tree, "test"), 50, padding_id=1)


def test_an_architecture_may_have_more_rows_than_the_tokenizer_has_tokens() -> None:
    tree = {"model_type": "mt5", "d_model": 16, "vocab_size": 64, **ARCHITECTURES["mt5"]}
    config = validate(TextTowerConfig, {"architecture": tree}, "test")
    tower = build_text_tower(config, 50, padding_id=1)
    assert tower.trunk.get_input_embeddings().weight.shape == (64, 16)
    with pytest.raises(UserError, match="do not belong together"):
        build_text_tower(config, 65, padding_id=1)


def test_a_text_tower_needs_a_source() -> None:
    with pytest.raises(UserError, match="give `pretrained`, `architecture` or both"):
        validate(TextTowerConfig, {}, "test")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"pretrained": "nowhere/nothing-here"}, "cannot load this text tower"),
        ({"architecture": {"model_type": "bertt"}}, "bertt"),
        ({"architecture": {"model_type": "bert", "hiden_size": 16}}, "has no field `hiden_size`"),
    ],
)
def test_unknown_text_models_get_one_sentence(
    tree: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        build_text_tower(validate(TextTowerConfig, tree, "test"), 50, 1)


def test_a_folder_that_lacks_weights_is_loaded_with_a_warning_and_other_shapes_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trunk = build_text_tower(text_config("bert"), 50, 1).trunk
    save_pretrained(trunk, tmp_path)
    config = validate(TextTowerConfig, {"pretrained": str(tmp_path)}, "test")
    weights = load_file(tmp_path / "model.safetensors")
    more = {
        **weights,
        "pooler.dense.bias": torch.zeros(16),
    }  # of no use to us: nothing is said of it
    save_file(more, tmp_path / "model.safetensors", {"format": "pt"})
    assert (
        build_text_tower(config, 50, 1)
        .trunk.get_input_embeddings()
        .weight.equal(trunk.get_input_embeddings().weight)
    )
    assert "pooler" not in "".join(capfd.readouterr())
    name = next(name for name in weights if name.endswith("query.weight"))
    fewer = {other: weight for other, weight in weights.items() if other != name}
    save_file(fewer, tmp_path / "model.safetensors", {"format": "pt"})
    build_text_tower(config, 50, 1)
    said = capfd.readouterr().out
    assert (
        f"warning: 1 of its weights are in no file and start at random, among them `{name}`" in said
    )
    wider = {**weights, name: torch.zeros(17, 16)}
    save_file(wider, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="cannot load this text tower"):
        build_text_tower(config, 50, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8}),
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}),
    ],
)
def test_timm_towers(name: str, options: dict[str, Any]) -> None:
    tower = build_image_tower(timm_tower(name, **options))
    assert tower(torch.zeros(2, 3, 32, 32)).shape == (2, tower.width)
    assert tower.size == 32


def test_pixels_are_normalised_on_the_way_into_the_trunk() -> None:
    tower = build_image_tower(timm_tower()).eval()
    pixel_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    shares = (tower.architecture.mean, tower.architecture.std)
    mean_C11, std_C11 = (torch.tensor(one).view(3, 1, 1) for one in shares)
    by_hand = tower((pixel_BCHW / 255 - mean_C11) / std_C11)
    torch.testing.assert_close(tower(pixel_BCHW), by_hand, rtol=1e-5, atol=1e-5)
    assert not any("mean" in name for name in tower.state_dict() if not name.startswith("trunk."))


def open_clip_tower(name: str = "ViT-B-32") -> OpenClipTower:
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 64}
    options = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    tree = {"kind": "open_clip", "name": name, "image_size": 32, "options": options}
    return validate(OpenClipTower, tree, "test")


def timm_tower(name: str = "resnet10t", **options: Any) -> TimmTower:
    tree = {"kind": "timm", "name": name, "image_size": 32, "options": options}
    return validate(TimmTower, tree, "test")


def test_towers_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        towers = [
            build_image_tower(open_clip_tower()),
            build_image_tower(timm_tower("vit_tiny_patch16_224")),
            build_text_tower(text_config("xlm-roberta"), 50, padding_id=1),
        ]
    assert all(parameter.is_meta for tower in towers for parameter in tower.parameters())


def test_open_clip_towers() -> None:
    tower = build_image_tower(open_clip_tower())
    assert tower(torch.zeros(2, 3, 32, 32)).shape == (2, 24)


def test_unknown_image_models_get_one_sentence() -> None:
    with pytest.raises(UserError, match="timm has no network `resnet10x`; near: "):
        build_image_tower(timm_tower("resnet10x"))
    with pytest.raises(UserError, match="open_clip has no model"):
        build_image_tower(open_clip_tower("ViT-Z-1"))
    with pytest.raises(UserError, match="options"):
        build_image_tower(timm_tower(no_such_option=1))


def dual_encoder(
    freeze_image: bool = False, text_projection: str = "linear", embedding: int = 12
) -> DualEncoder:
    image = {"kind": "timm", "name": "resnet10t", "image_size": 32, "frozen": freeze_image}
    tree = {"image": image, "text": text_config("bert").model_dump(), "embedding": embedding}
    config = validate(ModelConfig, {**tree, "text_projection": text_projection}, "test")
    torch.manual_seed(0)
    return build_dual_encoder(config, 50, padding_id=0)


def test_the_dual_encoder_gives_unit_rows_and_its_temperature() -> None:
    model = dual_encoder()
    found = model(torch.randn(2, 3, 32, 32), torch.tensor([[5, 6]] * 3), torch.ones(3, 2).long())
    assert found.image_BD.shape == (2, 12)
    assert found.text_ND.shape == (3, 12)
    for rows in (found.image_BD, found.text_ND):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6)
    assert found.logit_scale.shape == (1,)
    assert float(found.logit_scale.detach()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_text_projection_may_have_two_layers() -> None:
    model = dual_encoder(text_projection="mlp")
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if "text_projection" in n}
    assert shapes == {"text_projection.0.weight": (14, 16), "text_projection.2.weight": (12, 14)}
    token_NL = torch.tensor([[5, 6], [7, 8]])
    first, second = (dict(model.named_parameters())[name] for name in shapes)
    feature_NF = model.eval().text_tower(token_NL, torch.ones_like(token_NL))
    by_hand = torch.nn.functional.gelu(feature_NF @ first.T) @ second.T
    found = model.encode_text(token_NL, torch.ones_like(token_NL))
    torch.testing.assert_close(found, torch.nn.functional.normalize(by_hand, dim=-1))


def test_without_a_text_projection_the_towers_space_is_the_shared_one() -> None:
    model = dual_encoder(text_projection="none", embedding=16).eval()
    token_NL = torch.tensor([[5, 6], [7, 8]])
    found = model.encode_text(token_NL, torch.ones_like(token_NL))
    feature_NF = model.text_tower(token_NL, torch.ones_like(token_NL))
    torch.testing.assert_close(found, torch.nn.functional.normalize(feature_NF, dim=-1))
    assert not [name for name, _ in model.named_parameters() if "text_projection" in name]
    with pytest.raises(UserError, match=r"model\.embedding: 12, .*set 16"):
        dual_encoder(text_projection="none")


def test_a_frozen_tower_does_not_move() -> None:
    model = dual_encoder(freeze_image=True).train()
    before = {name: t.clone() for name, t in model.image_tower.state_dict().items()}

    def step() -> Tensor:
        found = model(
            torch.randn(4, 3, 32, 32), torch.randint(5, 20, (4, 3)), torch.ones(4, 3).long()
        )
        similarity: Tensor = (found.image_BD * found.text_ND).sum()
        return similarity

    step().backward()
    for name, tensor in model.image_tower.state_dict().items():
        assert tensor.equal(before[name]), name  # batch statistics included
    assert all(p.grad is None for p in model.image_tower.parameters())
    assert model.image_projection.weight.grad is not None
    assert any(p.grad is not None for p in model.text_tower.parameters())
