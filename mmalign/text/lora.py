"""Low-rank adaptation of a tower: train small matrices beside its linear layers, then fold them in.

    tower -> add_lora -> the same outputs, only adapters train -> training -> merge_lora -> an ordinary tower

A layer's weight W becomes W + (alpha / rank) B A, with A random, B zero at first, and W fixed (LoRA, Hu et
al. 2021, arXiv 2106.09685). The library peft does the work.
"""

from typing import Literal

import pydantic
from torch import nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import TextTower

# What models call the maps of attention that make queries and values.
_QUERY_VALUE = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"))


class LoraConfig(Section):
    rank: int = pydantic.Field(default=8, ge=1)
    """Rows of A; the more, the more can be learnt and the more must be trained."""
    alpha: float = pydantic.Field(default=16.0, gt=0)
    """What is learnt counts alpha / rank times."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Of the inputs of the adapters, in training."""
    targets: tuple[str, ...] | Literal["query_value"] | None = None
    """Ends of the names of the linear layers that get an adapter, for example [query, value]; query_value:
    the two of attention, whatever the model calls them; by default all linear layers of the trunk."""


def add_lora(tower: TextEncoder, config: LoraConfig, blocks: int | None = None) -> None:
    """Put adapters on the tower's trunk, in place; whatever else the tower has is frozen.

    The outputs stay what they were until the first step. A is drawn from torch's global generator.

    Args:
        blocks: adapters in the first so many blocks only, which is all that changes the states after them;
            None: in all.

    Raises:
        UserError: peft is not there, the trunk has no linear layer of a name in `targets`, or `blocks` is
            given and it does not keep its blocks in one list.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            "lora: needs peft; install it with `pip install 'mmalign[finetune]'`"
        ) from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_modules(tower, config, blocks),
    )
    mode = tower.training
    tower.requires_grad_(False)
    tower.trunk = peft.get_peft_model(tower.trunk, settings)
    tower.train(mode)


def merge_lora(tower: TextEncoder) -> None:
    """Fold the adapters into the weights, in place: the trunk is a plain model of transformers again.

    All of the tower can then be trained, like one that was just loaded.
    """
    mode = tower.training
    tower.trunk = tower.trunk.merge_and_unload()
    tower.requires_grad_(True)
    tower.train(mode)


def _modules(tower: TextEncoder, config: LoraConfig, blocks: int | None) -> str | list[str]:
    """What peft shall adapt: its own word for all linear layers, ends of names, or whole names."""
    linear = [name for name, one in tower.trunk.named_modules() if isinstance(one, nn.Linear)]
    targets = _targets(linear, config)
    if blocks is None:
        return "all-linear" if targets is None else list(targets)
    below = _below(tower, linear, blocks)
    return [name for name in below if targets is None or any(_ends(name, one) for one in targets)]


def _targets(linear: list[str], config: LoraConfig) -> tuple[str, ...] | None:
    """`targets` as ends of names, each of which some linear layer has."""
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    if config.targets == "query_value":
        pairs = (
            pair
            for pair in _QUERY_VALUE
            if all(any(_ends(name, end) for name in linear) for end in pair)
        )
        found = next(pairs, None)
        if found is None:
            raise UserError(
                "lora.targets: the model has no linear layers for queries and values by a name that is "
                f"known here; name some of {known}"
            )
        return found
    for target in config.targets or ():
        if not any(_ends(name, target) for name in linear):
            raise UserError(
                f"lora.targets: the model has no linear layer `{target}`; it has {known}"
            )
    return config.targets


def _below(tower: TextEncoder, linear: list[str], blocks: int) -> list[str]:
    """The linear layers that lie in the first `blocks` blocks, or before them."""
    depths = TextTower(tower.trunk, tower.pooling).layer_depths()
    if depths is None:
        raise UserError(
            "lora: the model does not keep its blocks in one list, so adapters cannot stop at one of them; "
            "put them in all (`adapters: all`)"
        )
    above = tower.trunk.config.num_hidden_layers - blocks
    return [name for name in linear if depths[f"{name}.weight"] > above]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
