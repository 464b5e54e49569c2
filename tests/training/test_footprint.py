"""The memory of a model, measured without allocating it, is that of a real pass."""

from typing import Any

import pytest
import torch
from tiny import MODEL
from torch import Tensor, nn

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import TokenizerConfig
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.training.footprint import build_on_meta, live_bytes, parts_of
from mmalign.training.objective import ContrastiveConfig, MaskedLanguageModelConfig

CONTRASTIVE = ContrastiveConfig(kind="contrastive")
TRAINED = TokenizerConfig(kind="trained", vocabulary=160)
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGES, CAPTIONS, TOKENS = 16, 32, 32


def config(layers: int = 1, **image: Any) -> ModelConfig:
    architecture = MODEL["text"]["architecture"] | WITHOUT_DROPOUT | {"num_hidden_layers": layers}
    tree = {**MODEL, "text": {"architecture": architecture}, "image": MODEL["image"] | image}
    return validate(ModelConfig, tree, "test")


def demo() -> ModelConfig:
    """The demo's image tower; with wide layers on few pixels, gradients would outweigh activations."""
    return config(image_size=64, options={"stem_width": 16, "channels": [32, 64, 128, 256]})


def vit(layers: int) -> ModelConfig:
    options = {"depth": layers, "embed_dim": 32, "num_heads": 2, "patch_size": 4}
    return config(layers, name="vit_tiny_patch16_224", options=options)


def measured(model_config: ModelConfig, is_bf16: bool = False, checkpoints: bool = False) -> int:
    model, module = build_on_meta(model_config, TRAINED, CONTRASTIVE)
    return live_bytes(model, module, CONTRASTIVE, IMAGES, CAPTIONS, TOKENS, is_bf16, checkpoints)


def saved_bytes(model: DualEncoder, is_bf16: bool) -> int:
    """Bytes of all storages but the weights that a real forward pass leaves to the backward pass."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    size = model.image_tower.size
    image_BCHW = torch.zeros(IMAGES, 3, size, size, dtype=torch.uint8)
    token_NL = torch.ones(CAPTIONS, TOKENS, dtype=torch.int64)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=is_bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        embeddings = model(image_BCHW, token_NL, torch.ones_like(token_NL))
        total = embeddings.image_BD.sum() + embeddings.text_ND.sum()
    assert total.requires_grad
    return sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in weights)


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("model_config", [demo(), vit(layers=4)], ids=["resnet", "vit"])
def test_activations_are_what_a_real_pass_saves(model_config: ModelConfig, is_bf16: bool) -> None:
    real = saved_bytes(build_dual_encoder(model_config, 160, 0).train(), is_bf16)
    assert measured(model_config, is_bf16) == pytest.approx(real, rel=0.15)


def test_images_that_come_as_features_cost_no_image_tower() -> None:
    def with_features(size: int) -> int:
        model, module = build_on_meta(config(frozen=True, image_size=size), TRAINED, CONTRASTIVE)
        sizes = (IMAGES, CAPTIONS, TOKENS, False, False)
        return live_bytes(model, module, CONTRASTIVE, *sizes, reads_features=True)

    assert with_features(64) == with_features(128)
    pixels = IMAGES * 3 * 128 * 128 * 4
    assert with_features(128) < measured(config(frozen=True, image_size=128)) - pixels


def test_checkpointing_saves_most_of_a_deep_model() -> None:
    assert measured(vit(8), checkpoints=True) < measured(vit(8)) / 2
    # One block's activations stand beside the inputs of all.
    assert measured(vit(8), checkpoints=True) > measured(vit(1)) / 2


def test_parameters_are_those_of_the_real_model() -> None:
    model_config = config(frozen=True)
    _, module = build_on_meta(model_config, TRAINED, CONTRASTIVE)
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    real = build_dual_encoder(model_config, 160, 0)
    image, text, rest = parts_of(module)
    assert (image.trainable, image.frozen) == (0, count(real.image_tower))
    assert (text.trainable, text.frozen) == (count(real.text_tower), 0)
    assert image.frozen + text.trainable + rest.trainable == count(real)


def test_masked_language_modelling_takes_a_head_and_no_image() -> None:
    objective = MaskedLanguageModelConfig(kind="masked_language_model")
    model, module = build_on_meta(config(), TRAINED, objective)
    parts = {part.name: part for part in parts_of(module)}
    width = MODEL["text"]["architecture"]["hidden_size"]
    assert parts["image tower"].trainable == 0
    assert parts["other"].trainable == width * width + width + 2 * width + 160
    logits = IMAGES * TOKENS * 0.15 * 160 * 4
    taken = live_bytes(model, module, objective, IMAGES, IMAGES, TOKENS, False, False)
    assert logits < taken < measured(config())


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        (
            "text",
            {"pretrained": "some/encoder"},
            "model.text.architecture: only the hub knows",
        ),
        ("text", {"architecture": {"model_type": "bert"}}, "vocab_size: only the hub knows"),
        (
            "image",
            {"kind": "open_clip", "name": "hf-hub:a/b", "image_size": 32},
            "model.image.name",
        ),
    ],
)
def test_what_only_the_hub_knows_cannot_be_planned(
    tower: str, changes: dict[str, Any], message: str
) -> None:
    known = {**MODEL["text"]["architecture"], "vocab_size": 160}
    tree = {**MODEL, "text": {"architecture": known}, tower: changes}
    pretrained = TokenizerConfig(kind="pretrained", name="some/tokenizer")
    with pytest.raises(UserError, match=message):
        build_on_meta(validate(ModelConfig, tree, "test"), pretrained, CONTRASTIVE)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
