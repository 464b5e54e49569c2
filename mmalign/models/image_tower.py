"""Image towers: a timm or an open_clip network that turns images into one feature each.

image_BCHW, uint8 -> normalised -> trunk -> feature_BF      F: the width that the trunk gives

a run's configuration -> build_image_tower   -+-> ImageTower
ImageArchitecture     -> rebuild_image_tower -+     random weights, which a checkpoint replaces

"""

import difflib
import json
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError, one_line
from mmalign.models.text_tower import refuse_remote_code
from mmalign.models.trained_parameters import TrainedParametersConfig


class _Tower(TrainedParametersConfig):
    name: str
    """In timm, for example `vit_base_patch16_224`; in open_clip `ViT-B-32`, `hf-hub:...`, `local-dir:...`."""
    image_size: int = pydantic.Field(ge=16)
    """Height and width of the input, in pixels."""
    options: dict[str, Any] = pydantic.Field(default={})
    """timm: arguments of its constructor; open_clip: fields of its model configuration to replace."""


class TimmTower(_Tower):
    """A network of timm."""

    kind: Literal["timm"]
    pretrained: bool = False
    """Load timm's weights for this name (from the hub or its cache)."""


class OpenClipTower(_Tower):
    """The image tower of an open_clip model."""

    kind: Literal["open_clip"]
    pretrained: str | None = None
    """Tag of open_clip's weights, or the path of a checkpoint; none: random weights."""


ImageTowerConfig = Annotated[TimmTower | OpenClipTower, pydantic.Field(discriminator="kind")]


class ImageArchitecture(Section):
    """What a network is and how its input is prepared, without where its weights came from."""

    kind: Literal["timm", "open_clip"]
    name: str
    arguments: dict[str, Any]
    """timm: of its constructor; open_clip: `embed_dim`, `vision_cfg` and `quick_gelu` of a model."""
    timm_config: dict[str, Any] | None = None
    """The config.json by which `vision_cfg` names a network of timm, if it names it by its place."""
    size: int
    """Height and width of the input in pixels."""
    mean: tuple[float, float, float]
    """Of each channel, for inputs scaled to 0..1."""
    std: tuple[float, float, float]


class ImageTower(nn.Module):
    """A trunk, and how its input is prepared.

    Attributes:
        architecture: what `rebuild_image_tower` makes the same network of.
        width: F, the size of a feature.
        size: height and width of the input in pixels.
        side: pixels of a patch, if the network leaves out pixels of images of this size; else 1.
    """

    _mean_C11: Tensor
    _std_C11: Tensor

    def __init__(self, trunk: nn.Module, architecture: ImageArchitecture) -> None:
        super().__init__()
        self.trunk = trunk
        self.architecture = architecture
        self.size = size = architecture.size
        # Not persistent: they belong to the architecture and are no weights.
        for name, values in (("_mean_C11", architecture.mean), ("_std_C11", architecture.std)):
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
    """The tower that the configuration names, with the weights that it names.

    Raises:
        UserError: the library does not know the name or an option, or cannot load the weights.
    """
    try:
        tower = _build_timm(config) if isinstance(config, TimmTower) else _build_open_clip(config)
    except TypeError as error:
        raise UserError(f"model.image.options: `{config.name}` says: {one_line(error)}") from None
    # Weights that are not there: each library, and the hub's, has errors of its own for that.
    except (OSError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = (
            one_line(error) or type(error).__name__
        )  # timm says nothing of a file that is not there
        own = without_origin(config).options
        places = {name: value for name, value in config.options.items() if name not in own}
        raise UserError(
            f"model.image: {config.kind} cannot build `{config.name}` with the weights "
            f"{places or config.pretrained} ({reason}); name weights that are there and fit"
        ) from None
    return tower


def rebuild_image_tower(architecture: ImageArchitecture) -> ImageTower:
    """The same network with random weights; nothing is read but the libraries' own descriptions.

    Raises:
        UserError: the installed version of the library cannot build it.
    """
    name, arguments = architecture.name, architecture.arguments
    try:
        if architecture.kind == "timm":
            import timm

            trunk: Any = timm.create_model(name, num_classes=0, **arguments)
        else:
            trunk = _rebuild_open_clip(arguments, architecture.timm_config)
    except (OSError, RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"image tower: this {architecture.kind} cannot build `{name}` ({one_line(error)})"
        ) from None
    return ImageTower(trunk, architecture)


def resized(architecture: ImageArchitecture, size: int) -> ImageArchitecture:
    """The same network for images of another size."""
    arguments = dict(architecture.arguments)
    if "img_size" in arguments:  # timm's transformers
        arguments["img_size"] = size
    if "vision_cfg" in arguments:
        arguments["vision_cfg"] = {**arguments["vision_cfg"], "image_size": size}
    return architecture.model_copy(update={"size": size, "arguments": arguments})


def fit_positions(state: dict[str, Tensor], tower: ImageTower) -> dict[str, Tensor]:
    """A trunk's weights, trained on images of another size: its grid of position embeddings is interpolated.

    Bicubic, as timm does it (ViT, arXiv 2010.11929, section 3.2). Other weights stay what they are.
    """
    from timm.layers import resample_abs_pos_embed

    own, fitted = tower.trunk.state_dict(), dict(state)
    # Of timm, of open_clip, and of timm inside of open_clip.
    for name in (
        own.keys() & state.keys() & {"pos_embed", "positional_embedding", "trunk.pos_embed"}
    ):
        theirs, ours = state[name], own[name]
        sides = [math.isqrt(one.shape[-2]) for one in (theirs, ours)]
        before = [one.shape[-2] - side**2 for one, side in zip((theirs, ours), sides, strict=True)]
        # What stands before the grid, such as a class token, has no place in it.
        if theirs.shape != ours.shape and before[0] == before[1]:
            grid_1NC = theirs.reshape(1, *theirs.shape[-2:])
            new_1NC = resample_abs_pos_embed(
                grid_1NC, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=before[0]
            )
            fitted[name] = new_1NC.reshape(*theirs.shape[:-2], *new_1NC.shape[-2:])
    return fitted


def _rebuild_open_clip(arguments: dict[str, Any], timm_config: dict[str, Any] | None) -> Any:
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        vision = arguments["vision_cfg"]
        if timm_config is not None:
            (Path(folder) / "config.json").write_text(json.dumps(timm_config), encoding="utf-8")
            vision = {**vision, "timm_model_name": f"local-dir:{folder}"}
        return open_clip.CLIP(**{**arguments, "vision_cfg": vision}, text_cfg=_NO_TEXT).visual


def without_origin(config: TimmTower | OpenClipTower) -> TimmTower | OpenClipTower:
    """The same network with random weights: what only says where weights come from is taken out."""
    options = {
        name: value
        for name, value in config.options.items()
        if not name.startswith("pretrained") and name not in _ORIGIN
    }
    if isinstance(config, TimmTower):
        return config.model_copy(update={"pretrained": False, "options": options})
    if "vision_cfg" in options:
        fields = options["vision_cfg"].items()
        options["vision_cfg"] = {k: v for k, v in fields if k != "timm_model_pretrained"}
    return config.model_copy(update={"pretrained": None, "options": options})


# Arguments of timm's and open_clip's `create_model` that say where weights are, beside `pretrained...`.
_ORIGIN = ("checkpoint_path", "cache_dir", "load_weights", "require_pretrained", "weights_only")
# Fields of timm's `pretrained_cfg` that say so.
_PLACES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source")
# open_clip builds an image tower only beside a text tower.
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1}


def _build_timm(config: TimmTower) -> ImageTower:
    import timm

    if not timm.is_model(config.name):
        near = ", ".join(difflib.get_close_matches(config.name, timm.list_models())) or "none"
        raise UserError(f"model.image.name: timm has no network `{config.name}`; near: {near}")
    # Transformers are built for one input size, convolutional networks take any and refuse the argument.
    takes_size = getattr(timm.get_pretrained_cfg(config.name), "fixed_input_size", False)
    size = {"img_size": config.image_size} if takes_size else {}
    options = {"pretrained": config.pretrained, "num_classes": 0, **size, **config.options}
    trunk = timm.create_model(config.name, **options)
    facts = timm.data.resolve_model_data_config(trunk)
    arguments = {**size, **without_origin(config).options}
    return ImageTower(trunk, _architecture(config, arguments, facts["mean"], facts["std"]))


def _build_open_clip(config: OpenClipTower) -> ImageTower:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    if config.name not in open_clip.list_models() and ":" not in config.name:
        raise UserError(f"model.image.name: open_clip has no model `{config.name}`")
    # open_clip replaces sections of the configuration completely, so its own fields are merged here.
    base: Any = open_clip.get_model_config(config.name) or {}
    own = config.options.get("vision_cfg", {})
    vision = {**base.get("vision_cfg", {}), "image_size": config.image_size, **own}
    options = {**config.options, "vision_cfg": vision}
    # open_clip moves what it built to `device`, by default a CPU, where a model on meta cannot go.
    places = {"pretrained": config.pretrained, "device": torch.get_default_device()}
    refuse_remote_code()
    model = open_clip.create_model(config.name, **places, **options)
    visual: Any = model.visual
    mean = getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or OPENAI_DATASET_STD
    built = without_origin(config.model_copy(update={"options": {**base, **options}})).options
    arguments = {
        "embed_dim": built["embed_dim"],
        "vision_cfg": built["vision_cfg"],
        "quick_gelu": bool(built.get("quick_gelu") or built.get("force_quick_gelu")),
    }
    network = _timm_config(vision.get("timm_model_name") or "")
    return ImageTower(visual, _architecture(config, arguments, mean, std, network))


def _timm_config(name: str) -> dict[str, Any] | None:
    """What timm reads of the config.json in a folder or on the hub; None: it knows the name by itself."""
    import timm

    source, _, place = name.partition(":")
    if not place:
        return None
    if source == "hf-hub":
        facts, architecture, arguments = timm.models.load_model_config_from_hf(place)
    else:
        tree = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
        facts, architecture = tree["pretrained_cfg"], tree["architecture"]
        arguments = tree.get("model_args")
    kept = {name: value for name, value in facts.items() if name not in _PLACES}
    return {"architecture": architecture, "model_args": arguments or {}, "pretrained_cfg": kept}


def _architecture(
    config: TimmTower | OpenClipTower,
    arguments: dict[str, Any],
    mean: Any,
    std: Any,
    timm_config: dict[str, Any] | None = None,
) -> ImageArchitecture:
    return ImageArchitecture(
        kind=config.kind,
        name=config.name,
        arguments=arguments,
        size=config.image_size,
        mean=tuple(mean),
        std=tuple(std),
        timm_config=timm_config,
    )


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
