"""Text towers: any encoder of transformers, pooled to one feature per caption.

    a run's configuration       -> build_text_tower -+-> TextTower, float32
    its trunk's, as it was read -> rebuild_trunk    -+     random weights, which a checkpoint replaces

    token_NL, mask_NL -> trunk -> state_NLF -> pooling over the tokens (never the padding) -> feature_NF

Encoder halves of encoder-decoder models (mT5, NLLB) are taken alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from mmalign.core.batch import send
from mmalign.core.console import hide_library_progress, say
from mmalign.core.errors import UserError, one_line
from mmalign.models.length_buckets import by_length
from mmalign.models.pooling import Pooling, pool
from mmalign.models.trained_parameters import TrainedParametersConfig

_EXPANDABLE = ("bert", "roberta", "xlm-roberta")  # their positions do not depend on the mask


class TextTowerConfig(TrainedParametersConfig):
    """The trunk is named by `pretrained`, described by `architecture`, or both."""

    pretrained: str | None = None
    """Hub name or folder of a transformers model (XLM-R, mT5, NLLB, ModernBERT, ...); float32 once loaded."""
    architecture: dict[str, Any] | None = None
    """`model_type` and fields of its transformers configuration; `vocab_size` and `pad_token_id` are the
    tokenizer's if not given. Alone: random weights. Beside `pretrained`: what that one holds, so that a run
    can be planned without the hub; it is compared when the weights are loaded."""
    pooling: Pooling = "mean"
    """mean over the tokens, the first token (cls), or the last one."""
    max_length: int = pydantic.Field(default=64, ge=4)
    """Longest caption in tokens; longer ones are cut."""
    train_embeddings: bool | None = None
    """Whether the rows of the tokens train. None: as the rest of the trunk; false: never (two thirds of XLM-R
    are these); true: whatever the rest does, as the new rows of a grown vocabulary should."""

    @pydantic.model_validator(mode="after")
    def _some_source(self) -> "TextTowerConfig":
        if self.pretrained is None and self.architecture is None:
            raise ValueError("give `pretrained`, `architecture` or both")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("`architecture` needs a `model_type`, for example xlm-roberta")
        return self


class TextTower(nn.Module):
    """A transformers encoder and its pooling; `width`: F, the size of a feature."""

    def __init__(self, trunk: Any, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling: Pooling = pooling
        self.width: int = trunk.config.hidden_size

    def forward(self, token_NL: Tensor, mask_NL: Tensor, length_N: Sequence[int] = ()) -> Tensor:
        """(N, L) token ids and their mask -> (N, F) features.

        Args:
            length_N: positions of each row up to its last token; see below.
        """
        if not length_N:
            return self._encode(token_NL, mask_NL)
        # Each bucket has a forward pass of its own, as long as its longest caption: the same features, up to
        # rounding, without most of the padding.
        buckets, position_N = by_length(length_N)
        features = []
        for rows in buckets:
            longest = max(length_N[n] for n in rows)
            row_N = send(torch.tensor(rows), token_NL.device)
            features.append(self._encode(token_NL[row_N, :longest], mask_NL[row_N, :longest]))
        return torch.cat(features)[send(torch.tensor(position_N), token_NL.device)]

    def _encode(self, token_NL: Tensor, mask_NL: Tensor) -> Tensor:
        # transformers would ask the GPU whether a mask hides anything, and wait for the answer.
        mask = expanded_mask(self.trunk, mask_NL) if mask_NL.is_cuda else mask_NL
        state_NLF = self.trunk(input_ids=token_NL, attention_mask=mask).last_hidden_state
        return pool(state_NLF, mask_NL, self.pooling)

    def layer_depths(self) -> dict[str, int] | None:
        """As the function of that name, of the trunk."""
        return layer_depths(self.trunk)


def expanded_mask(trunk: Any, mask_NL: Tensor) -> Tensor:
    """The mask (N, 1, 1, L) that BERT and its variants make of (N, L); of other trunks, the same mask."""
    takes_it = trunk.config.model_type in _EXPANDABLE
    if takes_it and getattr(trunk.config, "_attn_implementation", None) == "sdpa":
        return mask_NL[:, None, None].bool()
    return mask_NL


def layer_depths(trunk: Any) -> dict[str, int] | None:
    """How many layers below a trunk's output each of its parameters lies, by name.

    From 1, the last layer and the norm after it, to the embeddings. None: the trunk does not keep its layers
    in one list.
    """
    found = find_blocks(trunk)
    if found is None:
        return None
    prefix, count = f"{found[0]}.", len(found[1])
    deepest = outside = count + 1
    depths: dict[str, int] = {}
    for name, _ in trunk.named_parameters():
        if name.startswith(prefix):
            depths[name] = count - int(name.removeprefix(prefix).split(".")[0])
            outside = 1  # what comes after the layers is their norm
        else:
            depths[name] = deepest if "embed" in name else outside
    return depths


def find_blocks(trunk: Any) -> tuple[str, nn.ModuleList] | None:
    """The one list of a trunk's blocks and its name; None: the trunk does not keep them in one list."""
    lists = {
        name: module
        for name, module in trunk.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == trunk.config.num_hidden_layers
    }
    # A block may keep its parts in a list of its own, of the same length by chance.
    outer = [a for a in lists if not any(a.startswith(f"{b}.") for b in lists)]
    return (outer[0], lists[outer[0]]) if len(outer) == 1 else None


def positions_of(model: Any, config: Any = None) -> int | None:
    """Tokens that a model of transformers has positions for; None: as many as there are (T5 has no limit)."""
    positions = getattr(config or model.config, "max_position_embeddings", None) or 0
    # RoBERTa and its variants count positions from behind the id of their padding token.
    tables = [m for name, m in model.named_modules() if name.endswith(".position_embeddings")]
    offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return positions - max(offsets, default=0) if positions > 0 else None  # XLNet says -1


def longest_text(trunk: Any, asked: int) -> tuple[int, str]:
    """Where texts are cut: at `asked` tokens, or at the trunk's last position, as the sentence then says."""
    positions = positions_of(trunk)
    if positions is None or asked <= positions:
        return asked, ""
    return positions, f" Cut at {positions} tokens, not {asked}: the model has no more positions."


def build_text_tower(config: TextTowerConfig, vocabulary: int, padding_id: int) -> TextTower:
    """The tower that the configuration names, for the vocabulary of a tokenizer.

    Raises:
        UserError: transformers knows no such model, what `pretrained` holds is not what `architecture` says,
            or its vocabulary is smaller than the tokenizer's.
    """
    if config.pretrained:
        trunk = load_trunk(config.pretrained)
        # `architecture` is a claim about the model here, by which a run was planned.
        for field, value in (config.architecture or {}).items():
            if (found := getattr(trunk.config, field, None)) != value:
                name = f"model.text.architecture.{field}"
                raise UserError(
                    f"{name}: is {value!r}, but `{config.pretrained}` has {found!r}; write down that"
                )
    else:
        trunk = _build(config, vocabulary, padding_id)
    rows = trunk.get_input_embeddings().weight.shape[0]
    # More rows than tokens are usual: models pad them to a multiple of 8 or 64.
    if rows < vocabulary:
        raise UserError(
            f"model.text: {vocabulary} tokens and a model for {rows} do not belong together; give "
            "the tokenizer that it was trained with"
        )
    return TextTower(trunk, config.pooling)


def load_trunk(name: str) -> Any:
    """The encoder in a folder or on the hub, in float32, without a pooler and without a decoder."""
    from transformers import AutoConfig

    try:
        return _encoder(AutoConfig.from_pretrained(name, trust_remote_code=False), name)
    except (OSError, ValueError, RuntimeError) as error:  # the last: a weight of another shape
        reason = one_line(error)
        raise UserError(f"{name}: transformers cannot load this text tower ({reason})") from None


def find_file(name: str, file: str) -> Path | None:
    """A file of the folder or the hub's repository of that name (in its cache); None: it is not there."""
    from transformers.utils import cached_file

    quiet = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    try:
        found = cached_file(name, file, **dict.fromkeys(quiet, False))
    except (OSError, ValueError):  # no such repository, or nothing that could be a name of one
        return None
    return None if found is None else Path(found)


def refuse_remote_code() -> None:
    """Make transformers refuse a model's own code where another library calls it.

    Without an answer to `trust_remote_code` it asks on the terminal, and a `y` runs the code.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds in which it waits for an answer


def trunk_config(trunk: Any) -> dict[str, Any]:
    """All fields of a trunk's configuration, without where its weights came from."""
    fields: dict[str, Any] = json.loads(trunk.config.to_json_string(use_diff=False))
    return {name: value for name, value in fields.items() if name != "_name_or_path"}


def rebuild_trunk(fields: dict[str, Any]) -> Any:
    """The encoder that `trunk_config` described, with random weights.

    Raises:
        UserError: the installed version of transformers cannot build it.
    """
    from transformers import AutoConfig

    try:
        settings = AutoConfig.for_model(fields["model_type"]).from_dict(fields)
        return _encoder(settings)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"text tower: this transformers cannot build it ({one_line(error)}); install the version that "
            "the run was started with"
        ) from None


def save_pretrained(model: Any, folder: Path, **options: Any) -> None:
    """Write a model of transformers; `options` are those of its own `save_pretrained`."""
    hide_library_progress()
    model.save_pretrained(str(folder), **options)


def _build(config: TextTowerConfig, vocabulary: int, padding_id: int) -> Any:
    from transformers import AutoConfig

    fields = {"vocab_size": vocabulary, "pad_token_id": padding_id, **(config.architecture or {})}
    model_type = fields.pop("model_type")
    try:
        settings = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.text.architecture: `{model_type}`: {one_line(error)}") from None
    # transformers keeps fields that it does not know, and ignores them.
    unknown = [name for name in fields if name not in type(settings)().to_dict()]
    if unknown:
        raise UserError(f"model.text.architecture: `{model_type}` has no field `{unknown[0]}`")
    return _encoder(settings)


def _encoder(settings: Any, name: str | None = None) -> Any:
    import inspect

    from transformers import MODEL_MAPPING, AutoModel, AutoModelForTextEncoding

    # T5's encoder has a class of its own; AutoModel would add its decoder.
    is_t5 = settings.model_type in ("t5", "mt5", "umt5")
    auto_class = AutoModelForTextEncoding if is_t5 else AutoModel
    # BERT and its variants add a pooler that we do not use: random, untrained weights in an export.
    known = MODEL_MAPPING.get(type(settings), None)
    has_pooler = known and "add_pooling_layer" in inspect.signature(known.__init__).parameters
    # transformers 5 would take the dtype that the folder stores: 16-bit weights barely move in training.
    options: dict[str, Any] = {"dtype": torch.float32}
    if has_pooler:
        options["add_pooling_layer"] = False
    written = (settings.architectures or [""])[0]
    if name and settings.is_encoder_decoder and written.endswith("Encoder"):
        # The half of an encoder-decoder that has no class for itself (NLLB's) is saved under its own names.
        # The complete model would find none of them and start at random, with only a warning.
        with torch.device("meta"):
            half = AutoModel.from_config(settings, trust_remote_code=False).get_encoder()
        return _load(type(half), name, dtype=torch.float32)
    if name:
        model = _load(auto_class, name, **options)
    else:
        model = auto_class.from_config(settings, trust_remote_code=False, **options)
    return model.get_encoder() if model.config.is_encoder_decoder and not is_t5 else model


def _load(auto_class: Any, name: str, **options: Any) -> Any:
    # transformers' own report names the weights that we leave out (poolers, heads) in ten lines.
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    hide_library_progress()
    try:
        model, info = auto_class.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, **options
        )
    finally:
        logging.set_verbosity(before)
    if lacking := sorted(info["missing_keys"]):
        say(
            f"{name}: warning: {len(lacking)} of its weights are in no file and start at random, "
            f"among them `{lacking[0]}`"
        )
    return model
