"""AdamW with per-tower parameter groups, and the learning rate as a function of the step.

    parameter -> its tower's rate, weight decay, depth, first step -> group of equal settings -> AdamW
    step      -> warm-up x (cosine | constant, cooldown)           -> learning rate of each group

A tower's settings apply to its trunk. The projections, the temperature, the bias and an objective's head
belong to no tower: they use the common settings and train from the first step.

Before its first step a trunk has a learning rate of 0. AdamW multiplies its decoupled decay by the rate as
well, so its weights stay bit-equal, and the partitions of ZeRO need not change. Its gradients are computed
nevertheless: they count in the clipped norm and update Adam's moments.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import pydantic
from torch import nn
from torch.optim import AdamW

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.image_tower import ImageTower
from mmalign.models.text_tower import TextTower

_WARMUP_STEPS = 50


class OptimizerConfig(Section):
    lr: float = pydantic.Field(gt=0)
    """Highest learning rate."""
    image_lr: float | None = pydantic.Field(default=None, gt=0)
    """Highest learning rate of the image tower; by default `lr`."""
    text_lr: float | None = pydantic.Field(default=None, gt=0)
    """Highest learning rate of the text tower; by default `lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = pydantic.Field(default=1e-6, gt=0)
    weight_decay: float = pydantic.Field(default=0.1, ge=0)
    """Decoupled decay of matrices. Vectors (norms, biases), the temperature, and an image tower's position
    and class embeddings have none."""
    image_weight_decay: float | None = pydantic.Field(default=None, ge=0)
    """Weight decay of the image tower; by default `weight_decay`."""
    text_weight_decay: float | None = pydantic.Field(default=None, ge=0)
    """Weight decay of the text tower; by default `weight_decay`."""
    image_layer_decay: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Each block of the image tower learns at this many times the rate of the block above it, the highest
    one at this many times the tower's rate; the embeddings (or the stem) are the deepest (ELECTRA,
    arXiv 2003.10555; BEiT, arXiv 2106.08254)."""
    text_layer_decay: float = pydantic.Field(default=1.0, gt=0, le=1)
    """The same for the text tower."""
    image_from_step: int = pydantic.Field(default=0, ge=0)
    """The image tower does not change before this step (from 0), where its own warm-up begins; its
    projection trains from the start."""
    text_from_step: int = pydantic.Field(default=0, ge=0)
    """The same for the text tower."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decay to the last step, or constant until the cooldown."""
    warmup_steps: int | None = pydantic.Field(default=None, ge=0)
    """Steps in which the rate rises linearly; without `warmup_pairs` 50."""
    warmup_pairs: int | None = pydantic.Field(default=None, ge=0)
    """Warm-up in images instead of steps, to compare runs of different batch sizes."""
    cooldown_steps: int = pydantic.Field(default=0, ge=0)
    """Last steps of a constant schedule, in which the rate decays by 1 - sqrt (arXiv 2405.18392)."""
    final_lr_share: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of the highest rate at which the cosine or the cooldown ends."""
    clip: float = pydantic.Field(default=1.0, gt=0)
    """Longest global gradient norm."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "OptimizerConfig":
        if self.warmup_steps is not None and self.warmup_pairs is not None:
            raise ValueError("give `warmup_steps` or `warmup_pairs`, not both")
        if self.cooldown_steps and self.schedule != "constant":
            raise ValueError("`cooldown_steps` belongs to `schedule: constant`; a cosine has none")
        if self.final_lr_share and self.schedule == "constant" and not self.cooldown_steps:
            raise ValueError("`final_lr_share` of a constant schedule needs `cooldown_steps`")
        return self


class _Setting(NamedTuple):
    """Hyperparameters of one parameter; parameters of equal settings share a group."""

    highest_lr: float
    weight_decay: float
    from_step: int


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over every trainable parameter, each in exactly one group.

    Each group carries `highest_lr` and `from_step`, from which `set_learning_rates` derives the rate of a
    step. Groups stand in the order of their first parameters.

    Args:
        model: a dual encoder, or a module that holds one.

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

    Args:
        groups: those of `build_optimizer`, or of what wraps it.
        batch_size: images of a step over all ranks.

    Returns:
        The rate of the parameters that belong to no tower (projections, temperature, bias, head).
    """
    share = _share_after_warmup(config, step, steps, batch_size)
    for group in groups:
        warm = _warmth(config, step - group["from_step"], batch_size)
        group["lr"] = group["highest_lr"] * warm * share
    return config.lr * _warmth(config, step, batch_size) * share


def _tower_settings(model: nn.Module, config: OptimizerConfig) -> Iterator[tuple[str, _Setting]]:
    """Name in `model` and setting of each parameter of the towers' trunks."""
    # Found by type: the model may be the dual encoder itself or hold it under any name.
    for prefix, module in model.named_modules():
        if not isinstance(module, ImageTower | TextTower):
            continue
        side = "image" if isinstance(module, ImageTower) else "text"
        own_lr, own_decay = (getattr(config, f"{side}_{name}") for name in ("lr", "weight_decay"))
        # Not `or`: a weight decay of 0 is a choice.
        lr = config.lr if own_lr is None else own_lr
        weight_decay = config.weight_decay if own_decay is None else own_decay
        undecayed = module.undecayed() if isinstance(module, ImageTower) else set()
        scales = _scales(module, side, getattr(config, f"{side}_layer_decay"))
        for name, scale in scales.items():
            spared = any(fnmatch.fnmatch(name, pattern) for pattern in undecayed)
            decay = 0.0 if spared else weight_decay
            setting = _Setting(lr * scale, decay, getattr(config, f"{side}_from_step"))
            yield f"{prefix}.trunk.{name}", setting


def _scales(tower: ImageTower | TextTower, side: str, layer_decay: float) -> dict[str, float]:
    """Share of the tower's rate for each parameter of its trunk, by its name there."""
    # Apart, so that a tower whose layers are not known can train without layer decay.
    if layer_decay == 1.0:
        return {name: 1.0 for name, _ in tower.trunk.named_parameters()}
    depths = tower.layer_depths()
    if depths is None:
        raise UserError(
            f"optimizer.{side}_layer_decay: the layers of a `{type(tower.trunk).__name__}` are not "
            "known; leave the field out or choose another tower"
        )
    return {name: layer_decay**depth for name, depth in depths.items()}


def _warmth(config: OptimizerConfig, step: int, batch_size: int) -> float:
    """Factor of the warm-up at step `step` since the tower's first: 0 before it, linear, then 1."""
    if step < 0:
        return 0.0
    warmup = _warmup_steps(config, batch_size)
    # + 1: the first step has a rate above 0, and the last one of the warm-up the highest.
    return (step + 1) / warmup if step < warmup else 1.0


def _share_after_warmup(config: OptimizerConfig, step: int, steps: int, batch_size: int) -> float:
    """Factor of the schedule after the warm-up."""
    if config.schedule == "cosine":
        # A warm-up longer than the run leaves no steps to decay in.
        start = min(_warmup_steps(config, batch_size), steps)
    else:
        start = max(0, steps - config.cooldown_steps)
    if step < start or start == steps:
        return 1.0
    progress = (step - start) / (steps - start)
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - math.sqrt(progress)
    return config.final_lr_share + (1 - config.final_lr_share) * left


def _warmup_steps(config: OptimizerConfig, batch_size: int) -> int:
    if config.warmup_pairs is not None:
        return math.ceil(config.warmup_pairs / batch_size)
    return _WARMUP_STEPS if config.warmup_steps is None else config.warmup_steps
