"""Tokenizers: trained on a run's own captions, or the one that a pretrained text tower came with.

    captions -> unigram model (tokenizers) -> a transformers tokenizer folder -> token_NL, mask_NL

The mask comes from the tokenizer itself and never from comparing ids with the padding id: some
tokenizers pad with their end token.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import is_utf8

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")


class TokenizerConfig(Section):
    kind: Literal["trained", "pretrained"]
    """trained: a unigram model on the captions of the training shards; pretrained: by `name`."""
    vocabulary: int = pydantic.Field(default=6000, ge=64)
    """Tokens of a trained one, the five special tokens included; fewer if the captions hold less."""
    name: str | None = None
    """Hub name or folder of a pretrained one."""
    keep: tuple[str, ...] = ()
    """Leave out its pieces that none of these texts use: `captions`, those of `data.train`, or files with one
    text per line. Two thirds of an XLM-R of base size are rows of pieces."""
    grow: int | None = pydantic.Field(default=None, ge=64)
    """Add what it lacks of a vocabulary of this size, trained on the captions. The row of a new piece starts
    as the mean of the rows of its old pieces."""

    @pydantic.model_validator(mode="after")
    def _name_fits_kind(self) -> "TokenizerConfig":
        if (self.kind == "pretrained") != (self.name is not None):
            raise ValueError("a pretrained tokenizer needs a `name`, a trained one has none")
        if self.kind == "trained" and (self.keep or self.grow):
            raise ValueError("`keep` and `grow` change a pretrained tokenizer; remove them")
        return self


class Tokenizer:
    """A transformers tokenizer, seen as what the towers need of it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.vocabulary = len(inner)
        self.padding_id: int = inner.pad_token_id
        self.mask_id: int | None = inner.mask_token_id
        # Of the tokens that stand for no text (padding, start, end, unknown, mask, ...).
        self.special_ids: tuple[int, ...] = tuple(inner.all_special_ids)

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (N, L) int64, padded to the longest text and cut at `max_length`."""
        check_texts(texts)
        # To the right, whatever the tokenizer is used to: token dropout and masking count from the first one.
        encoded = self.inner(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(torch.int64), encoded["attention_mask"].to(torch.int64)

    @property
    def sha256(self) -> str:
        """Hexadecimal sha256 of what decides the ids of a text."""
        rust = getattr(self.inner, "backend_tokenizer", None)  # a tokenizer in Python has none
        rules = rust.to_str() if rust is not None else repr(sorted(self.inner.get_vocab().items()))
        return hashlib.sha256(f"{self.special_ids} {rules}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that transformers' AutoTokenizer reads."""
        # The library would also write how the last call cut and padded its texts.
        backend = getattr(self.inner, "backend_tokenizer", None)  # a tokenizer in Rust
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self.inner.save_pretrained(str(folder))


def check_texts(texts: Iterable[str | Sequence[str]]) -> None:
    """Refuse texts, or lists of words, that are no Unicode: tokenizers fail on half of a surrogate pair."""
    for text in texts:
        whole = text if isinstance(text, str) else " ".join(text)
        if not is_utf8(whole):
            raise UserError(f"the text {whole[:100]!a} holds half of a surrogate pair; remove it")


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer in a folder or on the hub."""
    from transformers import AutoTokenizer

    # The fork of a loader's workers after a first use would otherwise print a warning a worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        inner = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer: `{name}` cannot be loaded ({reason})") from None
    # Decoders often have no padding token; their end token then pads, as the masks tell it apart.
    if inner.pad_token_id is None:
        inner.pad_token = inner.eos_token
    if inner.pad_token_id is None:
        raise UserError(f"tokenizer: `{name}` has neither a padding token nor an end token")
    return Tokenizer(inner)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A unigram tokenizer (Kudo 2018, arXiv 1804.10959) of the given captions.

    Text is NFKC-normalised, a space marks the start of a word, and every caption is wrapped as
    `<s> ... </s>`, the form of XLM-R, so that any encoder can be built on it. The same captions give the same
    tokenizer.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    fast = FastTokenizer(models.Unigram())
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token="<unk>",
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    fast.model = _in_fixed_order(fast)
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    padding, start, end, unknown, mask = SPECIAL_TOKENS
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=fast,
            pad_token=padding,
            bos_token=start,
            cls_token=start,
            eos_token=end,
            sep_token=end,
            unk_token=unknown,
            mask_token=mask,
        )
    )


def _in_fixed_order(fast: Any) -> Any:
    """The trained unigram model with pieces and scores that depend on the captions alone."""
    # The trainer walks hash maps. Characters that are no likely piece by themselves get a low score less
    # 1e-4 times their number in such a map, and all scores differ in their last digits between two runs.
    from tokenizers import models

    trained = json.loads(fast.to_str())["model"]["vocab"]
    special, learned = trained[: len(SPECIAL_TOKENS)], trained[len(SPECIAL_TOKENS) :]
    assert [piece for piece, _ in special] == list(SPECIAL_TOKENS), special
    characters = {piece: score for piece, score in learned if len(piece) == 1}
    lowest = min(characters.values(), default=0.0)
    numbered = {
        piece: score
        for piece, score in characters.items()
        if abs((score - lowest) * 1e4 - round((score - lowest) * 1e4)) < 1e-5
    }
    renumbered = zip(sorted(numbered), sorted(numbered.values(), reverse=True), strict=True)
    scores = {piece: round(score, 4) for piece, score in [*learned, *renumbered]}
    ordered = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    vocabulary = [*((piece, score) for piece, score in special), *ordered]
    return models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("<unk>"))
