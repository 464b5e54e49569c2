"""Low-rank adaptation of a text encoder in fine-tuning: adapters train, then they are merged."""

from mmalign.core.errors import UserError
from mmalign.models.lora import LoraConfig, linear_layers, peft_settings
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import layer_depths


def add_lora(tower: TextEncoder, config: LoraConfig, blocks: int | None = None) -> None:
    """Put adapters on the tower's trunk, in place; everything else in the tower is frozen.

    The outputs do not change until the first step. A is drawn from torch's global generator.

    Args:
        blocks: adapters in the first so many blocks only, which is all that changes the states after them;
            None: in all.

    Raises:
        UserError: peft is not installed, the trunk has no linear layer of a name in `targets`, or `blocks`
            is given and it does not keep its blocks in one list.
    """
    settings = peft_settings(config, _modules(tower, config, blocks))
    from peft import get_peft_model

    mode = tower.training
    tower.requires_grad_(False)
    tower.trunk = get_peft_model(tower.trunk, settings)
    tower.train(mode)  # peft sets the trunk to training


def merge_lora(tower: TextEncoder) -> None:
    """Add the adapters to the weights, in place: the trunk is a plain model of transformers again."""
    mode = tower.training
    tower.trunk = tower.trunk.merge_and_unload()
    tower.requires_grad_(True)  # like one that was just loaded
    tower.train(mode)


def _modules(tower: TextEncoder, config: LoraConfig, blocks: int | None) -> str | list[str]:
    if config.targets is None and blocks is None:
        return "all-linear"  # also the layers of GPT-2, which are no `nn.Linear`
    chosen = linear_layers(tower.trunk, config)
    if blocks is None:
        return chosen
    depths = layer_depths(tower.trunk)
    if depths is None:
        raise UserError(
            "lora: the model has no list of blocks for adapters to stop at; put them in all (`adapters: all`)"
        )
    # Depths count from the top: the last block has depth 1.
    above = tower.trunk.config.num_hidden_layers - blocks
    return [name for name in chosen if depths[f"{name}.weight"] > above]
