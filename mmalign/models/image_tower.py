"""Image towers: a timm or an open_clip network that turns images into one feature each.

image_BCHW, uint8 -> normalised -> trunk -> feature_BF      F: the width that the trunk gives

"""

import difflib
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError


class _Tower(Section):
    name: str
    """In timm, for example `vit_base_patch16_224`; in open_clip `ViT-B-32`, `hf-hub:...`, `local-dir:...`."""
    image_size: int = pydantic.Field(ge=16)
    """Height and width of the input, in pixels."""
    options: dict[str, Any] = pydantic.Field(default={})
    """timm: arguments of its constructor; open_clip: fields of its model configuration to replace."""
    frozen: bool = False
    """Leave the trunk as it is (LiT, arXiv 2111.07991); its projection still trains."""


class TimmTower(_Tower):
    """A network of timm."""

    kind: Literal["timm"]
    pretrained: bool = False
    """Load timm's weights for this name (from the hub or its cache)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of timm's constructor: the options, and the size of images where it takes one."""
        import timm

        # Transformers are built for one input size, convolutional networks take any and refuse the argument.
        takes_size = getattr(timm.get_pretrained_cfg(self.name), "fixed_input_size", False)
        return {**({"img_size": self.image_size} if takes_size else {}), **self.options}


class OpenClipTower(_Tower):
    """The image tower of an open_clip model."""

    kind: Literal["open_clip"]
    pretrained: str | None = None
    """Tag of open_clip's weights, or the path of a checkpoint; none: random weights."""


ImageTowerConfig = Annotated[TimmTower | OpenClipTower, pydantic.Field(discriminator="kind")]


class ImageTower(nn.Module):
    """A trunk, and how its input is prepared.

    Attributes:
        width: F, the size of a feature.
        size: height and width of the input in pixels.
        mean, std: per channel, for inputs scaled to 0..1.
        side: pixels of a patch, if the network leaves out pixels of images of this size; else 1.
    """

    _mean_C11: Tensor
    _std_C11: Tensor

    def __init__(
        self, trunk: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.size = size
        self.mean = mean
        self.std = std
        # Not persistent: they belong to the architecture and are no weights.
        for name, values in (("_mean_C11", mean), ("_std_C11", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.side = 1
        hooks = [
            module.register_forward_pre_hook(self._note_side)
            for module in trunk.modules()
            if isinstance(module, nn.Conv2d)
        ]
        # F is measured: libraries name it in too many ways. A batch of one would move batch statistics.
        was_training = trunk.training
        with torch.no_grad():
            feature: Tensor = trunk.eval()(torch.zeros(1, 3, size, size))
        trunk.train(was_training)
        for hook in hooks:
            hook.remove()
        assert feature.ndim == 2, feature.shape
        self.width = feature.shape[1]

    def _note_side(self, conv: nn.Module, inputs: tuple[Tensor]) -> None:
        # Patches that neither overlap nor reach beyond the edge, of which a rest at the edge is left out.
        assert isinstance(conv, nn.Conv2d)
        patch, height = conv.kernel_size[0], inputs[0].shape[-2]
        if 1 < patch == conv.stride[0] and conv.padding == (0, 0) and height % patch:
            self.side = max(self.side, self.size // height * patch)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) pixels, uint8 or floating and then normalised already -> (B, F) features."""
        if image_BCHW.dtype == torch.uint8:
            # In this order, as every other library does it: the same rounding in deep networks too.
            scaled_BCHW = image_BCHW.to(self._mean_C11.dtype) / 255
            image_BCHW = (scaled_BCHW - self._mean_C11) / self._std_C11
        return self.trunk(image_BCHW)

    def layer_depths(self) -> dict[str, int] | None:
        """How many layers below the tower's output each parameter lies, by its name in the trunk.

        From 1 (a head or pooling, else the last block) to the stem or embeddings. None: not known.
        """
        layers = _layer_numbers(self.trunk)
        above = max(layers.values(), default=0) + 1
        return {name: above - layer for name, layer in layers.items()} or None

    def undecayed(self) -> set[str]:
        """Names in the trunk, or patterns of `fnmatch`, that the network's authors spare weight decay."""
        inner = getattr(self.trunk, "trunk", None)  # open_clip's adapter of timm
        trunk, prefix = (self.trunk, "") if inner is None else (inner, "trunk.")
        return {prefix + name for name in getattr(trunk, "no_weight_decay", set)()}


def build_image_tower(config: TimmTower | OpenClipTower) -> ImageTower:
    """The tower that the configuration names, frozen if it says so.

    Raises:
        UserError: the library does not know the name or an option.
    """
    tower = _build_timm(config) if isinstance(config, TimmTower) else _build_open_clip(config)
    return tower.requires_grad_(not config.frozen)


def _build_timm(config: TimmTower) -> ImageTower:
    import timm

    if not timm.is_model(config.name):
        near = ", ".join(difflib.get_close_matches(config.name, timm.list_models())) or "none"
        raise UserError(f"model.image.name: timm has no network `{config.name}`; near: {near}")
    options = {"pretrained": config.pretrained, "num_classes": 0, **config.arguments}
    try:
        trunk = timm.create_model(config.name, **options)
    except TypeError as error:
        raise UserError(f"model.image.options: timm's `{config.name}` says: {error}") from None
    facts = timm.data.resolve_model_data_config(trunk)
    return ImageTower(trunk, config.image_size, tuple(facts["mean"]), tuple(facts["std"]))


# Layers of open_clip's own networks, in timm's notation (`group_matcher`): only a layer's number is captured,
# and 99999 stands for "with the layer before". What nothing matches lies above all layers.
_OPEN_CLIP_LAYERS: dict[str, dict[str, Any]] = {
    "VisionTransformer": {
        "stem": r"^(?:conv1|class_embedding|positional_embedding|ln_pre)",
        "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post", (99999,))],
    },
    "ModifiedResNet": {"stem": r"^(?:conv|bn)\d", "blocks": r"^layer(\d+)\.(\d+)"},
}


def _layer_numbers(trunk: Any) -> dict[str, int]:
    # From 0 at the input; empty if the network does not say.
    from timm.models import group_parameters

    inner = getattr(trunk, "trunk", None)
    if inner is not None:  # open_clip's adapter: a network of timm and a head
        below = {f"trunk.{name}": layer for name, layer in _layer_numbers(inner).items()}
        above = max(below.values(), default=0) + 1
        return {n: below.get(n, above) for n, _ in trunk.named_parameters()} if below else {}
    known = hasattr(trunk, "group_matcher")
    matcher = trunk.group_matcher() if known else _OPEN_CLIP_LAYERS.get(type(trunk).__name__)
    return dict(group_parameters(trunk, matcher, reverse=True)) if matcher else {}


def _build_open_clip(config: OpenClipTower) -> ImageTower:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    if config.name not in open_clip.list_models() and ":" not in config.name:
        raise UserError(f"model.image.name: open_clip has no model `{config.name}`")
    # open_clip replaces sections of the configuration completely, so its own fields are merged here.
    base = (open_clip.get_model_config(config.name) or {}).get("vision_cfg", {})
    own = config.options.get("vision_cfg", {})
    vision = {**base, "image_size": config.image_size, **own}
    # open_clip moves what it built to `device`, by default a CPU, where a model on meta cannot go.
    places = {"pretrained": config.pretrained, "device": torch.get_default_device()}
    model = open_clip.create_model(
        config.name, **places, **{**config.options, "vision_cfg": vision}
    )
    visual: Any = model.visual
    mean = getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    return ImageTower(visual, config.image_size, tuple(mean), tuple(std))
