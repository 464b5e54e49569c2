"""Cases for the tests of word alignment: a tiny encoder and decoder on disk, and dictionaries."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import LlamaConfig, LlamaModel, XLMRobertaConfig, XLMRobertaModel

from mmalign.data.tokenizer import Tokenizer, train_tokenizer
from mmalign.evaluation.lexical_probe import probe
from mmalign.evaluation.lexicon import LexiconConfig, read_lexicon
from mmalign.models.load import load_text_encoder
from mmalign.results.results import Results

WIDTH, LAYERS = 32, 3
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 160,
}
_SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu")
ENGLISH = [first + second for first in _SYLLABLES for second in _SYLLABLES[:6]]
LANGUAGES = ("ee", "sw")


def foreign(english: str, lang: str) -> str:
    """The invented translation: the reversed syllables with a suffix of the language."""
    return english[2:] + english[:2] + {"ee": "gbe", "sw": "wa"}[lang]


def write_dictionaries(folder: Path, **more: list[tuple[str, str]]) -> Path:
    """`en-<lang>.tsv` of 60 words in two languages; `more` are further lines of a language."""
    folder.mkdir(parents=True, exist_ok=True)
    for lang in LANGUAGES:
        entries = [(word, foreign(word, lang)) for word in ENGLISH] + more.get(lang, [])
        lines = ["en\ttranslation", *("\t".join(entry) for entry in entries)]
        (folder / f"en-{lang}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tokenizer() -> Tokenizer:
    """A tokenizer of all the words, with start and end tokens."""
    texts = [*ENGLISH, *(foreign(word, lang) for word in ENGLISH for lang in LANGUAGES)]
    return train_tokenizer(texts, vocabulary=120)


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """A tiny XLM-R with random weights."""
    torch.manual_seed(seed)
    XLMRobertaModel(
        XLMRobertaConfig(**SHAPE, pad_token_id=0), add_pooling_layer=False
    ).save_pretrained(folder)
    tokenizer().save(folder)
    return folder


def write_decoder(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama whose tokenizer adds only a start token and has no padding token."""
    torch.manual_seed(seed)
    LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2)).save_pretrained(folder)
    inner: Any = tokenizer().inner
    inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    inner.pad_token = None
    inner.save_pretrained(str(folder))
    return folder


def write_decoder_with_long_start(folder: Path) -> Path:
    """The tiny Llama with a start token of large norm, as in real models from layer 2 on."""
    write_decoder(folder)
    model = LlamaModel.from_pretrained(folder)
    with torch.no_grad():
        model.embed_tokens.weight[1] *= 1e4
    model.save_pretrained(folder)
    return folder


def probed(model: str, words: str) -> dict[str, float]:
    """All metrics of the probe; can also run on several ranks."""
    results = Results(suite="", model={})
    probe(load_text_encoder(model), read_lexicon(LexiconConfig(name="toy", folder=words)), results)
    return results.metrics
