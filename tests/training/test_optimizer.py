"""Parameter groups, layer depths, schedules, and towers that wait for their step."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.image_tower import ImageTower
from mmalign.models.masked_language_model import MaskedLanguageModel
from mmalign.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rates

VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
IMAGES: dict[str, dict[str, Any]] = {
    "vit": {"kind": "timm", "name": "vit_tiny_patch16_224", "options": VIT},
    "resnet": {"kind": "timm", "name": "resnet10t", "options": {"channels": [8, 8, 8, 8]}},
    "convnext": {
        "kind": "timm",
        "name": "convnext_atto",
        "options": {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]},
    },
    "open_clip": {
        "kind": "open_clip",
        "name": "ViT-B-32",
        "options": {
            "embed_dim": 8,
            "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
            "text_cfg": {"layers": 1, "width": 16, "heads": 2},
        },
    },
    "open_clip_timm": {
        "kind": "open_clip",
        "name": "ViT-B-32",
        "options": {
            "embed_dim": 8,
            "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"},
            "text_cfg": {"layers": 1, "width": 16, "heads": 2},
        },
    },
}
BERT = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, **BERT},
    "xlm-roberta": {"hidden_size": 16, **BERT},
    "modernbert": {"hidden_size": 16, **BERT},
    "mt5": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8},
    "albert": {"hidden_size": 16, "embedding_size": 8, **BERT},
}
# Depth of some parameters of each trunk: the highest layer is 1.
IMAGE_DEPTHS = {
    "vit": {
        "norm.weight": 1,
        "blocks.1.mlp.fc1.weight": 1,
        "blocks.0.norm1.bias": 2,
        "pos_embed": 3,
        "patch_embed.proj.weight": 3,
    },
    "resnet": {
        "layer4.0.conv1.weight": 1,
        "layer3.0.bn1.weight": 2,
        "layer1.0.conv2.weight": 4,
        "conv1.0.weight": 5,
    },
    "convnext": {
        "head.norm.weight": 1,
        "stages.3.blocks.0.mlp.fc1.weight": 2,
        "stages.3.downsample.1.weight": 2,
        "stages.0.blocks.0.gamma": 5,
        "stem.0.bias": 6,
    },
    "open_clip": {
        "proj": 1,
        "ln_post.weight": 2,
        "transformer.resblocks.1.mlp.c_fc.weight": 2,
        "transformer.resblocks.0.ln_1.weight": 3,
        "class_embedding": 4,
        "conv1.weight": 4,
    },
    "open_clip_timm": {
        "head.proj.weight": 1,
        "trunk.layer4.0.conv1.weight": 2,
        "trunk.conv1.0.weight": 6,
    },
}
TEXT_DEPTHS = {
    "bert": {
        "encoder.layer.1.output.dense.weight": 1,
        "encoder.layer.0.output.dense.weight": 2,
        "embeddings.word_embeddings.weight": 3,
        "embeddings.LayerNorm.weight": 3,
    },
    "xlm-roberta": {
        "encoder.layer.1.output.dense.bias": 1,
        "embeddings.position_embeddings.weight": 3,
    },
    "modernbert": {
        "final_norm.weight": 1,
        "layers.1.mlp.Wi.weight": 1,
        "layers.0.mlp.Wi.weight": 2,
        "embeddings.tok_embeddings.weight": 3,
    },
    "mt5": {
        "encoder.final_layer_norm.weight": 1,
        "encoder.block.1.layer.0.SelfAttention.q.weight": 1,
        "encoder.block.0.layer.1.DenseReluDense.wo.weight": 2,
        "shared.weight": 3,
    },
}


def config_of(**fields: Any) -> OptimizerConfig:
    return validate(OptimizerConfig, {"lr": 1e-3, **fields}, "test")


def build(image: str = "vit", text: str = "bert") -> DualEncoder:
    tree = {
        "image": {"image_size": 32, **IMAGES[image]},
        "text": {"architecture": {"model_type": text, **TEXTS[text]}},
        "embedding": 8,
    }
    torch.manual_seed(0)
    return build_dual_encoder(validate(ModelConfig, tree, "test"), vocabulary=40, padding_id=1)


def group_of(model: nn.Module, config: OptimizerConfig) -> dict[str, dict[str, Any]]:
    """The group of each parameter, by its name in the model."""
    groups = {
        id(parameter): group
        for group in build_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    return {name: groups[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = tiny_model()
    model.image_tower.requires_grad_(False)
    groups = build_optimizer(model, config_of(text_lr=5e-4)).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            decays = parameter.ndim >= 2
            assert group["weight_decay"] == (0.1 if decays else 0.0), name
            assert not (decays and ("norm" in name.lower() or name.endswith("bias"))), name
            assert group["highest_lr"] == (5e-4 if name.startswith("text_tower.") else 1e-3), name
            assert decays == (name != "logit_scale" and parameter.ndim >= 2)


def test_equal_settings_share_a_group_and_towers_may_differ() -> None:
    model = build()
    assert len(build_optimizer(model, config_of()).param_groups) == 2
    config = config_of(image_lr=2e-3, text_lr=3e-3, image_weight_decay=0.0, text_weight_decay=0.3)
    group = group_of(model, config)
    image = group["image_tower.trunk.blocks.0.mlp.fc1.weight"]
    text = group["text_tower.trunk.encoder.layer.0.output.dense.weight"]
    assert (image["highest_lr"], image["weight_decay"]) == (2e-3, 0.0)
    assert (text["highest_lr"], text["weight_decay"]) == (3e-3, 0.3)
    for name in ("image_projection.weight", "text_projection.weight"):
        assert (group[name]["highest_lr"], group[name]["weight_decay"]) == (1e-3, 0.1), name
    # Without decay, an image tower's vectors and matrices train alike.
    assert len({id(g) for g in group.values()}) == 5


def test_position_and_class_embeddings_of_images_do_not_decay() -> None:
    vit, open_clip = group_of(build("vit"), config_of()), group_of(build("open_clip"), config_of())
    assert vit["image_tower.trunk.pos_embed"]["weight_decay"] == 0.0
    assert vit["image_tower.trunk.cls_token"]["weight_decay"] == 0.0
    assert vit["image_tower.trunk.patch_embed.proj.weight"]["weight_decay"] == 0.1
    assert open_clip["image_tower.trunk.positional_embedding"]["weight_decay"] == 0.0
    assert open_clip["image_tower.trunk.conv1.weight"]["weight_decay"] == 0.1


@pytest.mark.parametrize("image", IMAGE_DEPTHS)
def test_each_image_layer_learns_slower_than_the_one_above(image: str) -> None:
    group = group_of(build(image), config_of(image_lr=1.0, image_layer_decay=0.5))
    for name, depth in IMAGE_DEPTHS[image].items():
        assert group[f"image_tower.trunk.{name}"]["highest_lr"] == 0.5**depth, name
    others = {name: g for name, g in group.items() if not name.startswith("image_tower.")}
    assert all(g["highest_lr"] == 1e-3 for g in others.values())


@pytest.mark.parametrize("text", TEXT_DEPTHS)
def test_each_text_layer_learns_slower_than_the_one_above(text: str) -> None:
    group = group_of(build(text=text), config_of(text_lr=1.0, text_layer_decay=0.5))
    for name, depth in TEXT_DEPTHS[text].items():
        assert group[f"text_tower.trunk.{name}"]["highest_lr"] == 0.5**depth, name


def test_layers_that_cannot_be_told_are_refused_only_where_it_matters() -> None:
    model = build(text="albert")
    build_optimizer(model, config_of())
    with pytest.raises(UserError, match=r"optimizer\.text_layer_decay: the layers of a `AlbertM"):
        build_optimizer(model, config_of(text_layer_decay=0.9))
    trunk = nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.image_tower = ImageTower(trunk, model.image_tower.architecture)
    with pytest.raises(UserError, match=r"optimizer\.image_layer_decay: the layers of a `Sequent"):
        build_optimizer(model, config_of(image_layer_decay=0.9))


def test_a_head_around_the_dual_encoder_takes_the_common_settings() -> None:
    model = MaskedLanguageModel(build())
    group = group_of(model, config_of(text_lr=1.0, text_layer_decay=0.5, text_weight_decay=0.3))
    tower = "dual_encoder.text_tower.trunk"
    assert group[f"{tower}.encoder.layer.1.output.dense.weight"]["highest_lr"] == 0.5
    # The decoder's matrix is the embedding, and trains as the embedding does.
    embedding = group[f"{tower}.embeddings.word_embeddings.weight"]
    assert (embedding["highest_lr"], embedding["weight_decay"]) == (0.125, 0.3)
    assert (group["dense.weight"]["highest_lr"], group["dense.weight"]["weight_decay"]) == (
        1e-3,
        0.1,
    )
    assert group["decoder.bias"]["weight_decay"] == 0.0


def rates(config: OptimizerConfig, steps: int, from_step: int = 0) -> list[float]:
    """Share of the highest rate in every step, and in the one after the last."""
    group = {"highest_lr": 2.0, "from_step": from_step, "lr": 0.0}
    found = []
    for step in range(steps + 1):
        logged = set_learning_rates([group], config, step, steps, batch_size=8)
        if from_step == 0:
            assert group["lr"] / 2.0 == pytest.approx(logged / 1e-3)
        found.append(group["lr"] / 2.0)
    return found


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    share = rates(config_of(warmup_steps=10), 100)
    assert share[0] == pytest.approx(0.1)
    assert share[9] == share[10] == 1.0
    assert share[55] == pytest.approx(0.5)
    assert share[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(share[10:]))
    assert rates(config_of(warmup_steps=0), 5)[0] == 1.0
    floor = rates(config_of(warmup_steps=0, final_lr_share=0.2), 10)
    assert floor[5] == pytest.approx(0.6)
    assert floor[10] == pytest.approx(0.2)


def test_a_warm_up_longer_than_the_run_never_falls() -> None:
    assert rates(config_of(), 20) == pytest.approx([(step + 1) / 50 for step in range(21)])


def test_a_constant_rate_stays_until_its_cooldown() -> None:
    share = rates(config_of(schedule="constant", warmup_steps=2, cooldown_steps=4), 10)
    assert share[:7] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert share[7:] == pytest.approx([0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0])
    assert rates(config_of(schedule="constant", warmup_steps=0), 3) == [1.0] * 4
    ends = config_of(schedule="constant", warmup_steps=0, cooldown_steps=4, final_lr_share=0.5)
    assert rates(ends, 10)[10] == pytest.approx(0.5)


def test_a_warm_up_in_pairs_is_as_long_at_any_batch_size() -> None:
    config = config_of(schedule="constant", warmup_images=30)  # 4 steps of 8
    assert rates(config, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    group = {"highest_lr": 1.0, "from_step": 0, "lr": 0.0}
    set_learning_rates([group], config, 0, 100, batch_size=3)
    assert group["lr"] == 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 1, "warmup_images": 1}, "`warmup_steps` or `warmup_images`"),
        ({"cooldown_steps": 5}, "`cooldown_steps` belongs to `schedule: constant`"),
        ({"schedule": "constant", "final_lr_share": 0.1}, "needs `cooldown_steps`"),
        ({"text_layer_decay": 0.0}, "text_layer_decay"),
        ({"betas": (0.9, 1.5)}, r"betas\.1` is 1\.5: input should be less than 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config_of(**fields)


def test_a_tower_that_waits_has_a_warm_up_of_its_own() -> None:
    config = config_of(schedule="constant", warmup_steps=2)
    assert rates(config, 6, from_step=3) == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


def train_steps(model: DualEncoder, config: OptimizerConfig, steps: int) -> list[dict[str, Tensor]]:
    """The weights before the first and after each of so many steps of 8."""
    torch.manual_seed(1)
    optimizer = build_optimizer(model.train(), config)
    image_BCHW, token_NL = torch.randn(4, 3, 32, 32), torch.randint(2, 40, (4, 6))
    weights = [{name: t.detach().clone() for name, t in model.named_parameters()}]
    for step in range(steps):
        set_learning_rates(optimizer.param_groups, config, step, 8, batch_size=4)
        optimizer.zero_grad()
        rows = model(image_BCHW, token_NL, torch.ones_like(token_NL))
        logits = rows.logit_scale * rows.image_BD @ rows.text_ND.T
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
        weights.append({name: t.detach().clone() for name, t in model.named_parameters()})
    return weights


def test_a_tower_that_waits_does_not_change_by_a_bit() -> None:
    config = config_of(image_from_step=3, weight_decay=0.5, warmup_steps=0, schedule="constant")
    weights = train_steps(build(), config, 4)
    for name in weights[0]:
        waits = name.startswith("image_tower.")
        moved = not weights[0][name].equal(weights[3][name])
        gains = "key.bias" not in name  # a softmax does not see it
        assert moved != waits or not gains, name
    image = [name for name in weights[0] if name.startswith("image_tower.")]
    assert sum(not weights[3][name].equal(weights[4][name]) for name in image) == len(image)
    projection = "image_projection.weight"
    assert all(not a[projection].equal(b[projection]) for a, b in pairwise(weights))
