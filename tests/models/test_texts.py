"""Every door that takes texts: an empty text has a vector, one text is no list, vectors are finite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from shard_sets import make_image
from tiny import MODEL, TEXTS, tiny_model, tiny_run
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.dual_encoder import ModelConfig, build_dual_encoder
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.models.hidden_states import encode_words
from mmalign.models.load import load_model, load_text_encoder
from mmalign.models.text_encoder import text_side

LONG = "a red ball and a dog on a green chair"
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
QWEN = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


def write_tokenizer(folder: Path, **special: Any) -> None:
    """Byte-level BPE as GPT-2 and Qwen have it: it adds no special tokens to a text."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    assert tokenizer("")["input_ids"] == []
    tokenizer.save_pretrained(folder)


@pytest.fixture(params=["gpt2", "qwen"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a decoder whose tokenizer adds no special tokens."""
    folder = tmp_path / request.param
    torch.manual_seed(0)
    model: Any
    if request.param == "gpt2":  # no padding token: its end token pads
        write_tokenizer(folder, eos_token="<|endoftext|>")
        model = GPT2Model(GPT2Config(vocab_size=320, **GPT2))
    else:
        qwen = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
        write_tokenizer(folder, **qwen)
        model = Qwen2Model(Qwen2Config(vocab_size=320, **QWEN))
    model.save_pretrained(folder)
    return folder


def assert_defined(encode: Any) -> None:
    """An empty text has one vector, alone and beside others."""
    alone, beside = encode([""]), encode([LONG, "", "a cat", ""])
    assert np.isfinite(alone).all() and np.linalg.norm(alone) > 0.1
    np.testing.assert_allclose(beside[[1, 3]], np.repeat(alone, 2, 0), atol=1e-5)
    np.testing.assert_allclose(beside[[0]], encode([LONG]), atol=1e-5)


def test_an_empty_text_has_a_vector_in_models_of_transformers(decoder: Path) -> None:
    tower = load_text_encoder(str(decoder))
    for tower.pooling in ("mean", "last", "cls"):
        assert_defined(tower.encode)
    assert_defined(load_model(str(decoder)).encode_texts)
    states = encode_words(load_text_encoder(str(decoder)), ["", "dog"], "content")
    assert all(np.linalg.norm(rows, axis=1) == pytest.approx(1) for rows in states.values())


def test_an_empty_text_has_a_vector_in_a_run(decoder: Path) -> None:
    sizes = GPT2 if decoder.name == "gpt2" else QWEN
    kind = {"gpt2": "gpt2", "qwen": "qwen2"}[decoder.name]
    text = {"architecture": {"model_type": kind, **sizes}, "pooling": "last"}
    config = validate(ModelConfig, {**MODEL, "text": text}, "test")
    tokenizer = load_tokenizer(decoder)
    model = build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
    encoder = Encoder(model, config, tokenizer, {"path": "run"})
    assert_defined(encoder.encode_texts)
    np.testing.assert_allclose(
        text_side(encoder).encode([""]), encoder.encode_texts([""]), atol=1e-6
    )


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_an_empty_text_has_a_vector_in_sentence_transformers(decoder: Path, pooling: Any) -> None:
    trunk = Transformer(str(decoder))
    trunk.tokenizer.pad_token = trunk.tokenizer.pad_token or trunk.tokenizer.eos_token
    model = SentenceTransformer(modules=[trunk, Pooling(32, pooling_mode=pooling)], device="cpu")
    model.save(str(decoder.parent / "st"))
    assert_defined(load_model(str(decoder.parent / "st")).encode_texts)
    assert_defined(load_text_encoder(str(decoder.parent / "st")).encode)


def test_one_text_is_no_list_of_its_letters(tmp_path: Path, decoder: Path) -> None:
    tower, encoder = load_text_encoder(str(decoder)), load_encoder(tiny_run(tmp_path / "run"))
    doors: list[Any] = [tower.encode, tower.tokenize, encoder.encode_texts]
    doors += [load_model(str(decoder)).encode_texts, lambda text: encode_words(tower, text, "all")]
    for encode in doors:
        with pytest.raises(
            UserError, match=r"a list is needed, not 'hello' alone; write \['hello'\]"
        ):
            encode("hello")
    with pytest.raises(UserError, match="a list is needed"):
        encoder.encode_images(b"bytes of one image")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_end_with_the_models_name(tmp_path: Path, value: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.text_tower.trunk.embeddings.word_embeddings.weight.fill_(value)
        model.image_tower.trunk.conv1.get_submodule("0").weight.fill_(value)
    run = tiny_run(tmp_path / "broken", model)
    message = "broken: its vectors are not finite"
    encoder = load_model(str(run))
    with pytest.raises(UserError, match=message):
        encoder.encode_texts(["a dog"])
    with pytest.raises(UserError, match=message):
        encoder.encode_images([make_image(0)])
    with pytest.raises(UserError, match=message):  # before hours of fine-tuning
        load_text_encoder(str(run))
    load_text_encoder(str(run), untrained=True)
