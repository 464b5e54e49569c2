"""AdamW with per-tower parameter groups, and the learning rate as a function of the step.

    parameter -> its tower's rate, weight decay, depth, first step -> group of equal settings -> AdamW
    step      -> warm-up x (cosine | constant, cooldown)           -> learning rate of each group

A tower's settings apply to its trunk. The projections, the temperature, the bias and an objective's head
belong to no tower: they use the common settings and train from the first step.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from torch import nn
from torch.optim import AdamW

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.image_tower import ImageTower
from mmalign.models.text_tower import TextTower

_WARMUP_STEPS = 50
Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    lr: float = pydantic.Field(gt=0)
    """Highest learning rate."""
    image_lr: float | None = pydantic.Field(default=None, gt=0)
    text_lr: float | None = pydantic.Field(default=None, gt=0)
    """That of a tower; by default `lr`."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = pydantic.Field(default=1e-6, gt=0)
    weight_decay: float = pydantic.Field(default=0.1, ge=0)
    """Of matrices. Vectors (norms, biases), the temperature, and an image tower's position and class
    embeddings have none."""
    image_weight_decay: float | None = pydantic.Field(default=None, ge=0)
    text_weight_decay: float | None = pydantic.Field(default=None, ge=0)
    """That of a tower; by default `weight_decay`."""
    image_layer_decay: float = pydantic.Field(default=1.0, gt=0, le=1)
    text_layer_decay: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Each block of the tower learns at this many times the rate of the block above it, the highest one at
    this many times the tower's rate (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254)."""
    image_from_step: int = pydantic.Field(default=0, ge=0)
    text_from_step: int = pydantic.Field(default=0, ge=0)
    """The tower does not change before this step (from 0), where its own warm-up begins; its projection
    trains from the start."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decay to the last step, or constant until the cooldown."""
    warmup_steps: int | None = pydantic.Field(default=None, ge=0)
    """Steps in which the rate rises linearly; without `warmup_images` 50."""
    warmup_images: int | None = pydantic.Field(
        default=None, ge=0, validation_alias=pydantic.AliasChoices("warmup_images", "warmup_pairs")
    )
    """Warm-up in images instead of steps, to compare runs of different batch sizes. 0.1.0: `warmup_pairs`."""
    cooldown_steps: int = pydantic.Field(default=0, ge=0)
    """Last steps of a constant schedule, in which the rate decays by 1 - sqrt (arXiv 2405.18392)."""
    final_lr_share: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of the highest rate at which the cosine or the cooldown ends."""
    clip: float = pydantic.Field(default=1.0, gt=0)
    """Longest global gradient norm."""
    average: Beta | None = None
    """Decay per step of a moving average of the weights (0.999), which is then the run's model
    (`average.py`). None: the weights themselves are."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "OptimizerConfig":
        if self.warmup_steps is not None and self.warmup_images is not None:
            raise ValueError("give `warmup_steps` or `warmup_images`, not both")
        if self.cooldown_steps and self.schedule != "constant":
            raise ValueError("`cooldown_steps` belongs to `schedule: constant`; a cosine has none")
        if self.final_lr_share and self.schedule == "constant" and not self.cooldown_steps:
            raise ValueError("`final_lr_share` of a constant schedule needs `cooldown_steps`")
        return self


class _Setting(NamedTuple):
    # Of one parameter; parameters of equal settings share a group.
    highest_lr: float
    weight_decay: float
    from_step: int


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over every trainable parameter of a dual encoder, or of a module that holds one.

    Each group carries `highest_lr` and `from_step`, from which `set_learning_rates` derives the rate of a
    step.

    Raises:
        UserError: a layer decay for a tower whose layers are not known.
    """
    settings = dict(_tower_settings(model, config))
    common = _Setting(config.lr, config.weight_decay, 0)
    groups: dict[_Setting, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            setting = settings.get(name, common)
            # Vectors: norms, biases and the temperature.
            if parameter.ndim < 2:
                setting = setting._replace(weight_decay=0.0)
            groups.setdefault(setting, []).append(parameter)
    return AdamW(
        [{"params": parameters, **setting._asdict()} for setting, parameters in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        # One kernel per group: on CPUs several times as fast as the default, with the same result.
        fused=True,
    )


def set_learning_rates(
    groups: Iterable[dict[str, Any]],
    config: OptimizerConfig,
    step: int,
    steps: int,
    batch_size: int,
) -> float:
    """Set every group's `lr` to that of step `step` (from 0) of `steps`.

    Returns:
        The rate of the parameters that belong to no tower (projections, temperature, bias, head).
    """
    warmup = _WARMUP_STEPS if config.warmup_steps is None else config.warmup_steps
    if config.warmup_images is not None:
        warmup = math.ceil(config.warmup_images / batch_size)
    share = _share_after_warmup(config, step, steps, warmup)
    for group in groups:
        # Before its first step a trunk has a rate of 0. AdamW multiplies its decoupled decay by the rate as
        # well, so its weights stay bit-equal, and the partitions of ZeRO need not change. Its gradients are
        # computed nevertheless: they count in the clipped norm and update Adam's moments.
        warm = _warmth(step - group["from_step"], warmup)
        group["lr"] = group["highest_lr"] * warm * share
    return config.lr * _warmth(step, warmup) * share


def _tower_settings(model: nn.Module, config: OptimizerConfig) -> Iterator[tuple[str, _Setting]]:
    # Name in `model` and setting of each parameter of the towers' trunks. Found by type: the model may be the
    # dual encoder itself or hold it under any name.
    for prefix, module in model.named_modules():
        if not isinstance(module, ImageTower | TextTower):
            continue
        side = "image" if isinstance(module, ImageTower) else "text"
        names = ("lr", "weight_decay", "layer_decay", "from_step")
        lr, weight_decay, layer_decay, from_step = (getattr(config, f"{side}_{n}") for n in names)
        # Not `or`: a weight decay of 0 is a choice.
        lr = config.lr if lr is None else lr
        weight_decay = config.weight_decay if weight_decay is None else weight_decay
        undecayed = module.undecayed() if isinstance(module, ImageTower) else set()
        for name, scale in _scales(module, side, layer_decay).items():
            spared = any(fnmatch.fnmatch(name, pattern) for pattern in undecayed)
            setting = _Setting(lr * scale, 0.0 if spared else weight_decay, from_step)
            yield f"{prefix}.trunk.{name}", setting


def _scales(tower: ImageTower | TextTower, side: str, layer_decay: float) -> dict[str, float]:
    # Share of the tower's rate for each parameter of its trunk, by its name there. 1.0 apart, so that a tower
    # whose layers are not known can train without layer decay.
    if layer_decay == 1.0:
        return {name: 1.0 for name, _ in tower.trunk.named_parameters()}
    depths = tower.layer_depths()
    if depths is None:
        layers = f"the layers of a `{type(tower.trunk).__name__}`"
        raise UserError(f"optimizer.{side}_layer_decay: {layers} are not known; leave it out")
    return {name: layer_decay**depth for name, depth in depths.items()}


def _warmth(step: int, warmup: int) -> float:
    # `step` is counted from the tower's first. + 1: that one has a rate above 0, and the last one of the
    # warm-up the highest.
    if step < 0:
        return 0.0
    return (step + 1) / warmup if step < warmup else 1.0


def _share_after_warmup(config: OptimizerConfig, step: int, steps: int, warmup: int) -> float:
    is_cosine = config.schedule == "cosine"
    # A warm-up longer than the run leaves no steps to decay in.
    start = min(warmup, steps) if is_cosine else max(0, steps - config.cooldown_steps)
    if step < start or start == steps:
        return 1.0
    progress = (step - start) / (steps - start)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if is_cosine else 1 - math.sqrt(progress)
    return config.final_lr_share + (1 - config.final_lr_share) * left
