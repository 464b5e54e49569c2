"""Rows of a text tower for another vocabulary: covered texts keep their vectors, new rows are means."""

from typing import Any

import pytest
import torch
from tiny import MODEL, TEXTS, tiny_tokenizer
from torch import Tensor

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.data.vocabulary import grow, old_pieces, trim
from mmalign.models.text_tower import TextTower, TextTowerConfig, build_text_tower
from mmalign.models.vocabulary import adapt_vocabulary


def tower(tokenizer: Tokenizer, model_type: str) -> TextTower:
    # With more rows than tokens, as many pretrained models have.
    sizes = {"vocab_size": tokenizer.vocabulary + 7, "model_type": model_type}
    architecture = {**MODEL["text"]["architecture"], **sizes}
    if model_type == "mt5":
        architecture = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, **sizes}
    config: Any = validate(TextTowerConfig, {"architecture": architecture}, "test")
    return build_text_tower(config, tokenizer.vocabulary, tokenizer.padding_id).eval()


@torch.no_grad()
def vectors(one: TextTower, tokenizer: Tokenizer) -> Tensor:
    return one(*tokenizer(TEXTS[:2], 32))


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "mt5"])
def test_the_vectors_of_covered_texts_stay(model_type: str) -> None:
    old = tiny_tokenizer()
    one = tower(old, model_type)
    before = vectors(one, old)
    new = trim(old, TEXTS[:2])
    facts = adapt_vocabulary(one.trunk, old, new)
    assert facts == {"kept": new.vocabulary, "new": 0, "dropped": old.vocabulary - new.vocabulary}
    assert one.trunk.get_input_embeddings().weight.shape[0] == new.vocabulary
    assert one.trunk.config.vocab_size == new.vocabulary
    assert (vectors(one, new) - before).abs().max() <= 1e-6


def test_a_new_row_is_the_mean_of_its_old_pieces() -> None:
    old = tiny_tokenizer()
    one = tower(old, "bert").requires_grad_(False)
    before = one.trunk.get_input_embeddings().weight.clone()
    new = grow(old, ["mbwa analala nyumbani \u1230\u12cd"] * 4, 100)
    adapt_vocabulary(one.trunk, old, new)
    row_VF = one.trunk.get_input_embeddings().weight
    assert not row_VF.requires_grad  # a frozen tower stays frozen
    pieces = old_pieces(new, old)
    for number, ids in enumerate(pieces):
        if ids:
            torch.testing.assert_close(row_VF[number], before[ids].mean(0))
    # What consists of unknown letters is neither the row of the unknown token nor the same for all.
    unknown = row_VF[[number for number, ids in enumerate(pieces) if not ids]]
    assert len(unknown) > 1
    assert len(unknown.unique(dim=0)) == len(unknown)


def test_positions_that_begin_behind_another_padding_token_are_refused() -> None:
    old = tiny_tokenizer()
    one = tower(old, "xlm-roberta")
    one.trunk.config.pad_token_id = 1
    with pytest.raises(
        UserError, match="counts positions from its own padding id, 1; take its own"
    ):
        adapt_vocabulary(one.trunk, old, trim(old, TEXTS[:1]))
