"""A text encoder as the text tasks see it.

    texts -> tokenize -> Tokens -> states of the tokens -> pooling -> projection -> feature
    TextEncoder.save -> folder with tower.json -> read_saved -> TextEncoder

A feature is what the encoder's own training made comparable: the shared space of a dual encoder, the output
of a sentence-transformers model, or the pooled states of a model that was never trained to compare texts.

Shapes: N sequences, L tokens of the longest, F width of a state, D width of a feature.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batching import encode_sorted
from mmalign.core.commit import write_json
from mmalign.core.config import read_yaml
from mmalign.core.errors import UserError
from mmalign.core.precision import Precision, inference_precision, precision_note
from mmalign.data.tokenizer import Tokenizer, check_texts, load_tokenizer
from mmalign.models.encoder import (
    BATCH_SIZE,
    Encoder,
    as_list,
    finite,
    on_host,
    run_of,
    with_tokens,
)
from mmalign.models.pooling import Pooling, pool
from mmalign.models.prompts import NO_PROMPTS, Prompts, Side
from mmalign.models.text_tower import load_trunk, longest_text, save_pretrained

FILE = "tower.json"
_PROJECTION = "projection.safetensors"
DEFAULT_LENGTH = 128  # tokens, of models that do not say what they were trained with


@dataclass(frozen=True)
class Tokens:
    """N sequences, padded to the longest; int64."""

    token_NL: Tensor
    mask_NL: Tensor  # 0 on padding
    type_NL: Tensor | None  # which of two joined texts; None where the trunk has no such thing
    encoding: Any  # what the tokenizer returned; it knows words and character offsets

    @property
    def inputs(self) -> dict[str, Tensor]:
        types = {} if self.type_NL is None else {"token_type_ids": self.type_NL}
        return {"input_ids": self.token_NL, "attention_mask": self.mask_NL, **types}


class TextEncoder(nn.Module):
    """A trunk of transformers, its tokenizer, and how its states become a feature.

    Attributes:
        trunk: returns `last_hidden_state`.
        projection: from pooled states to the feature; None: these are the feature.
        unit_length: whether features are scaled to length 1.
        max_length, cut: where sequences are cut, in tokens; why (see `longest_text`).
        prompts: what `encode` puts before the texts, and heads that read features.
        facts: `path`, `sha256` of the weights, `step`: what results say about the model.
        trains_in_bf16: whether the trunk runs under bfloat16 autocast while the encoder is in training mode.
        precision: what the trunk computes in elsewhere, where no gradients are asked for.
    """

    trains_in_bf16 = False
    precision: Precision = "auto"

    def __init__(
        self,
        trunk: Any,
        tokenizer: Tokenizer,
        pooling: Pooling = "mean",
        projection: nn.Module | None = None,
        unit_length: bool = False,
        max_length: int = DEFAULT_LENGTH,
        facts: dict[str, Any] | None = None,
        prompts: Prompts = NO_PROMPTS,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.projection = projection
        self.unit_length = unit_length
        self.cut_at(max_length)
        self.prompts = prompts
        self.facts = facts or {}
        self.to(distributed.device()).eval()

    def cut_at(self, tokens: int) -> None:
        """Cut sequences at so many tokens, or at the trunk's last position."""
        self.max_length, self.cut = longest_text(self.trunk, tokens)

    @property
    def note(self) -> str:
        """For the protocol: where texts are cut, the prompts, the precision."""
        return self.cut + self.prompts.words + precision_note(self.precision)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def state_width(self) -> int:
        return int(self.trunk.config.hidden_size)

    @property
    def feature_width(self) -> int:
        if self.projection is None:
            return self.state_width
        return int(
            [m for m in self.projection.modules() if isinstance(m, nn.Linear)][-1].out_features
        )

    def tokenize(
        self, first: Sequence[Any], second: Sequence[str] | None = None, **options: Any
    ) -> Tokens:
        """Texts, or texts joined to pairs, as tokens on the encoder's device.

        Args:
            first: texts; with `is_split_into_words=True` lists of words.
            options: of the transformers tokenizer.
        """
        settings = {"truncation": True, "max_length": self.max_length, **options}
        as_list(first)
        texts = [list(first)] if second is None else [list(first), list(second)]
        for one in texts:
            check_texts(one)
        if second is None and not options.get("is_split_into_words"):
            texts = [with_tokens(first, self.tokenizer.inner)]
        encoding = self.tokenizer.inner(*texts, padding=True, return_tensors="pt", **settings)
        types = encoding.get("token_type_ids")
        # XLM-R's embedding has one type: the tokenizer's 1 for a second text would be out of its range.
        knows_types = getattr(self.trunk.config, "type_vocab_size", 0) > 1
        return Tokens(
            encoding["input_ids"].to(self.device),
            encoding["attention_mask"].to(self.device),
            types.to(self.device) if knows_types and types is not None else None,
            encoding,
        )

    def states(self, tokens: Tokens) -> Tensor:
        """(N, L, F), the last hidden states, in the weights' dtype whatever the trunk computed in."""
        if self.training:
            is_bf16 = self.trains_in_bf16
        else:  # with gradients: what looks for the words that a model depends on, in float32
            precision = "fp32" if torch.is_grad_enabled() else self.precision
            is_bf16 = inference_precision(precision) == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            state_NLF = self.trunk(**tokens.inputs).last_hidden_state
        # Pooling, heads and losses that follow are small: float32 costs them nothing.
        return state_NLF.float() if is_bf16 else state_NLF

    def feature(self, state_NLF: Tensor, mask_NL: Tensor) -> Tensor:
        """(N, D) from the states of the tokens."""
        feature_ND = pool(state_NLF, mask_NL, self.pooling)
        if self.projection is not None:
            feature_ND = self.projection(feature_ND)
        # Pooled states that were never trained to compare texts keep their length: a head may use it.
        return F.normalize(feature_ND, dim=-1) if self.unit_length else feature_ND

    def encode(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, side: Side | None = "query"
    ) -> np.ndarray:
        """Texts -> (n, D) float32 features in the order given; without dropout, without gradients.

        Args:
            side: whose prompt is put before each text; None: no prompt.
        """
        prompted = self.prompts.add(as_list(texts), side)
        return self.encode_rows([(text,) for text in prompted], batch_size)

    @torch.no_grad()
    def encode_rows(
        self, rows: Sequence[tuple[str, ...]], batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """As `encode` without prompts, of rows that all have one text, or all two, read as one sequence."""

        def encode_batch(batch: list[tuple[str, ...]]) -> np.ndarray:
            tokens = self.tokenize(*zip(*batch, strict=True))
            return self.feature(self.states(tokens), tokens.mask_NL).float().cpu().numpy()

        mode = self.training  # fine-tuning encodes between its steps
        self.eval()
        features = encode_sorted(
            encode_batch, rows, batch_size, self.feature_width, lambda row: sum(map(len, row))
        )
        self.train(mode)
        return finite(features, self.facts)

    def save(self, folder: Path) -> None:
        """Write the encoder as a model of transformers, with what `read_saved` needs beside it."""
        save_pretrained(self.trunk, folder)
        self.tokenizer.save(folder)
        if self.projection is not None:
            save_file(on_host(self.projection.state_dict()), folder / _PROJECTION)
        names = ("pooling", "unit_length", "max_length")
        settings = {name: getattr(self, name) for name in names}
        write_json(folder / FILE, {**settings, **self.prompts.facts})


def read_saved(folder: Path) -> TextEncoder:
    """What `TextEncoder.save` wrote."""
    path = folder / _PROJECTION
    weights = load_file(path) if path.is_file() else {}
    layers = [
        nn.Linear(weight.shape[1], weight.shape[0], name.removesuffix("weight") + "bias" in weights)
        for name, weight in sorted(weights.items())
        if name.endswith("weight")
    ]
    projection = chain(layers)
    if projection is not None:
        projection.load_state_dict(weights)
    settings = json.loads((folder / FILE).read_text(encoding="utf-8"))
    prompts = Prompts(**settings.pop("prompts", {}))
    trunk, tokenizer = load_trunk(str(folder)), load_tokenizer(folder)
    return TextEncoder(trunk, tokenizer, projection=projection, prompts=prompts, **settings)


def chain(layers: Sequence[nn.Module]) -> nn.Module | None:
    """The projection that one linear layer makes, or two of them; None of none."""
    if len(layers) == 2:
        return nn.Sequential(layers[0], nn.GELU(), layers[1])
    return layers[0] if layers else None


def saved_text_encoder(path: Path) -> Path | None:
    """The folder of a saved encoder: `path` itself, or that of a fine-tuning in `path`; None: neither.

    Raises:
        UserError: a fine-tuning with several seeds, each of which left an encoder.
    """
    for folder in (path, path / "tower"):
        if (folder / FILE).is_file():
            return folder
    seeds = sorted(found.parents[1] for found in path.glob(f"seed-*/tower/{FILE}"))
    if seeds:
        raise UserError(f"{path}: holds one tower per seed ({len(seeds)}); name one: {seeds[0]}")
    return None


def is_contrastive(path: Path) -> bool:
    """Whether a run, or the run of a checkpoint, made its projections comparable."""
    tree = read_yaml(run_of(path) / "config.yaml")
    return (tree.get("objective") or {}).get("kind") != "masked_language_model"


def text_side(encoder: Encoder, is_comparable: bool = True) -> TextEncoder:
    """The text side of a dual encoder; `is_comparable`: see `is_contrastive`."""
    tower, projection = encoder.model.text_tower, encoder.model.text_projection
    # The projection of a masked language model was never trained: a random matrix would only blur the states.
    return TextEncoder(
        tower.trunk,
        encoder.tokenizer,
        tower.pooling,
        projection if is_comparable and not isinstance(projection, nn.Identity) else None,
        unit_length=is_comparable,
        max_length=encoder.config.text.max_length,
        facts=encoder.facts,
    )
