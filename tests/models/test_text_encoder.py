"""Whatever folder a text encoder comes from, the tower gives the features of its maker."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import MODEL, TEXTS, tiny_model, tiny_run, tiny_tokenizer
from torch import nn
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mmalign.core.config import read_yaml, write_yaml
from mmalign.core.errors import UserError
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import load_encoder, weights_sha256
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder, saved_text_encoder, text_side
from mmalign.models.text_tower import TextTowerConfig, build_text_tower

LONG = (*TEXTS, " ".join(TEXTS), "")  # one is cut, one is empty
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 160,
}


def write_objective(run: Path, kind: str) -> None:
    tree = {**read_yaml(run / "config.yaml"), "objective": {"kind": kind}}
    (run / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")


def test_a_run_gives_the_embeddings_of_its_encoder(run: Path) -> None:
    encoder, tower = load_encoder(run), load_text_encoder(str(run))
    np.testing.assert_allclose(tower.encode(LONG), encoder.encode_texts(LONG), atol=1e-6)
    assert tower.facts == encoder.facts and tower.facts["step"] == 1
    assert tower.feature_width == MODEL["embedding"] and tower.state_width == 32
    assert tower.max_length == MODEL["text"]["max_length"]


def test_untrained_is_the_run_before_its_first_step(run: Path) -> None:
    before = load_text_encoder(str(run), untrained=True)
    expected = load_encoder(run, untrained=True).encode_texts(LONG)
    np.testing.assert_allclose(before.encode(LONG), expected, atol=1e-6)
    assert np.abs(before.encode(LONG) - load_text_encoder(str(run)).encode(LONG)).max() > 0.1


def test_a_masked_language_model_is_its_trunk_alone(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    contrastive = load_text_encoder(str(run))
    write_objective(run, "masked_language_model")
    tower = load_text_encoder(str(run))
    assert tower.projection is None and not tower.unit_length
    assert tower.feature_width == tower.state_width == 32
    tokens = tower.tokenize(TEXTS)
    with torch.no_grad():
        state_NLF, mask_NL1 = tower.states(tokens), tokens.mask_NL[..., None]
        mean_NF = (state_NLF * mask_NL1).sum(1) / mask_NL1.sum(1)
    np.testing.assert_allclose(tower.encode(TEXTS), mean_NF.numpy(), atol=1e-6)
    torch.testing.assert_close(state_NLF, contrastive.states(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("pooling", "projected"), [("mean", True), ("cls", True), ("last", False)])
def test_a_saved_tower_comes_back(tmp_path: Path, pooling: str, projected: bool) -> None:
    model = tiny_model()
    projection = torch.nn.Linear(32, 8) if projected else None
    tower = TextEncoder(
        model.text_tower.trunk,
        tiny_tokenizer(),
        pooling,  # type: ignore[arg-type]
        projection,
        unit_length=projected,
        max_length=24,
    )
    tower.save(tmp_path)
    again = load_text_encoder(str(tmp_path))
    np.testing.assert_allclose(again.encode(LONG), tower.encode(LONG), atol=1e-6)
    assert (again.pooling, again.max_length) == (pooling, 24)
    assert again.facts["sha256"] == weights_sha256(tower) == weights_sha256(again)


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "mt5", "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 2},
        {"model_type": "xlm-roberta", **{k: v for k, v in SMALL.items() if k != "vocab_size"}},
        {"model_type": "m2m_100", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
    ],
    ids=lambda one: str(one["model_type"]),
)
def test_other_architectures_come_back(tmp_path: Path, architecture: dict[str, object]) -> None:
    tokenizer = tiny_tokenizer()
    config = TextTowerConfig(architecture=architecture)
    torch.manual_seed(0)
    trunk = build_text_tower(config, tokenizer.vocabulary, tokenizer.padding_id).trunk
    tower = TextEncoder(trunk, tokenizer, max_length=32)
    tower.save(tmp_path)
    np.testing.assert_allclose(
        load_text_encoder(str(tmp_path)).encode(TEXTS), tower.encode(TEXTS), atol=1e-6
    )


def test_a_sentence_transformers_export_has_the_embeddings_of_the_run(
    run: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(run)
    write_sentence_transformers(Source(text_side(encoder)), tmp_path)
    tower = load_text_encoder(str(tmp_path))
    np.testing.assert_allclose(tower.encode(LONG), encoder.encode_texts(LONG), atol=1e-6)
    assert tower.unit_length and tower.projection is not None
    assert tower.max_length == encoder.config.text.max_length


def test_modules_that_cannot_be_read_are_named(run: Path, tmp_path: Path) -> None:
    write_sentence_transformers(Source(load_text_encoder(str(run))), tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([modules[0], modules[3], modules[1]]))
    with pytest.raises(UserError, match="its modules are Transformer, Normalize, Pooling"):
        load_text_encoder(str(tmp_path))


def test_two_layers_of_a_projection_come_back_from_both_formats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 24, bias=False), nn.GELU(), nn.Linear(24, 8, bias=False))
    tower = TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), "mean", layers, True, 24)
    assert tower.feature_width == 8
    for name in ("tower", "exported"):
        (tmp_path / name).mkdir()
    tower.save(tmp_path / "tower")
    write_sentence_transformers(Source(tower), tmp_path / "exported")
    for name in ("tower", "exported"):
        again = load_text_encoder(str(tmp_path / name))
        np.testing.assert_allclose(again.encode(LONG), tower.encode(LONG), atol=1e-6)
        assert again.feature_width == 8


def test_a_fine_tuning_is_its_tower_and_several_seeds_must_be_told_apart(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("task: {name: toy}\n")
    place = tmp_path / "seed-3" / "tower"
    place.mkdir(parents=True)
    load_text_encoder(str(run)).save(place)
    with pytest.raises(UserError, match=r"holds one tower per seed \(1\); name one: .*seed-3"):
        load_text_encoder(str(tmp_path))
    tower = load_text_encoder(str(place.parent))
    assert tower.facts["path"] == str(place.parent)
    assert saved_text_encoder(place.parent) == saved_text_encoder(place) == place
    assert saved_text_encoder(run) is None
    assert np.array_equal(tower.encode(LONG), load_text_encoder(str(place)).encode(LONG))


@pytest.mark.parametrize(
    ("config", "model_class"), [(BertConfig, BertModel), (XLMRobertaConfig, XLMRobertaModel)]
)
def test_a_model_of_transformers_is_pooled_by_the_mean(
    tmp_path: Path, config: type[BertConfig], model_class: type[BertModel]
) -> None:
    torch.manual_seed(0)
    model = model_class(config(**SMALL, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save(tmp_path)
    tower = load_text_encoder(str(tmp_path))
    assert tower.projection is None and tower.facts["path"] == str(tmp_path)
    token_NL, mask_NL = tiny_tokenizer()(TEXTS, tower.max_length)
    with torch.no_grad():
        state_NLF = model(input_ids=token_NL, attention_mask=mask_NL).last_hidden_state
    expected = [
        state[mask.bool()].mean(0).numpy() for state, mask in zip(state_NLF, mask_NL, strict=True)
    ]
    np.testing.assert_allclose(tower.encode(TEXTS), np.stack(expected), atol=1e-6)


def test_encoding_knows_no_gradients_no_dropout_and_keeps_the_mode(run: Path) -> None:
    tower = load_text_encoder(str(run))
    expected = tower.encode(LONG)
    tower.train()
    assert np.array_equal(tower.encode(LONG), expected)
    assert tower.training and tower.trunk.training
    np.testing.assert_allclose(tower.encode(LONG, batch_size=2), expected, atol=1e-6)
    assert tower.encode([]).shape == (0, MODEL["embedding"])


def test_two_texts_are_joined_and_cut(run: Path) -> None:
    tower = load_text_encoder(str(run))
    tokens = tower.tokenize(["a red ball"], ["a dog"])
    assert tokens.encoding.sequence_ids(0).count(None) == 4
    assert {0, 1} <= set(tokens.encoding.sequence_ids(0))
    assert tower.tokenize(["a red ball"] * 2, ["a dog " * 50] * 2).token_NL.shape == (2, 32)


@pytest.mark.parametrize("content", ["nothing", "a text", "an empty config"])
def test_a_folder_that_holds_no_model_is_one_sentence(tmp_path: Path, content: str) -> None:
    if content == "a text":
        (tmp_path / "notes.txt").write_text("hello")
    if content == "an empty config":
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_untrained_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="not a run folder"):
        load_text_encoder(str(tmp_path), untrained=True)
