"""Any text encoder, as the text tasks see it.

    run folder                    -+
    fine-tuned tower              -+
    LoRA adapter (adapters.py)    -+-> Tower: texts -> Tokens -> states of the tokens -> features
    sentence-transformers folder  -+
    model of transformers         -+

A feature is what the encoder's own training made comparable: the shared space of a dual encoder, the output
of a sentence-transformers model, and the pooled states of anything that was never trained to compare texts.

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
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.commit import write_json
from mmalign.core.config import read_yaml
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.encoder import (
    DualModel,
    Encoder,
    has_file,
    load_encoder,
    run_of,
    weights_sha256,
)
from mmalign.models.projection import (
    out_features,
    projection_of,
    read_projection,
    write_projection,
)
from mmalign.models.text_tower import Pooling, load_trunk, pool

_FILE = "tower.json"
_PROJECTION = "projection.safetensors"
_DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class Tokens:
    """N sequences, padded to the longest.

    Attributes:
        token_NL, mask_NL: int64; the mask is 0 on padding.
        type_NL: int64, which of two joined texts a token belongs to; None where the trunk has no such thing.
        encoding: what the tokenizer returned; it knows words and character offsets.
    """

    token_NL: Tensor
    mask_NL: Tensor
    type_NL: Tensor | None
    encoding: Any


class TextEncoder(nn.Module):
    """A trunk of transformers, its tokenizer, and how its states become a feature.

    Attributes:
        trunk: returns `last_hidden_state`.
        projection: from pooled states to the feature (see `projection.py`); None: the pooled states are the
            feature.
        unit_length: whether features are scaled to length 1.
        max_length: sequences are cut there, in tokens.
        facts: `path`, `sha256` of the weights, `step`: what results say about the model.
    """

    def __init__(
        self,
        trunk: Any,
        tokenizer: Tokenizer,
        pooling: Pooling = "mean",
        projection: nn.Module | None = None,
        unit_length: bool = False,
        max_length: int = _DEFAULT_LENGTH,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.projection = projection
        self.unit_length = unit_length
        self.max_length = max_length
        self.facts = facts or {}
        self.to(distributed.device()).eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def state_width(self) -> int:
        """F."""
        return int(self.trunk.config.hidden_size)

    @property
    def feature_width(self) -> int:
        """D."""
        return self.state_width if self.projection is None else out_features(self.projection)

    def tokenize(
        self, first: Sequence[Any], second: Sequence[str] | None = None, **options: Any
    ) -> Tokens:
        """Texts, or texts joined to pairs, as tokens on the tower's device.

        Args:
            first: texts; with `is_split_into_words=True` lists of words.
            second: joined to the first by the tokenizer's own separators.
            options: of the transformers tokenizer.
        """
        settings = {"truncation": True, "max_length": self.max_length, **options}
        texts = [list(first)] if second is None else [list(first), list(second)]
        encoding = self.tokenizer.inner(*texts, padding=True, return_tensors="pt", **settings)
        types = encoding.get("token_type_ids")
        knows_types = getattr(self.trunk.config, "type_vocab_size", 0) > 1
        return Tokens(
            encoding["input_ids"].to(self.device),
            encoding["attention_mask"].to(self.device),
            types.to(self.device) if knows_types and types is not None else None,
            encoding,
        )

    def states(self, tokens: Tokens) -> Tensor:
        """(N, L, F), the last hidden states."""
        types = {} if tokens.type_NL is None else {"token_type_ids": tokens.type_NL}
        output = self.trunk(input_ids=tokens.token_NL, attention_mask=tokens.mask_NL, **types)
        state_NLF: Tensor = output.last_hidden_state
        return state_NLF

    def feature(self, state_NLF: Tensor, mask_NL: Tensor) -> Tensor:
        """(N, D) from the states of the tokens."""
        feature_ND = pool(state_NLF, mask_NL, self.pooling)
        if self.projection is not None:
            feature_ND = self.projection(feature_ND)
        return F.normalize(feature_ND, dim=-1) if self.unit_length else feature_ND

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Texts -> (n, D) float32 features in the order given; without dropout, without gradients."""
        mode = self.training
        self.eval()
        features = np.zeros((len(texts), self.feature_width), np.float32)
        # Texts of like length share a batch: little padding, and the order is put back.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            tokens = self.tokenize([texts[i] for i in chunk])
            features[chunk] = (
                self.feature(self.states(tokens), tokens.mask_NL).float().cpu().numpy()
            )
        self.train(mode)
        return features

    def save(self, folder: Path) -> None:
        """Write the tower as a model of transformers, with what `load_text_encoder` needs beside it."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.trunk.save_pretrained(str(folder))
        self.tokenizer.save(folder)
        if self.projection is not None:
            write_projection(self.projection, folder / _PROJECTION)
        write_json(
            folder / _FILE,
            {
                "pooling": self.pooling,
                "unit_length": self.unit_length,
                "max_length": self.max_length,
            },
        )


def load_text_encoder(path: str, untrained: bool = False) -> TextEncoder:
    """The text tower in a folder, or that of a model on the hub.

    Args:
        path: a run folder or one of its checkpoints, a fine-tuning's folder or its tower, a
            sentence-transformers model (folder or name), a folder with a LoRA adapter of peft, or a model of
            transformers (folder or name), which is then pooled by the mean of its states.
        untrained: the run's tower before its first step.

    Raises:
        UserError: nothing there that can be loaded, or a run without a usable checkpoint.
    """
    folder = Path(path)
    saved = saved_text_encoder(folder)
    if saved is None and (run_of(folder) / "config.yaml").is_file():
        return _from_run(folder, untrained)
    if untrained:
        raise UserError(f"{path}: not a run folder; only a run knows its model before training")
    if saved is not None:
        return _with_facts(_from_finetuning(saved), path)
    if has_file(path, "modules.json"):
        return _from_sentence_transformers(path)
    if (folder / "adapter_config.json").is_file():
        from mmalign.models.adapters import merge_adapter  # which needs this module

        return merge_adapter(folder)
    return _with_facts(TextEncoder(load_trunk(path), load_tokenizer(path)), path)


def saved_text_encoder(path: Path) -> Path | None:
    """The folder of the tower where `path` is one, or a fine-tuning that left one; None: it is neither.

    Raises:
        UserError: a fine-tuning with several seeds, each of which left a tower.
    """
    for folder in (path, path / "tower"):
        if (folder / _FILE).is_file():
            return folder
    seeds = sorted(found.parents[1] for found in path.glob(f"seed-*/tower/{_FILE}"))
    if seeds:
        raise UserError(
            f"{path}: holds one tower a seed ({len(seeds)}); name one, for example {seeds[0]}"
        )
    return None


def text_encoder_of(model: DualModel) -> TextEncoder:
    """The text tower of a model that is there already.

    Raises:
        UserError: a model of another library whose text tower cannot be read on its own.
    """
    if isinstance(model, Encoder):
        return text_side(model)
    return load_text_encoder(str(model.facts["path"]))


def _from_run(folder: Path, untrained: bool) -> TextEncoder:
    """The text side of a dual encoder; of a masked language model the trunk alone.

    That one's projection was never trained: a random matrix would only blur its states.
    """
    return text_side(load_encoder(folder, untrained), is_contrastive(folder))


def is_contrastive(path: Path) -> bool:
    """Whether a run, or the run of a checkpoint, made its projections comparable."""
    tree = read_yaml(run_of(path) / "config.yaml")
    return (tree.get("objective") or {}).get("kind") != "masked_language_model"


def text_side(encoder: Encoder, compares: bool = True) -> TextEncoder:
    """The tower of texts; `compares`: whether training made its projections comparable."""
    tower = encoder.model.text_tower
    return TextEncoder(
        tower.trunk,
        encoder.tokenizer,
        tower.pooling,
        encoder.model.text_projection if compares else None,
        unit_length=compares,
        max_length=encoder.config.text.max_length,
        facts=encoder.facts,
    )


def _from_finetuning(folder: Path) -> TextEncoder:
    facts = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return TextEncoder(
        _saved_trunk(str(folder)),
        load_tokenizer(folder),
        facts["pooling"],
        read_projection(folder / _PROJECTION),
        facts["unit_length"],
        facts["max_length"],
    )


def _saved_trunk(folder: str) -> Any:
    """The trunk that `TextEncoder.save` wrote.

    The half of an encoder-decoder that has no class for itself (NLLB's) was written under its own names.
    The whole model finds none of its weights among them and would be loaded at random, with a warning.
    """
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.from_pretrained(folder)
    if not (settings.is_encoder_decoder and settings.architectures[0].endswith("Encoder")):
        return load_trunk(folder)
    with torch.device("meta"):
        half = AutoModel.from_config(settings).get_encoder()
    return type(half).from_pretrained(folder)


def _from_sentence_transformers(path: str) -> TextEncoder:
    """The modules of a sentence-transformers model, where they are those of a plain text encoder."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"{path}: a sentence-transformers model; install `mmalign[export]` to read it"
        ) from None
    modules = list(SentenceTransformer(path, device="cpu"))
    kinds = [type(module).__name__ for module in modules]
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    in_order = [kind for kind in known for _ in range(kinds.count(kind))]
    if kinds != in_order or kinds[:2] != ["Transformer", "Pooling"]:
        raise UserError(
            f"{path}: its modules are {', '.join(kinds)}; can be read: {', '.join(known)}, in this order"
        )
    tower = TextEncoder(
        _trunk_of(modules[0], path),
        Tokenizer(modules[0].tokenizer),
        _pooling_of(modules[1], path),
        projection_of([m for m in modules if type(m).__name__ == "Dense"], path),
        "Normalize" in kinds,
        modules[0].max_seq_length or _DEFAULT_LENGTH,
    )
    return _with_facts(tower, path)


def _trunk_of(module: Any, path: str) -> Any:
    """The trunk of a sentence-transformers model; of one that was saved with an adapter, merged."""
    if not getattr(module.auto_model, "_hf_peft_config_loaded", False):
        return module.auto_model
    if not Path(path).is_dir():
        raise UserError(f"{path}: holds a LoRA adapter; download it and give its folder")
    from mmalign.models.adapters import merge_adapter  # which needs this module

    return merge_adapter(Path(path)).trunk


def _pooling_of(module: Any, path: str) -> Pooling:
    modes: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    mode = module.pooling_mode if isinstance(module.pooling_mode, str) else module.pooling_mode[0]
    if mode not in modes:
        raise UserError(f"{path}: pools by `{mode}`; can be read: {', '.join(modes)}")
    return modes[mode]


def _with_facts(tower: TextEncoder, path: str) -> TextEncoder:
    tower.facts = {"path": path, "sha256": weights_sha256(tower), "step": 0}
    return tower
