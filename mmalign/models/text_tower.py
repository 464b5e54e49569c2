"""Text towers: any encoder of transformers, pooled to one feature a caption.

    token_NL, mask_NL -> trunk -> state_NLF -> pooling over the tokens (never the padding) -> feature_NF

The trunk is loaded by name (`pretrained`) or built from a configuration (`architecture`). Encoder halves of
encoder-decoder models (mT5, NLLB) are taken alone.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from mmalign.core.config import Section
from mmalign.core.errors import UserError, one_line
from mmalign.models.pooling import Pooling, pool

_BUCKETS = 3


class TextTowerConfig(Section):
    """`pretrained`, `architecture` or both say what the trunk is."""

    pretrained: str | None = None
    """Hub name or folder of a transformers model (XLM-R, mT5, NLLB, ModernBERT, ...)."""
    architecture: dict[str, Any] | None = None
    """`model_type` and fields of its transformers configuration. Alone: random weights; `vocab_size` and
    `pad_token_id` are the tokenizer's if they are not given. Beside `pretrained`: what that one holds, so
    that a run can be planned without the hub; it is compared when the weights are loaded."""
    pooling: Pooling = "mean"
    """mean over the tokens, the first token (cls), or the last one."""
    max_length: int = pydantic.Field(default=64, ge=4)
    """Longest caption in tokens; longer ones are cut."""
    frozen: bool = False
    """Leave the trunk as it is; its projection still trains."""

    @pydantic.model_validator(mode="after")
    def _some_source(self) -> "TextTowerConfig":
        if self.pretrained is None and self.architecture is None:
            raise ValueError("give `pretrained`, `architecture` or both")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("`architecture` needs a `model_type`, for example xlm-roberta")
        return self


class TextTower(nn.Module):
    """A transformers encoder and its pooling.

    Attributes:
        width: F, the size of a feature.
    """

    def __init__(self, trunk: Any, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling: Pooling = pooling
        self.width: int = trunk.config.hidden_size

    def forward(self, token_NL: Tensor, mask_NL: Tensor, length_N: Sequence[int] = ()) -> Tensor:
        """(N, L) token ids and their mask -> (N, F) features.

        Args:
            length_N: places of each row up to its last token. Where given, captions of like length share
                one of three forward passes, each as long as its longest: the same features, up to
                rounding, without most of the padding.
        """
        if not length_N:
            return self._encode(token_NL, mask_NL)
        buckets, place_N = _by_length(length_N)
        features = []
        for rows in buckets:
            longest = max(length_N[n] for n in rows)
            features.append(self._encode(token_NL[rows, :longest], mask_NL[rows, :longest]))
        return torch.cat(features)[place_N]

    def _encode(self, token_NL: Tensor, mask_NL: Tensor) -> Tensor:
        state_NLF = self.trunk(input_ids=token_NL, attention_mask=mask_NL).last_hidden_state
        return pool(state_NLF, mask_NL, self.pooling)

    def layer_depths(self) -> dict[str, int] | None:
        """How many layers below the tower's output each parameter lies, by its name in the trunk.

        The last layer and the norm after it lie at 1, the embeddings lie deepest. None: the trunk does not
        keep its layers in one list.
        """
        layers = _layer_list(self.trunk)
        if layers is None:
            return None
        prefix, count = layers
        deepest = outside = count + 1
        depths: dict[str, int] = {}
        for name, _ in self.trunk.named_parameters():
            if name.startswith(prefix):
                depths[name] = count - int(name.removeprefix(prefix).split(".")[0])
                outside = 1  # what comes after the layers is their norm
            else:
                depths[name] = deepest if "embed" in name else outside
        return depths


def _by_length(length_N: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Rows of like length in `_BUCKETS` buckets, and where each row lies in the buckets laid end to end.

    Always as many, with rows twice if there are too few: under ZeRO 3 every rank must call the trunk as often
    as the others do.
    """
    order = sorted(range(len(length_N)), key=lambda n: length_N[n])
    order = order * -(-_BUCKETS // len(order)) if len(order) < _BUCKETS else order
    edges = [len(order) * bucket // _BUCKETS for bucket in range(_BUCKETS + 1)]
    place_of = {n: place for place, n in enumerate(order)}
    buckets = [order[first:last] for first, last in pairwise(edges)]
    return buckets, [place_of[n] for n in range(len(length_N))]


def _layer_list(trunk: Any) -> tuple[str, int] | None:
    """How the names in the one list of layers begin, and how many layers it holds."""
    count = trunk.config.num_hidden_layers
    lists = [
        f"{name}."
        for name, module in trunk.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # A layer may keep its parts in a list of its own, of the same length by chance.
    outer = [a for a in lists if not any(a != b and a.startswith(b) for b in lists)]
    return (outer[0], count) if len(outer) == 1 else None


def build_text_tower(config: TextTowerConfig, vocabulary: int, padding_id: int) -> TextTower:
    """The tower that the configuration names, frozen if it says so.

    Args:
        vocabulary: number of token ids of the tokenizer.
        padding_id: the tokenizer's padding id.

    Raises:
        UserError: transformers knows no such model, what `pretrained` holds is not what `architecture` says,
            or its vocabulary is smaller than the tokenizer's.
    """
    if config.pretrained:
        trunk = load_trunk(config.pretrained)
        _compare(config.architecture or {}, trunk.config, config.pretrained)
    else:
        trunk = _build(config, vocabulary, padding_id)
    rows = trunk.get_input_embeddings().weight.shape[0]
    if rows < vocabulary:
        raise UserError(
            f"model.text: the tokenizer has {vocabulary} tokens, the model only {rows}; they do not "
            "belong together"
        )
    tower = TextTower(trunk, config.pooling)
    tower.requires_grad_(not config.frozen)
    return tower


def load_trunk(name: str) -> Any:
    """The encoder in a folder or on the hub, without a pooler and without a decoder.

    Raises:
        UserError: transformers cannot load it.
    """
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(name)
        model = _model_class(settings).from_pretrained(name, **_without_pooler(settings))
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{name}: transformers cannot load this text tower ({reason})") from None
    return _encoder_half(model)


def _compare(architecture: dict[str, Any], settings: Any, name: str) -> None:
    """Stop where the run file describes another model than the one that was loaded."""
    for field, value in architecture.items():
        held = getattr(settings, field, None)
        if held != value:
            raise UserError(
                f"model.text.architecture.{field}: is {value!r}, but `{name}` has {held!r}; write down what "
                "it has"
            )


def _build(config: TextTowerConfig, vocabulary: int, padding_id: int) -> Any:
    from transformers import AutoConfig

    fields = {
        "vocab_size": vocabulary,
        "pad_token_id": padding_id,
        **(config.architecture or {}),
    }
    model_type = fields.pop("model_type")
    try:
        settings = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.text.architecture: `{model_type}`: {one_line(error)}") from None
    unknown = [name for name in fields if name not in type(settings)().to_dict()]
    if unknown:
        raise UserError(f"model.text.architecture: `{model_type}` has no field `{unknown[0]}`")
    model = _model_class(settings).from_config(settings, **_without_pooler(settings))
    return _encoder_half(model)


def _model_class(settings: Any) -> Any:
    """T5's encoder has a class of its own; every other model is what AutoModel says."""
    from transformers import AutoModel, AutoModelForTextEncoding

    encoder_class = settings.model_type in ("t5", "mt5", "umt5")
    return AutoModelForTextEncoding if encoder_class else AutoModel


def _without_pooler(settings: Any) -> dict[str, bool]:
    """BERT's kin add a pooler that we do not use: it would be random, untrained weight in an export."""
    import inspect

    from transformers import MODEL_MAPPING

    known = type(settings) in MODEL_MAPPING
    arguments = (
        inspect.signature(MODEL_MAPPING[type(settings)].__init__).parameters if known else {}
    )
    return {"add_pooling_layer": False} if "add_pooling_layer" in arguments else {}


def _encoder_half(model: Any) -> Any:
    is_whole = model.config.is_encoder_decoder and not type(model).__name__.endswith("EncoderModel")
    return model.get_encoder() if is_whole else model
