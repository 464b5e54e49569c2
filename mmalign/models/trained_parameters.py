"""Which parameters of a tower train: all, none, those of the last layers, or adapters (`lora.py`).

Projections, temperature and bias always train. What does not train is in every checkpoint nevertheless.
"""

from collections.abc import Mapping

import pydantic
from torch import nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.lora import LoraConfig


class TrainedParametersConfig(Section):
    """The fields that both towers have; one of the first three at most."""

    frozen: bool = False
    """Leave the trunk as it is (LiT, arXiv 2111.07991); its projection still trains."""
    train_layers: int | None = pydantic.Field(default=None, ge=1)
    """Train the last so many layers of the trunk and leave the others as they are."""
    lora: LoraConfig | None = None
    """Leave the trunk as it is and train small matrices beside its linear layers; evaluation, export and
    `init_from` see them merged."""

    @pydantic.model_validator(mode="after")
    def _one_choice(self) -> "TrainedParametersConfig":
        chosen = [name for name in ("frozen", "train_layers", "lora") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"`{chosen[0]}` and `{chosen[1]}` exclude each other; give one")
        return self


def choose_parameters(tower: nn.Module, config: TrainedParametersConfig) -> None:
    """Set which parameters of an image or text tower train, in place.

    Raises:
        UserError: `train_layers` of a network whose layers are not known, or that has no more.
    """
    tower.requires_grad_(not config.frozen and config.lora is None)
    if config.train_layers is not None:
        depths: Mapping[str, int] | None = tower.layer_depths()  # type: ignore[operator]
        trunk, most = tower.trunk, max((depths or {}).values(), default=0)
        assert isinstance(trunk, nn.Module)
        if depths is None or config.train_layers >= most:
            count = "are not known" if depths is None else f"are {most}, with the embeddings"
            raise UserError(
                f"train_layers: is {config.train_layers}, and the layers of a `{type(trunk).__name__}` "
                f"{count}; leave it out"
            )
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_(depths[name] <= config.train_layers)


def freeze_statistics(tower: nn.Module) -> None:
    """Put every part that has parameters of which none trains into evaluation mode, in place."""
    # No dropout, and no moving batch statistics.
    for module in tower.modules():
        trains = [parameter.requires_grad for parameter in module.parameters()]
        if trains and not any(trains):
            module.eval()
