"""How the states of a text's tokens become one feature, and how each library spells that.

    state_NLF, mask_NL -> pool -> feature_NF
    mean | cls | last (a run's YAML) <-> the spellings of sentence-transformers and open_clip

A new pooling is a name in `Pooling` and an entry in `POOLINGS`.

Shapes: N texts, L tokens, F width of a state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.core.errors import UserError

Pooling = Literal["mean", "cls", "last"]


def _mean(state_NLF: Tensor, mask_NL: Tensor) -> Tensor:
    weight_NL1 = mask_NL.unsqueeze(-1).to(state_NLF.dtype)
    # A text without tokens would be 0 / 0.
    return (state_NLF * weight_NL1).sum(1) / weight_NL1.sum(1).clamp(min=1)


def _cls(state_NLF: Tensor, mask_NL: Tensor) -> Tensor:
    position_L = torch.arange(mask_NL.shape[1], device=mask_NL.device)
    # Not simply position 0: there may be padding on the left.
    return _at(state_NLF, torch.where(mask_NL.bool(), position_L, mask_NL.shape[1] - 1).amin(1))


def _last(state_NLF: Tensor, mask_NL: Tensor) -> Tensor:
    position_L = torch.arange(mask_NL.shape[1], device=mask_NL.device)
    return _at(state_NLF, (position_L * mask_NL).amax(1))


def _at(state_NLF: Tensor, index_N: Tensor) -> Tensor:
    return state_NLF[torch.arange(len(state_NLF), device=state_NLF.device), index_N]


@dataclass(frozen=True)
class _Definition:
    pool: Callable[[Tensor, Tensor], Tensor]  # (N, L, F) states, (N, L) mask -> (N, F)
    sentence_transformers: str  # its `pooling_mode`
    flag: str  # the field of its configuration that versions before 6 read
    open_clip: str | None  # its `hf_pooler_type`; None: it has no such pooling
    of_content: str  # what the pooling takes where special tokens are masked out, in words
    code: tuple[
        str, ...
    ]  # the same in plain torch, for a model card: `states`, `mask` -> `vectors`
    needs_special: bool = False  # it takes a special token, so these must stay in the mask


POOLINGS: dict[Pooling, _Definition] = {
    "mean": _Definition(
        _mean,
        "mean",
        "pooling_mode_mean_tokens",
        "mean_pooler",
        "mean: of all tokens but special ones",
        ("vectors = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)",),
    ),
    "cls": _Definition(
        _cls,
        "cls",
        "pooling_mode_cls_token",
        # Its `cls_pooler` would take the output of a trained pooler where the model has one.
        "cls_last_hidden_state_pooler",
        "cls: the first token, special or not",
        ("vectors = states[:, 0]",),
        needs_special=True,
    ),
    "last": _Definition(
        _last,
        "lasttoken",
        "pooling_mode_lasttoken",
        None,
        "last: the last token that is not special",
        (
            "last = (mask * torch.arange(mask.shape[1])).argmax(1)",
            "vectors = states[torch.arange(len(states)), last]",
        ),
    ),
}


def pool(state_NLF: Tensor, mask_NL: Tensor, pooling: Pooling) -> Tensor:
    """(N, L, F) states of tokens -> (N, F); the mask is 0 on padding, which may stand on either side."""
    return POOLINGS[pooling].pool(state_NLF, mask_NL)


def flags_of_sentence_transformers(pooling: Pooling) -> dict[str, bool]:
    """The fields of `1_Pooling/config.json`, of which one is true."""
    flags = {one.flag: name == pooling for name, one in POOLINGS.items()}
    return {**flags, "pooling_mode_max_tokens": False}


def pooling_of_sentence_transformers(module: Any, name: str) -> Pooling:
    """The pooling of the module of a model `name`; UserError: none of ours, or several at once."""
    mode = module.pooling_mode  # several at once are a tuple
    by_mode = {one.sentence_transformers: pooling for pooling, one in POOLINGS.items()}
    if mode not in by_mode:
        named = mode if isinstance(mode, str) else ", ".join(mode)
        raise UserError(f"{name}: pools by `{named}`; can be read: {', '.join(by_mode)}")
    return by_mode[mode]


def pooling_of_open_clip(pooler: str) -> Pooling | None:
    """The pooling with this `hf_pooler_type`; None: we have no name for it."""
    return next((name for name, one in POOLINGS.items() if one.open_clip == pooler), None)
