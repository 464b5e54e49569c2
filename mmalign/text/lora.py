"""Low-rank adaptation of a tower: train small matrices beside its linear layers, then merge them.

A layer's weight W becomes W + (alpha / rank) B A, with A random, B zero at first, and W fixed (LoRA, Hu et
al. 2021, arXiv 2106.09685), by the library peft.
"""

from typing import Literal

import pydantic
from torch import nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import layer_depths

# How models name the linear layers of attention that make queries and values.
_QUERY_VALUE = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"))


class LoraConfig(Section):
    rank: int = pydantic.Field(default=8, ge=1)
    """Rows of A; more of them can learn more and cost more."""
    alpha: float = pydantic.Field(default=16.0, gt=0)
    """The product of the adapters is scaled by alpha / rank."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Of the inputs of the adapters, in training."""
    targets: tuple[str, ...] | Literal["query_value"] | None = None
    """Ends of the names of the linear layers that get an adapter, for example [query, value]; query_value:
    the two of attention, whatever the model calls them; by default all linear layers of the trunk."""


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
    try:
        import peft
    except ImportError:
        raise UserError("lora: needs peft; `pip install 'mmalign[finetune]'` brings it") from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_modules(tower, config, blocks),
    )
    mode = tower.training
    tower.requires_grad_(False)
    tower.trunk = peft.get_peft_model(tower.trunk, settings)
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
    linear = [name for name, one in tower.trunk.named_modules() if isinstance(one, nn.Linear)]
    ends = _targets(linear, config)
    # The dot before both: `key` is no end of `monkey`, and a name may have a single part.
    chosen = [name for name in linear if f".{name}".endswith(ends)]
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


def _targets(linear: list[str], config: LoraConfig) -> tuple[str, ...]:
    # `targets` as ends of names, each of which some linear layer has.
    names = {name.rpartition(".")[2] for name in linear}
    targets = config.targets
    if targets is None:
        return tuple(f".{name}" for name in names)
    if targets == "query_value":
        targets = next((pair for pair in _QUERY_VALUE if names.issuperset(pair)), ())
        if not targets:
            raise UserError(
                "lora.targets: which layers make queries and values is not known here; name some of "
                f"{', '.join(sorted(names))}"
            )
    ends = tuple(f".{one}" for one in targets)
    for end in ends:
        if not any(f".{name}".endswith(end) for name in linear):
            there = ", ".join(sorted(names))
            raise UserError(
                f"lora.targets: no linear layer is named `{end[1:]}`; there are {there}"
            )
    return ends
