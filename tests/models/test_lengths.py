"""Texts longer than a text tower has positions for are cut by one rule, whichever library the model is of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from shard_sets import make_set
from tiny import tiny_run, tiny_tokenizer
from transformers import AutoConfig, AutoModel

from mmalign.core.config import read_yaml, write_yaml
from mmalign.evaluation.suite import SetConfig, SuiteConfig, measure
from mmalign.models.encoder import load_encoder
from mmalign.models.load import load_model, load_text_encoder
from mmalign.models.text_tower import expanded_mask, positions_of
from mmalign.results.protocol import difference, sentence

LONG = "the cat sleeps on a green chair " * 40
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
SMALL_BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
} | {"encoder_ffn_dim": 32}


@pytest.mark.parametrize(
    ("kind", "changes", "fits"),
    [
        ("bert", {}, 20),
        ("electra", {}, 20),
        ("albert", {"embedding_size": 8}, 20),
        ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}, 20),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}, 20),
        # They count positions from behind the padding token's id.
        ("roberta", {"pad_token_id": 1}, 18),
        ("xlm-roberta", {"pad_token_id": 0}, 19),
        ("camembert", {"pad_token_id": 1}, 18),
        ("mpnet", {"pad_token_id": 1}, 18),
        ("bart", SMALL_BART, 20),
        ("t5", {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8}, None),
    ],
)
def test_so_many_tokens_fit_and_no_more(
    kind: str, changes: dict[str, Any], fits: int | None
) -> None:
    sizes = {} if kind in ("gpt2", "t5") else SIZES
    config = AutoConfig.for_model(kind, **{**sizes, "vocab_size": 60, **changes})
    model: Any = AutoModel.from_config(config).eval()
    trunk = model.get_encoder() if config.is_encoder_decoder else model
    assert positions_of(trunk) == fits
    trunk(input_ids=torch.full((1, fits or 600), 7))
    if fits is not None:
        with pytest.raises((IndexError, RuntimeError)):
            trunk(input_ids=torch.full((1, fits + 1), 7))


def long_run(folder: Path) -> Path:
    """A run of before the check: its captions were cut behind its tower's last position."""
    run = tiny_run(folder)
    tree = read_yaml(run / "config.yaml")
    tree["model"]["text"]["max_length"] = 100
    (run / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    return run


def test_a_run_cuts_and_says_so(tmp_path: Path) -> None:
    encoder = load_encoder(long_run(tmp_path / "run"))
    said = " Cut at 64 tokens, not 100: the model has no more positions."
    assert (encoder.max_length, encoder.cut) == (64, said)
    assert np.isfinite(encoder.encode_texts([LONG])).all()
    tower = load_text_encoder(str(tmp_path / "run"))
    assert (tower.max_length, tower.cut) == (64, said)
    np.testing.assert_allclose(tower.encode([LONG]), encoder.encode_texts([LONG]), atol=1e-6)
    make_set(tmp_path / "data", 4)
    one = SetConfig(name="seen", shards=str(tmp_path / "data"))
    protocols = measure(SuiteConfig(name="s", sets=(one,)), encoder).protocol.values()
    assert all(sentence(one).endswith(said) for one in protocols)
    before = measure(SuiteConfig(name="s", sets=(one,)), load_encoder(tiny_run(tmp_path / "short")))
    # What follows from the model does not keep two models from being compared.
    pairs = zip(protocols, before.protocol.values(), strict=True)
    assert [difference(*pair) for pair in pairs] == [None] * len(protocols)


@pytest.mark.parametrize(
    ("kind", "fits", "of_st"), [("bert", 34, ""), ("xlm-roberta", 32, "32 34")]
)
def test_models_of_other_libraries_are_cut_too(
    kind: str, fits: int, of_st: str, tmp_path: Path
) -> None:
    special = {"max_position_embeddings": 34, "vocab_size": 160, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **{**SIZES, **special, "hidden_size": 32})
    AutoModel.from_config(config).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save(tmp_path / "plain")
    trunk = Transformer(str(tmp_path / "plain"), max_seq_length=50)
    SentenceTransformer(modules=[trunk, Pooling(32)], device="cpu").save(str(tmp_path / "st"))
    said = " Cut at {} tokens, not {}: the model has no more positions."
    # sentence-transformers itself cuts at 34.
    for name, cut in (("plain", f"{fits} 128"), ("st", of_st)):
        model = load_model(str(tmp_path / name))
        assert model.cut == (said.format(*cut.split()) if cut else "")
        assert np.isfinite(model.encode_texts([LONG, "a dog"])).all()
    assert load_text_encoder(str(tmp_path / "plain")).max_length == fits


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_mask_for_gpus_is_the_one_that_transformers_makes(kind: str) -> None:
    changes = {} if kind == "bert" else {"pad_token_id": 1}
    trunk: Any = AutoModel.from_config(AutoConfig.for_model(kind, **{**SIZES, **changes})).eval()
    token_NL = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    for length_N in ([9, 9, 9], [9, 4, 1]):
        mask_NL = (torch.arange(9) < torch.tensor(length_N)[:, None]).long()
        expanded = expanded_mask(trunk, mask_NL)
        assert expanded.shape == (3, 1, 1, 9)
        with torch.no_grad():
            states = [
                trunk(input_ids=token_NL, attention_mask=mask).last_hidden_state
                * mask_NL[..., None]
                for mask in (mask_NL, expanded)
            ]
        assert torch.allclose(*states, atol=1e-6)
    trunk.set_attn_implementation("eager")
    assert expanded_mask(trunk, mask_NL) is mask_NL
