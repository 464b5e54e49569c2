"""Adapters start as nothing, train alone, and disappear into the weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, tiny_model, tiny_tokenizer

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.load import load_text_encoder
from mmalign.models.lora import LoraConfig
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.lora import add_lora, merge_lora

RANK = 4
WIDTH, INNER = 32, 64  # of the tiny trunk: one layer, six linear maps


@pytest.fixture
def tower() -> TextEncoder:
    model = tiny_model()
    return TextEncoder(
        model.text_tower.trunk,
        tiny_tokenizer(),
        projection=model.text_projection,
        unit_length=True,
        max_length=32,
    )


def adapted(tower: TextEncoder, **fields: object) -> TextEncoder:
    torch.manual_seed(0)
    add_lora(tower, validate(LoraConfig, {"rank": RANK, **fields}, "test"))
    return tower


def trainable(tower: TextEncoder) -> dict[str, torch.Tensor]:
    return {name: p for name, p in tower.named_parameters() if p.requires_grad}


def train(tower: TextEncoder, steps: int = 3) -> None:
    """Anything that moves the adapters."""
    optimizer = torch.optim.SGD(list(trainable(tower).values()), lr=1.0)
    tokens = tower.tokenize(TEXTS)
    for _ in range(steps):
        optimizer.zero_grad()
        feature = tower.feature(tower.states(tokens), tokens.mask_NL)
        (feature @ feature.T).sum().backward()
        optimizer.step()


def test_only_adapters_train(tower: TextEncoder) -> None:
    start = tower.encode(TEXTS)
    assert np.array_equal(adapted(tower).encode(TEXTS), start)
    assert not tower.training and not tower.trunk.training
    assert all("lora_" in name for name in trainable(tower))
    frozen = {n: p.detach().clone() for n, p in tower.named_parameters() if not p.requires_grad}
    before = tower.encode(TEXTS)
    train(tower)
    now = dict(tower.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert all(now[name].grad is None for name in frozen)
    assert all(p.grad is not None for p in trainable(tower).values())
    assert np.abs(tower.encode(TEXTS) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, RANK * (10 * WIDTH + 2 * INNER)),
        (("query", "value"), RANK * 2 * (WIDTH + WIDTH)),
        (("attention.output.dense",), RANK * (WIDTH + WIDTH)),
    ],
)
def test_the_number_of_trained_parameters(
    tower: TextEncoder, targets: tuple[str, ...] | None, expected: int
) -> None:
    adapted(tower, targets=targets)
    assert sum(p.numel() for p in trainable(tower).values()) == expected


def test_merging_leaves_a_plain_model_with_the_same_outputs(
    tower: TextEncoder, tmp_path: Path
) -> None:
    kind, names = type(tower.trunk), set(tower.state_dict())
    train(adapted(tower))
    expected = tower.encode(TEXTS)
    merge_lora(tower)
    assert type(tower.trunk) is kind and set(tower.state_dict()) == names
    assert set(trainable(tower)) == {name for name, _ in tower.named_parameters()}
    np.testing.assert_allclose(tower.encode(TEXTS), expected, atol=1e-5)
    tower.save(tmp_path)
    np.testing.assert_allclose(load_text_encoder(str(tmp_path)).encode(TEXTS), expected, atol=1e-5)
    assert not list(tmp_path.glob("*adapter*"))


def test_alpha_over_rank_is_the_factor(tower: TextEncoder) -> None:
    adapted(tower, alpha=2.0, targets=("query",))
    query = tower.trunk.get_submodule("base_model.model.encoder.layer.0.attention.self.query")
    a, b = query.lora_A["default"].weight, query.lora_B["default"].weight
    torch.nn.init.normal_(b)
    expected = query.base_layer.weight + 2.0 / RANK * b @ a
    merge_lora(tower)
    merged = tower.trunk.get_submodule("encoder.layer.0.attention.self.query").weight
    torch.testing.assert_close(merged, expected)


def test_dropout_works_in_training_only(tower: TextEncoder) -> None:
    adapted(tower, dropout=0.5)
    train(tower)
    assert np.array_equal(tower.encode(TEXTS), tower.encode(TEXTS))
    tokens = tower.tokenize(TEXTS)
    tower.trunk.train()
    assert not torch.equal(tower.states(tokens), tower.states(tokens))


def test_targets_that_match_nothing_are_one_sentence(tower: TextEncoder) -> None:
    words = r"no linear layer is named `qeury`; there are dense, key, query, value$"
    with pytest.raises(UserError, match=words):
        adapted(tower, targets=("value", "qeury"))
    assert len(trainable(tower)) == len(list(tower.parameters()))


def test_without_peft_the_error_says_how_to_get_it(
    tower: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'mmalign\[finetune\]'"):
        adapted(tower)
