"""Recomputed activations and compiled towers compute what plain ones do."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.execution import checkpoint_activations, compile_towers, unfuse_attention


def timm(name: str, **options: Any) -> dict[str, Any]:
    return {"kind": "timm", "name": name, "options": options}


def open_clip(name: str, **vision: Any) -> dict[str, Any]:
    text = {"layers": 1, "width": 16, "heads": 2}
    options = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    return {"kind": "open_clip", "name": name, "options": options}


VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
DROPOUT = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}
CONVNEXT = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"}
# The image towers, and how the names of the modules in their blocks begin.
IMAGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "vit": (timm("vit_tiny_patch16_224", **VIT, **DROPOUT), ("blocks.",)),
    "resnet": (timm("resnet10t", channels=[8, 8, 16, 16], stem_width=8), ("layer",)),
    "open_clip": (
        open_clip("ViT-B-32", layers=2, width=32, head_width=8, patch_size=8),
        ("transformer.resblocks.",),
    ),
    "open_clip_timm": (
        open_clip("ViT-B-32", **CONVNEXT),
        ("trunk.stages.0.blocks.", "trunk.stages.3.blocks."),
    ),
    # It takes the call and does nothing.
    "modified_resnet": (open_clip("RN50", layers=[1, 1, 1, 1], width=8), ()),
}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {"hidden_size": 32, "intermediate_size": 64, **LAYERS}
MT5 = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16}
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (BERT, "encoder.layer."),
    "xlm-roberta": (BERT, "encoder.layer."),
    "modernbert": ({**BERT, "mlp_dropout": 0.1, "attention_dropout": 0.1}, "layers."),
    "mt5": (MT5, "encoder.block."),
}


def build(image: str = "vit", text: str = "bert", frozen: bool = False) -> DualEncoder:
    architecture = {"model_type": text, **TEXTS[text][0]}
    tree = {
        "image": {"image_size": 32, "frozen": frozen, **IMAGES[image][0]},
        "text": {"architecture": architecture, "frozen": frozen},
        "embedding": 8,
    }
    torch.manual_seed(0)
    config = validate(ModelConfig, tree, "test")
    return build_dual_encoder(config, vocabulary=40, padding_id=1).train()


def encode_images(model: DualEncoder) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return model.encode_image(torch.randn(4, 3, 32, 32, generator=generator))


def encode_texts(model: DualEncoder) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    token_NL = torch.randint(2, 40, (4, 10), generator=generator)
    return model.encode_text(token_NL, torch.ones_like(token_NL))


class Step:
    """One forward and backward pass: gradients, buffers, bytes kept for backward, calls of each module."""

    def __init__(
        self, model: DualEncoder, encode: Callable[[DualEncoder], Tensor], seed: int = 2
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.kept = 0
        hooks = [
            module.register_forward_pre_hook(partial(self._count, name))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]
        model.zero_grad()
        torch.manual_seed(seed)
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            rows_BD = encode(model)
        (rows_BD @ torch.linspace(-1, 1, rows_BD.shape[1])).square().sum().backward()
        self.draw = torch.rand(1)  # where the step leaves the random state
        for hook in hooks:
            hook.remove()
        self.gradients = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def _count(self, name: str, module: nn.Module, _: Any) -> None:
        self.calls[name] += 1

    def _keep(self, tensor: Tensor) -> Tensor:
        self.kept += tensor.nbytes
        return tensor

    def equals(self, other: "Step") -> bool:
        ours, theirs = (self.gradients | self.buffers), (other.gradients | other.buffers)
        assert ours.keys() == theirs.keys()
        return all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def compare(
    model: DualEncoder, encode: Callable[[DualEncoder], Tensor], blocks: tuple[str, ...]
) -> Step:
    """The same step before and after checkpointing is switched on; what shows that it is on."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = Step(model, encode)
    model.load_state_dict(start)
    checkpoint_activations(model)
    recomputed = Step(model, encode)
    assert recomputed.equals(plain)
    assert recomputed.draw.equal(plain.draw)
    assert recomputed.kept < 0.8 * plain.kept
    assert set(plain.calls.values()) == {1}
    inside = {name for name in plain.calls if name.startswith(blocks)}
    assert inside
    assert {recomputed.calls[name] for name in inside} == {2}
    assert model.state_dict().keys() == start.keys()
    return plain


@pytest.mark.parametrize("name", ["vit", "resnet", "open_clip", "open_clip_timm", *TEXTS])
def test_towers_recompute_their_blocks(name: str) -> None:
    if name in TEXTS:
        model, encode = build(text=name), encode_texts
        blocks = (f"text_tower.trunk.{TEXTS[name][1]}",)
    else:
        model, encode = build(image=name), encode_images
        blocks = tuple(f"image_tower.trunk.{block}" for block in IMAGES[name][1])
    plain = compare(model, encode, blocks)
    # Dropout is at work: with other masks the gradients are others.
    if name in ("vit", *TEXTS):
        assert not Step(model, encode, seed=3).equals(plain)


def test_batch_statistics_move_once_in_every_step() -> None:
    plain, recomputed = build("resnet"), build("resnet")
    checkpoint_activations(recomputed)
    for _ in range(3):
        assert Step(recomputed, encode_images).equals(Step(plain, encode_images))
    steps = plain.image_tower.trunk.layer1[0].bn1.num_batches_tracked
    assert int(steps) == 3
    assert encode_images(plain.eval()).equal(encode_images(recomputed.eval()))


def test_frozen_trunks_are_left_alone() -> None:
    model = build(frozen=True)
    checkpoint_activations(model)
    for encode in (encode_images, encode_texts):
        assert set(Step(model, encode).calls.values()) == {1}


def test_a_trunk_without_blocks_to_recompute_is_refused() -> None:
    model = build("modified_resnet")
    with pytest.raises(
        UserError, match=r"engine\.checkpoint_activations: the image tower, a `Modi"
    ):
        checkpoint_activations(model)
    model.image_tower.requires_grad_(False)
    model.text_tower.trunk.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="the text tower, a `BertModel`"):
        checkpoint_activations(model)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [False, True])
def test_compiled_towers_compute_the_same(checkpoints: bool) -> None:
    model = build("open_clip")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled code draws other masks
    names = list(model.state_dict())
    plain = [Step(model, encode) for encode in (encode_images, encode_texts)]
    compile_towers(model)
    if checkpoints:
        checkpoint_activations(model)
    compiled = [Step(model, encode) for encode in (encode_images, encode_texts)]
    assert list(model.state_dict()) == names
    for ours, theirs in zip(compiled, plain, strict=True):
        for name, gradient in theirs.gradients.items():
            error = (ours.gradients[name] - gradient).norm()
            assert error <= 1e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("text", sorted(TEXTS))
def test_attention_as_matrix_products_gives_the_same_gradients(text: str) -> None:
    fused, plain = build(text=text).eval(), build(text=text).eval()
    unfuse_attention(plain)
    for model in (fused, plain):
        encode_texts(model).pow(3).sum().backward()
    assert plain.text_tower.trunk.config._attn_implementation == "eager"
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
