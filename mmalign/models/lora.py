"""Low-rank adaptation: small matrices that train beside linear layers, and disappear into these.

A layer's weight W becomes W + (alpha / rank) B A, with A random, B zero at first, and W fixed (LoRA, Hu et
al. 2021, arXiv 2106.09685), by the library peft.

    a trunk      -> inject_lora -> X.base_layer.weight, X.lora_A..., X.lora_B..., also in checkpoints
    a checkpoint -> merge_lora  -> X.weight: the names of a trunk without adapters, for every reader
"""

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError

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


def peft_settings(config: LoraConfig, modules: str | list[str]) -> Any:
    """The configuration of peft for adapters on these layers; UserError: peft is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError("lora: needs peft; `pip install 'mmalign[finetune]'` brings it") from None
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules,
    )


def linear_layers(trunk: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear layers that `targets` means; UserError: one of its names is no layer's."""
    linear: list[str] = []
    inside: tuple[str, ...] = ()
    for name, module in trunk.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside += (f"{name}.",)  # it reads the weights of its layers and does not call them
        elif isinstance(module, nn.Linear) and not name.startswith(inside or ("\0",)):
            linear.append(name)
    ends = _targets(linear, config)
    # The dot before both: `key` is no end of `monkey`, and a name may have a single part.
    return [name for name in linear if f".{name}".endswith(ends)]


def inject_lora(trunk: nn.Module, config: LoraConfig, field: str) -> None:
    """Put adapters into a trunk, in place; what trained in it before still does.

    The outputs do not change until the first step. A is drawn from torch's global generator.

    Args:
        field: the section of the run file, for messages.
    """
    layers = linear_layers(trunk, config)
    if not layers:
        kind = type(trunk).__name__
        raise UserError(f"{field}: a `{kind}` has no linear layers to adapt; remove it")
    settings = peft_settings(config, layers)
    from peft import inject_adapter_in_model

    mode, trains = trunk.training, [p for p in trunk.parameters() if p.requires_grad]
    inject_adapter_in_model(settings, trunk)
    for parameter in trains:  # peft leaves adapters alone to train
        parameter.requires_grad_(True)
    trunk.train(mode)


def merge_lora(state: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """A checkpoint's weights with the adapters added, under the names of the plain towers.

    Args:
        alphas: `LoraConfig.alpha` by the prefix of the tower's names.
    """
    merged = {}
    for name, tensor in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix("base_layer.weight")
            a, b = (state[f"{layer}lora_{one}.default.weight"] for one in "AB")
            alpha = next(value for prefix, value in alphas.items() if name.startswith(prefix))
            tensor = tensor + alpha / len(a) * (b @ a)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


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
